"""Change a key's policy in an editor: `kms policy edit`.

1. The policy is written into a file that is its user's alone, and the editor is run on it.
2. A text that is not valid is said and, if the user wants that, edited again.
3. The changes are shown: as a diff, and what they mean for whoever made them.
4. If the user agrees, and nobody else has changed the policy since 1, it is stored.

A text that was worked on and could not be stored is kept, and it is said where. Between the look at the policy in 4 and
storing it is a moment in which somebody else's change would be lost; the trail has both.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kmsd.api import OPERATIONS
from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.errors import AccessDeniedError, LimitExceededError, MalformedPolicyDocumentError
from kmsd.api.operation import KeyAccess, Operation
from kmsd.api.policies import (
    GET_KEY_POLICY,
    PUT_KEY_POLICY,
    SIMULATE_POLICY,
    GetKeyPolicyRequest,
    Outcome,
    PutKeyPolicyRequest,
    SimulatePolicyRequest,
)
from kmsd_client import Client
from kmsd_client.cli.keys import key_id_of
from kmsd_client.cli.policies import NotTextError, policy_in
from kmsd_client.cli.policy_check import understood
from kmsd_client.cli.terminal import CommandError, complain, note, printable

_EDITORS = ("vi", "nano")
_LINE = "\n"


def run_edit(options: argparse.Namespace) -> None:
    """Change a policy; nothing is stored that was not shown and agreed to."""
    editor = _editor(os.environ)
    with Client(options.socket) as client:
        account = client.call(STATUS, StatusRequest()).account
        policy = _KeyPolicy(client, key_id_of(client, options.key), account)
        text = policy.read()
        with _draft(text) as path:
            while not _edit(editor, path, text, policy):
                pass


class _KeyPolicy:
    """The policy of one key, at the daemon."""

    def __init__(self, client: Client, key: str, account: str) -> None:
        self._client = client
        self._key = key
        self._account = account

    def read(self) -> str:
        """Return the policy, which ends with a line feed as editors leave it."""
        return _ended(self._client.call(GET_KEY_POLICY, GetKeyPolicyRequest(key_id=self._key)).policy)

    def effects(self, text: str) -> list[str]:
        """Return what `text` as policy would change for the caller. Raises the error of a text that is not valid."""
        understood(text, self._account)
        try:
            now, then = self._allowed(None), self._allowed(text)
        except AccessDeniedError:
            return ["what this changes for you cannot be told: you may not kms:SimulatePolicy"]
        lost = [f"you may no longer {action}" for action in sorted(now - then)]
        won = [f"you may now {action}" for action in sorted(then - now)]
        return [*lost, *won] or ["what you may do with the key stays the same"]

    def store(self, before: str, text: str) -> None:
        """Store `text` in the place of `before`. Raises CommandError when there is something else by now."""
        if self.read() != before:
            raise CommandError("somebody else changed the policy meanwhile", "kms policy edit shows theirs")
        self._client.call(PUT_KEY_POLICY, PutKeyPolicyRequest(key_id=self._key, policy=text))

    def _allowed(self, policy: str | None) -> set[str]:
        request = SimulatePolicyRequest(actions=_key_actions(), key_id=self._key, policy=policy, trace=False)
        results = self._client.call(SIMULATE_POLICY, request).results
        return {one.action for one in results if one.decision is Outcome.ALLOWED}


def _edit(editor: Sequence[str], path: Path, before: str, policy: _KeyPolicy) -> bool:
    """Let the user edit once; return whether that was the last time."""
    _run_editor(editor, path)
    try:
        after = _ended(policy_in(str(path)))
        if after == before:
            print("the policy is unchanged")
            return True
        effects = policy.effects(after)
        for line in _difference(before, after):
            print(printable(line.expandtabs()))
        print(_LINE.join(effects))
        answer = _asked("store it? yes, no, or edit it again [y/n/e]: ", {"y", "n", "e"})
        if answer == "y":
            policy.store(before, after)
            print("the policy is stored")
    except (MalformedPolicyDocumentError, LimitExceededError, NotTextError) as error:
        complain(error.message)
        if _asked("edit it again? [y/n]: ", {"y", "n"}) == "n":
            raise CommandError("nothing was stored") from None
        return False
    return answer != "e"


def _key_actions() -> list[str]:
    """Return every action that a key's policy may allow or deny."""
    return sorted({action for operation in OPERATIONS if _acts_on_keys(operation) for action in operation.actions})


def _acts_on_keys(operation: Operation[Any, Any]) -> bool:
    return operation.key is not None or (not operation.resolves_keys and operation.key_access is not KeyAccess.NONE)


def _ended(text: str) -> str:
    return text if text.endswith(_LINE) else text + _LINE


def _difference(before: str, after: str) -> Iterator[str]:
    lines = before.splitlines(), after.splitlines()
    return difflib.unified_diff(*lines, "stored", "edited", lineterm="")


@contextlib.contextmanager
def _draft(text: str) -> Iterator[Path]:
    """Give a file with `text` in a folder that only its user may enter; it stays where it would be a loss."""
    folder = Path(tempfile.mkdtemp(prefix="kms-policy-"))
    path = folder / "policy.json"
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    try:
        yield path
    except BaseException:
        if path.exists() and path.read_bytes() != text.encode():
            note(f"what you wrote is kept in {path}")
        else:
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def _editor(environment: Mapping[str, str]) -> list[str]:
    """Return the command that edits a file whose name is put behind it."""
    for variable in ("VISUAL", "EDITOR"):
        if words := shlex.split(environment.get(variable, "")):
            return words
    for name in _EDITORS:
        if found := shutil.which(name):
            return [found]
    raise CommandError("there is no editor here", "name one: EDITOR=COMMAND kms policy edit KEY")


def _run_editor(editor: Sequence[str], path: Path) -> None:
    # Ctrl-C in an editor is for the editor.
    before = signal.signal(signal.SIGINT, lambda _signal, _frame: None)
    try:
        ended = subprocess.run([*editor, str(path)], check=False)  # noqa: S603 - the user's own choice
    finally:
        signal.signal(signal.SIGINT, before)
    if ended.returncode:
        raise CommandError(f"the editor {editor[0]} failed, with {ended.returncode}")


def _asked(question: str, answers: set[str]) -> str:
    """Return the first letter of the user's answer, once it is one of `answers`."""
    while True:
        sys.stdout.flush()  # what the question is about may be on its way to a pipe
        sys.stderr.write(question)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise CommandError("nobody answered, so nothing was stored")
        if (answer := line.strip().lower()[:1]) in answers:
            return answer
