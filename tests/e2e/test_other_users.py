"""Whoever else is on the host gets only what policies give them, and what they try is on record."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import AccessDeniedError, KmsError
from kmsd_client import Client
from kmsd_client.files import decrypt_file, encrypt_file
from tests.support.dev_daemon import DevDaemon
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user

pytestmark = pytest.mark.root

# A uid and gid that passwd and group do not have.
STRANGER = 54321


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


@pytest.fixture
def owner(shared: DevDaemon) -> Iterator[Client]:
    with shared.client() as connected:
        yield connected


def outcome(daemon: DevDaemon, uid: int, action: Callable[[Client], object], gid: int | None = None) -> str:
    """Return "ok", or the code of the error that `action` ends with when that uid does it."""

    def connect_and_act() -> str:
        try:
            with Client(daemon.socket) as client:
                action(client)
        except KmsError as error:
            return error.code
        return "ok"

    return as_user(uid, uid if gid is None else gid, connect_and_act)


def policy(*statements: dict[str, Any]) -> str:
    """A key policy with these statements beside the one that lets its creator do everything."""
    creator = {"Effect": "Allow", "Principal": {"Unix": "uid:0"}, "Action": "kms:*", "Resource": "*"}
    return json.dumps(
        {"Version": "2012-10-17", "Statement": [creator, *({"Resource": "*"} | one for one in statements)]}
    )


def test_nobody_else_can_connect_unless_shared(dev: DevDaemon) -> None:
    """The directory is its owner's."""
    assert outcome(dev, DAEMON_UID, lambda client: client.status()) == "ConnectionLostException"
    assert outcome(dev, 0, lambda client: client.status()) == "ok"


def test_even_who_gets_at_the_socket_is_turned_away_unless_shared(module_path: Path, prepared: Path) -> None:
    """The modes are one thing, what the kernel says of the peer is another."""
    daemon = DevDaemon(shutil.copytree(prepared, module_path / "own"))
    daemon.start()
    try:
        daemon.directory.chmod(0o711)
        daemon.socket.chmod(0o666)

        assert outcome(daemon, DAEMON_UID, lambda client: client.status()) == "AccessDeniedException"

        daemon.stop()
    finally:
        daemon.end()


def test_another_user_is_refused_and_it_is_recorded(shared: DevDaemon, owner: Client, short_path: Path) -> None:
    """Every use of somebody else's key, with the uid and the user's name in the trail."""
    key = owner.create_key().key_metadata.arn
    blob = owner.encrypt(key_id=key, plaintext=b"mine").ciphertext_blob
    short_path.chmod(0o777)
    (short_path / "F").write_bytes(b"mine")
    encrypt_file(owner, short_path / "F", short_path / "F.kms", key_id=key)
    (short_path / "F.kms").chmod(0o644)
    tries: dict[str, Callable[[Client], object]] = {
        "Encrypt": lambda client: client.encrypt(key_id=key, plaintext=b"theirs"),
        "Decrypt": lambda client: client.decrypt(ciphertext_blob=blob),
        "ReEncrypt": lambda client: client.re_encrypt(ciphertext_blob=blob, destination_key_id=key),
        "GenerateDataKey": lambda client: client.generate_data_key(key_id=key, number_of_bytes=32),
        "DescribeKey": lambda client: client.describe_key(key_id=key),
        "CreateAlias": lambda client: client.create_alias(alias_name="alias/theirs", target_key_id=key),
        "CreateKey": lambda client: client.create_key(),
        "GetAuditRecords": lambda client: client.get_audit_records(),
        "EncryptFile": lambda client: encrypt_file(client, short_path / "F.kms", short_path / "out", key_id=key),
        "DecryptFile": lambda client: decrypt_file(client, short_path / "F.kms", short_path / "out"),
    }
    for name, attempt in tries.items():
        assert outcome(shared, DAEMON_UID, attempt) == "AccessDeniedException", name

    assert not (short_path / "out").exists()
    recorded = [one for one in shared.records() if one.get("userIdentity", {}).get("uid") == DAEMON_UID]
    assert [one["eventName"] for one in recorded] == list(tries)
    for record in recorded:
        assert record["errorCode"] == "AccessDeniedException"
        assert record["userIdentity"]["userName"] == "daemon"
        assert record["userIdentity"]["gid"] == DAEMON_GID
        assert record["requestID"]


def test_refusal_says_nothing_of_the_key(shared: DevDaemon, owner: Client) -> None:
    """Neither its description nor its policy."""
    key = owner.create_key(description="the word is swordfish").key_metadata.arn

    def attempt() -> str:
        with Client(shared.socket) as client, pytest.raises(AccessDeniedError) as caught:
            client.encrypt(key_id=key, plaintext=b"theirs")
        return caught.value.message

    message = as_user(DAEMON_UID, DAEMON_GID, attempt)

    assert "kms:Encrypt" in message
    assert "swordfish" not in message
    assert "Statement" not in message


