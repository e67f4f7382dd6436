"""A change of a key is in force with the very next request, on every connection; and who is refused can ask why."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import KmsError
from kmsd.api.grants import CreateGrantResponse, GrantOperation
from kmsd.api.policies import Outcome
from kmsd.api.shapes import Tag
from kmsd_client import Client
from tests.support.dev_daemon import DevDaemon
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user

pytestmark = pytest.mark.root

OTHER_UID = 54321


class Connected:
    """Another user's process, which keeps its connection and does `action` whenever it is told to."""

    def __init__(self, daemon: DevDaemon, action: Callable[[Client], str]) -> None:
        self._socket, told = socket.socketpair()
        self._child = os.fork()
        if self._child == 0:
            try:
                os.setgroups([])
                os.setresgid(DAEMON_GID, DAEMON_GID, DAEMON_GID)
                os.setresuid(DAEMON_UID, DAEMON_UID, DAEMON_UID)
                with Client(daemon.socket) as client:
                    while told.recv(1):
                        told.send(outcome(client, action).encode())
            finally:
                os._exit(0)
        told.close()

    def ask(self) -> str:
        self._socket.send(b"1")
        return self._socket.recv(1024).decode()

    def close(self) -> None:
        # Also where a later child has inherited this end.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        os.waitpid(self._child, 0)


def outcome(client: Client, action: Callable[[Client], str]) -> str:
    try:
        return action(client)
    except KmsError as error:
        return f"{error.code} {error.request_id}"


@pytest.fixture(scope="module")
def shared(module_path: Path, prepared: Path) -> Iterator[DevDaemon]:
    """A daemon that others may connect to."""
    daemon = DevDaemon(shutil.copytree(prepared, module_path / "shared"), shared=True)
    try:
        daemon.start()
        yield daemon
        daemon.stop()
    finally:
        daemon.end()


def policy(*statements: dict[str, Any]) -> str:
    owner = {"Effect": "Allow", "Principal": {"Unix": "uid:0"}, "Action": "kms:*"}
    written = [{"Resource": "*", **one} for one in (owner, *statements)]
    return json.dumps({"Version": "2012-10-17", "Statement": written})


USES = {"Effect": "Allow", "Principal": {"Unix": f"uid:{DAEMON_UID}"}, "Action": "kms:Encrypt"}
IF_SHARED = {"Condition": {"StringEquals": {"aws:ResourceTag/shared": "yes"}}}


def test_every_change_of_a_key_is_seen_by_the_next_request(shared: DevDaemon) -> None:
    """Of policy, state, tags and grants; of other connections, which the change did not pass over."""
    with shared.client() as owner:
        key = owner.create_key(policy=policy()).key_metadata.arn

        def encrypt(client: Client) -> str:
            client.encrypt(key_id=key, plaintext=b"text")
            return "ok"

        def grant() -> CreateGrantResponse:
            operations = [GrantOperation.ENCRYPT]
            return owner.create_grant(
                key_id=key, grantee_principal="user:daemon", retiring_principal="uid:0", operations=operations
            )

        granted: list[CreateGrantResponse] = []
        peers = [Connected(shared, encrypt) for _ in range(2)]
        changes: list[tuple[Callable[[], object], str]] = [
            (lambda: None, "AccessDeniedException"),
            (lambda: owner.put_key_policy(key_id=key, policy=policy(USES)), "ok"),
            (lambda: owner.disable_key(key_id=key), "DisabledException"),
            (lambda: owner.enable_key(key_id=key), "ok"),
            (lambda: owner.put_key_policy(key_id=key, policy=policy(USES | IF_SHARED)), "AccessDeniedException"),
            (lambda: owner.tag_resource(key_id=key, tags=[Tag(tag_key="shared", tag_value="yes")]), "ok"),
            (lambda: owner.untag_resource(key_id=key, tag_keys=["shared"]), "AccessDeniedException"),
            (lambda: owner.put_key_policy(key_id=key, policy=policy(USES)), "ok"),
            (lambda: owner.put_key_policy(key_id=key, policy=policy()), "AccessDeniedException"),
            (lambda: granted.append(grant()), "ok"),
            (lambda: owner.revoke_grant(key_id=key, grant_id=granted[-1].grant_id), "AccessDeniedException"),
            (lambda: granted.append(grant()), "ok"),
            (lambda: owner.disable_key(key_id=key), "DisabledException"),
            (lambda: owner.retire_grant(grant_token=granted[-1].grant_token), "AccessDeniedException"),
        ]
        try:
            for change, expected in changes:
                change()
                assert [peer.ask().partition(" ")[0] for peer in peers] == [expected] * 2
        finally:
            for peer in peers:
                peer.close()


def test_who_was_refused_can_ask_why_and_others_cannot(shared: DevDaemon) -> None:
    """By the first digits of the request; administrators see what speaks of others, too."""
    with shared.client() as owner:
        key = owner.create_key(policy=policy(USES | IF_SHARED)).key_metadata.arn

        def refused(client: Client) -> str:
            client.encrypt(key_id=key, plaintext=b"text")
            return "ok"

        def why(client: Client) -> str:
            told = client.explain_refusal(request_id=request_id[:8])
            return f"{told.result.decision} {[entry.number for entry in told.result.trace]} {told.principal}"

        code, _, request_id = as_user(
            DAEMON_UID, DAEMON_GID, lambda: outcome(Client(shared.socket), refused)
        ).partition(" ")
        assert code == "AccessDeniedException"

        told = as_user(DAEMON_UID, DAEMON_GID, lambda: outcome(Client(shared.socket), why))
        assert told == f"{Outcome.IMPLICIT_DENY} [2] uid 1 (daemon)"
        others = as_user(OTHER_UID, OTHER_UID, lambda: outcome(Client(shared.socket), why))
        assert others.startswith("NotFoundException")
        assert outcome(owner, why) == f"{Outcome.IMPLICIT_DENY} [1, 2] uid 1 (daemon)"
        [record] = [one for one in shared.records() if one.get("requestID") == request_id]
        assert record["additionalEventData"]["decision"] == "no statement allows it"


def test_a_simulation_says_what_a_request_would_get(shared: DevDaemon) -> None:
    """Of another user, whom an administrator asks about, with the groups the host gives him."""
    with shared.client() as owner:
        key = owner.create_key(policy=policy(USES)).key_metadata.arn

        answer = owner.simulate_policy(actions=["kms:Encrypt", "kms:Decrypt"], key_id=key, principals=["user:daemon"])

    assert answer.principal == "uid 1 (daemon)"
    assert [one.decision for one in answer.results] == [Outcome.ALLOWED, Outcome.IMPLICIT_DENY]
