"""`kms policy edit` with editors that are scripts: `kmsd_client.cli.policy_edit`."""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import AccessDeniedError, MalformedPolicyDocumentError
from kmsd.api.policies import (
    GetKeyPolicyResponse,
    Outcome,
    PutKeyPolicyRequest,
    SimulatePolicyRequest,
    SimulatePolicyResponse,
    SimulationResult,
)
from kmsd.api.shapes import Empty
from kmsd_client.cli.main import main
from tests.client.scripted import Answer, ScriptedDaemon
from tests.client.test_doctor import WELL

KEY = "00000000-0000-0000-0000-000000000001"


def policy(*actions: str) -> str:
    statement = {"Effect": "Allow", "Principal": "*", "Action": [*actions], "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, indent=2)


class Key:
    """A key at a daemon for which an action is allowed if the policy has its name."""

    def __init__(self, daemon: ScriptedDaemon) -> None:
        self.policy = policy("kms:Decrypt", "kms:PutKeyPolicy")
        self.puts: list[PutKeyPolicyRequest] = []
        self.simulates = True
        self.locks_out = False
        daemon.answer = self.answer

    def answer(self, name: str, request: Any) -> Answer:
        match name:
            case "Status":
                return WELL, []
            case "GetKeyPolicy":
                return GetKeyPolicyResponse(policy=self.policy, policy_name="default"), []
            case "SimulatePolicy":
                return self._simulated(request), []
            case _:
                assert name == "PutKeyPolicy"
                if self.locks_out:
                    raise MalformedPolicyDocumentError("you could not change the policy again")
                self.puts.append(request)
                self.policy = request.policy
                return Empty(), []

    def _simulated(self, request: SimulatePolicyRequest) -> SimulatePolicyResponse:
        if not self.simulates:
            raise AccessDeniedError("not you")
        text = request.policy or self.policy
        return SimulatePolicyResponse(
            principal="you",
            resource="arn",
            results=[
                SimulationResult(
                    action=action,
                    decision=Outcome.ALLOWED if f'"{action}"' in text else Outcome.IMPLICIT_DENY,
                    rule="",
                )
                for action in request.actions
            ],
        )


class Terminal:
    """Runs `kms policy edit` with an editor and answers to its questions."""

    def __init__(self, daemon: ScriptedDaemon, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._daemon = daemon
        self._patch = monkeypatch
        self._folder = folder
        self.drafts = folder / "drafts"
        self.drafts.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(self.drafts))
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", "true")

    def edits(self, *commands: str) -> None:
        """Have the first opening of the editor run the first command, with the file as `$1`, and so on."""
        cases = "\n".join(f"{number}) {command} ;;" for number, command in enumerate(commands, 1))
        script = self._folder / "editor"
        script.write_text(f"echo >> {self._folder}/opened\ncase $(wc -l < {self._folder}/opened) in\n{cases}\nesac\n")
        self._patch.setenv("EDITOR", f"sh {script}")

    def run(self, answers: str = "") -> int:
        self._patch.setattr(sys, "stdin", io.StringIO(answers))
        return main(["--socket", str(self._daemon.path), "policy", "edit", KEY])


@pytest.fixture
def key(daemon: ScriptedDaemon) -> Key:
    return Key(daemon)


@pytest.fixture
def terminal(daemon: ScriptedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(daemon, tmp_path, monkeypatch)


TO_ENCRYPT = 'sed -i s/kms:Decrypt/kms:Encrypt/ "$1"'
BREAK = 'sed -i s/Allow/Alow/ "$1"'
MEND = 'sed -i s/Alow/Allow/ "$1"'


def test_a_change_is_shown_and_stored(key: Key, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    """As a diff, and as what it takes from its author and gives."""
    terminal.edits(TO_ENCRYPT)

    assert terminal.run("y\n") == 0
    shown = capsys.readouterr().out

    assert '-        "kms:Decrypt",\n+        "kms:Encrypt",\n' in shown
    assert shown.endswith("you may no longer kms:Decrypt\nyou may now kms:Encrypt\nthe policy is stored\n")
    assert [put.policy for put in key.puts] == [policy("kms:Encrypt", "kms:PutKeyPolicy") + "\n"]
    assert not key.puts[0].bypass_policy_lockout_safety_check
    assert list(terminal.drafts.iterdir()) == []


def test_an_unchanged_text_is_not_stored(key: Key, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is anything asked, also where the editor ended the last line."""
    assert terminal.run() == 0
    assert capsys.readouterr().out == "the policy is unchanged\n"
    assert key.puts == []


def test_a_no_stores_nothing(key: Key, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    """And leaves nothing behind; what is no answer is asked again."""
    terminal.edits(TO_ENCRYPT)

    assert terminal.run("perhaps\nno\n") == 0
    assert capsys.readouterr().err.count("store it?") == 2
    assert key.puts == []
    assert list(terminal.drafts.iterdir()) == []


def test_a_text_that_is_not_valid_is_edited_again(
    key: Key, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    """From where it was, and it is said what is wrong with it."""
    terminal.edits(f"{TO_ENCRYPT}; {BREAK}", MEND)

    assert terminal.run("y\ny\n") == 0
    assert 'statement 1, Effect: must be "Allow" or "Deny"\n' in capsys.readouterr().err
    assert [put.policy for put in key.puts] == [policy("kms:Encrypt", "kms:PutKeyPolicy") + "\n"]


@pytest.mark.parametrize("answers", ["n\n", ""], ids=["no", "end of input"])
def test_a_text_that_is_given_up_is_kept(
    key: Key, terminal: Terminal, capsys: pytest.CaptureFixture[str], answers: str
) -> None:
    """In a file that is its author's alone."""
    terminal.edits(BREAK)

    assert terminal.run(answers) == 1
    kept = re.search("what you wrote is kept in (.*)", capsys.readouterr().err)

    assert kept is not None
    assert "Alow" in Path(kept[1]).read_text()
    assert Path(kept[1]).stat().st_mode & 0o777 == 0o600
    assert Path(kept[1]).parent.stat().st_mode & 0o777 == 0o700
    assert key.puts == []


def test_somebody_elses_change_is_not_overwritten(
    key: Key, terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str], daemon: ScriptedDaemon
) -> None:
    """Neither is one's own text lost."""
    theirs = policy("kms:PutKeyPolicy")
    terminal.edits(TO_ENCRYPT)

    def meanwhile(name: str, request: Any) -> Answer:
        if name == "SimulatePolicy":
            key.policy = theirs
        return key.answer(name, request)

    daemon.answer = meanwhile
    assert terminal.run("y\n") == 1
    said = capsys.readouterr().err

    assert "kms: error: somebody else changed the policy meanwhile\n" in said
    assert "what you wrote is kept in" in said
    assert key.policy == theirs


def test_a_policy_that_locks_its_author_out_is_edited_again(
    key: Key, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon says so only when it is to be stored."""
    key.locks_out = True
    terminal.edits(TO_ENCRYPT)

    assert terminal.run("y\nn\n") == 1
    assert "kms: error: you could not change the policy again\n" in capsys.readouterr().err


def test_it_can_be_edited_again_before_it_is_stored(key: Key, terminal: Terminal) -> None:
    """As often as wanted."""
    terminal.edits(TO_ENCRYPT, 'sed -i s/kms:Encrypt/kms:ReEncryptTo/ "$1"')

    assert terminal.run("e\ny\n") == 0
    assert key.policy == policy("kms:ReEncryptTo", "kms:PutKeyPolicy") + "\n"


def test_who_may_not_simulate_is_told_so(key: Key, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    """And may store the policy all the same."""
    key.simulates = False
    terminal.edits(TO_ENCRYPT)

    assert terminal.run("y\n") == 0
    assert "what this changes for you cannot be told" in capsys.readouterr().out
    assert len(key.puts) == 1


def test_an_editor_that_fails_stores_nothing(
    key: Key, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """VISUAL counts before EDITOR, and may have arguments."""
    monkeypatch.setenv("VISUAL", "sh -c 'exit 3'")

    assert terminal.run() == 1
    assert capsys.readouterr().err == "kms: error: the editor sh failed, with 3\n"
    assert list(terminal.drafts.iterdir()) == []
    assert key.puts == []


def test_without_an_editor_it_is_said_how_to_name_one(
    key: Key, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is asked of the daemon."""
    monkeypatch.delenv("EDITOR")
    monkeypatch.setenv("PATH", "")

    assert terminal.run() == 1
    assert "EDITOR=" in capsys.readouterr().err
    assert key.puts == []