@pytest.mark.parametrize("principal", [f"uid:{DAEMON_UID}", "user:daemon", f"gid:{DAEMON_GID}", "group:daemon", "*"])
def test_a_key_policy_lets_others_in_as_far_as_it_says(shared: DevDaemon, owner: Client, principal: str) -> None:
    """To encrypt, but not to decrypt, whatever way they are named."""
    allowed = {"Effect": "Allow", "Principal": {"Unix": principal}, "Action": "kms:Encrypt"}
    key = owner.create_key(policy=policy(allowed)).key_metadata.arn
    blob = owner.encrypt(key_id=key, plaintext=b"mine").ciphertext_blob

    assert outcome(shared, DAEMON_UID, lambda client: client.encrypt(key_id=key, plaintext=b"x")) == "ok"
    assert outcome(shared, DAEMON_UID, lambda client: client.decrypt(ciphertext_blob=blob)) == "AccessDeniedException"


def test_a_denial_is_stronger_than_what_allows(shared: DevDaemon, owner: Client) -> None:
    """One user of those whom the policy lets in, and root as well: it is a principal like others."""
    everyone = {"Effect": "Allow", "Principal": {"Unix": "*"}, "Action": "kms:Encrypt"}
    denied = {"Effect": "Deny", "Principal": {"Unix": [f"uid:{DAEMON_UID}", "uid:0"]}, "Action": "kms:Encrypt"}
    key = owner.create_key(policy=policy(everyone, denied)).key_metadata.arn

    assert outcome(shared, DAEMON_UID, lambda client: client.encrypt(key_id=key, plaintext=b"x")) != "ok"
    assert outcome(shared, 0, lambda client: client.encrypt(key_id=key, plaintext=b"x")) == "AccessDeniedException"
    assert outcome(shared, STRANGER, lambda client: client.encrypt(key_id=key, plaintext=b"x")) == "ok"


def test_a_user_without_a_name_is_recorded_by_its_uid(shared: DevDaemon, owner: Client) -> None:
    """A container's or a dynamic one."""
    key = owner.create_key().key_metadata.arn
    assert outcome(shared, STRANGER, lambda client: client.encrypt(key_id=key, plaintext=b"x")) == (
        "AccessDeniedException"
    )

    [record] = [one for one in shared.records() if one.get("userIdentity", {}).get("uid") == STRANGER][-1:]
    assert record["errorCode"] == "AccessDeniedException"
    assert record["userIdentity"]["userName"] is None


def test_others_cannot_look_into_a_shared_directory(shared: DevDaemon) -> None:
    """They reach the socket and nothing else."""

    def look() -> str:
        found = []
        for name in ("token/pin", "store.sqlite", "audit.log", "."):
            try:
                place = shared.directory / name
                found.append(str(place.read_bytes() if place.is_file() else list(place.iterdir())))
            except PermissionError:
                continue
        return str(found)

    assert as_user(DAEMON_UID, DAEMON_GID, look) == "[]"


def test_root_needs_no_share(dev: DevDaemon, client: Client) -> None:
    """The owner's own connections are what `kmsd dev` is for; the trail names root."""
    client.list_keys()

    assert dev.records()[-1]["userIdentity"]["userName"] == "root"


def test_each_user_has_a_key_of_his_own(shared: DevDaemon, owner: Client, short_path: Path) -> None:
    """Without any set-up; who administers the daemon cannot read what is under it, and is on record for trying."""
    alias = "alias/kmsd/default"
    short_path.chmod(0o777)
    codecs.lookup("ascii")  # loaded now: the user may not read where Python is

    def their_file() -> str:
        with Client(shared.socket) as client:
            (short_path / "theirs").write_bytes(b"theirs")
            encrypt_file(client, short_path / "theirs", short_path / "theirs.kms", key_id=alias)
            (short_path / "theirs.kms").chmod(0o644)
            decrypt_file(client, short_path / "theirs.kms", short_path / "again")
            return client.describe_key(key_id=alias).key_metadata.arn

    theirs = as_user(DAEMON_UID, DAEMON_GID, their_file)

    assert theirs.startswith("arn:"), theirs
    assert (short_path / "again").read_bytes() == b"theirs"
    assert owner.describe_key(key_id=alias).key_metadata.arn != theirs
    assert (
        owner.describe_key(key_id=theirs).key_metadata.description == f"default key of user daemon (uid {DAEMON_UID})"
    )
    with pytest.raises(AccessDeniedError):
        decrypt_file(owner, short_path / "theirs.kms", short_path / "mine")
    refused = shared.records()[-1]
    assert (refused["eventName"], refused["userIdentity"]["uid"]) == ("DecryptFile", 0)
    assert (refused["errorCode"], refused["resources"]) == ("AccessDeniedException", [{"ARN": theirs}])
    assert outcome(shared, STRANGER, lambda client: client.describe_key(key_id=alias)) == "NotFoundException"
