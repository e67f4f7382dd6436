"""`kmsd dev` as containers without root run it: in a user namespace, where other users' ids cannot be told apart."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import KmsError
from kmsd_client import Client
from tests.support.dev_daemon import DevDaemon
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user

NAMESPACE = ("unshare", "--user", "--map-root-user")


@pytest.fixture(scope="module")
def inside(module_path: Path) -> Iterator[DevDaemon]:
    """A daemon in a namespace that knows one user; it is open to everybody as far as files go."""
    if subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this host lets nobody make user namespaces")
    daemon = DevDaemon(module_path / "d", shared=True, within=NAMESPACE)
    try:
        daemon.start()
        yield daemon
        daemon.stop()
    finally:
        daemon.end()


def test_it_warns_that_peers_cannot_be_told_apart(inside: DevDaemon) -> None:
    """In words that say what follows from it."""
    assert "kmsd: warning: /proc/self/uid_map does not map every id to itself" in inside.said()
    assert "only uid 0 is served" in inside.said()


def test_it_works_for_its_own_user(inside: DevDaemon, tmp_path: Path) -> None:
    """Keys, blobs and files, in its secret memory, under all its restrictions."""
    (tmp_path / "f").write_bytes(b"content")
    with inside.client() as client:
        key = client.create_key().key_metadata.arn
        sealed = client.encrypt(key_id=key, plaintext=b"secret").ciphertext_blob
        opened = bytes(client.decrypt(ciphertext_blob=sealed).plaintext)
        missing = [one for one in client.status().hardening if one.state != "on"]
    encrypted = inside.run("kms", "encrypt", "-k", key, "f", cwd=tmp_path)
    decrypted = inside.run("kms", "decrypt", "-o", "g", "f.kms", cwd=tmp_path)

    assert opened == b"secret"
    assert {one.protection for one in missing} <= {"no swap", "secret memory"}
    assert (encrypted.returncode, decrypted.returncode) == (0, 0), (encrypted.stderr, decrypted.stderr)
    assert (tmp_path / "g").read_bytes() == b"content"


@pytest.mark.root
def test_it_serves_nobody_else(inside: DevDaemon) -> None:
    """Another user of the host looks like uid 65534 in there, and so does every other."""

    def ask() -> str:
        try:
            with Client(inside.socket) as client:
                client.status()
        except KmsError as error:
            return error.code
        return "served"

    assert as_user(DAEMON_UID, DAEMON_GID, ask) == "AccessDeniedException"
