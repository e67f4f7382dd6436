"""Credentials of units by a daemon of its own, confined as ever; tests/systemd has the real systemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmsd.api.credentials import MAX_CREDENTIAL_BYTES
from tests.support.dev_daemon import DevDaemon
from tests.support.systemd_peer import SYSTEMD_TAKES, address, connected, read

pytestmark = pytest.mark.root

UNIT, NAME = "app.service", "token"


def credential(daemon: DevDaemon, unit: str = UNIT, name: str = NAME) -> bytes | None:
    """What systemd would give to the unit; None if it would not start it."""
    received = read(daemon.directory / "credential.sock", address(unit, name))
    return None if len(received) > SYSTEMD_TAKES else received


def keep(daemon: DevDaemon, secret: bytes) -> None:
    with daemon.client() as client:
        client.create_credential(unit=UNIT, name=NAME, plaintext=secret, overwrite=True)


def test_a_unit_s_secret_outlives_the_daemon(dev: DevDaemon) -> None:
    """Kept by an administrator, handed to systemd for this unit only, before and after a restart."""
    secret = os.urandom(MAX_CREDENTIAL_BYTES)
    keep(dev, secret)

    assert credential(dev) == secret
    assert credential(dev, unit="other.service") is None
    dev.stop()
    dev.start()
    assert credential(dev) == secret


def test_only_its_owner_and_root_can_connect(dev: DevDaemon) -> None:
    """By the socket's mode."""
    assert (dev.directory / "credential.sock").stat().st_mode & 0o777 == 0o600


def test_a_sealed_daemon_lets_no_unit_start(dev: DevDaemon) -> None:
    """And it does again once it is unsealed."""
    keep(dev, b"secret")
    with dev.client() as client:
        client.seal()

    assert credential(dev) is None
    assert dev.run("kms", "unseal", "--configured", cwd=Path("/")).returncode == 0
    assert credential(dev) == b"secret"


def test_nobody_reads_a_secret_by_an_operation(dev: DevDaemon) -> None:
    """What operations show of it is its length."""
    keep(dev, b"marked-secret")

    with dev.client() as client:
        shown = client.list_credentials()

    assert b"marked" not in repr(shown).encode()
    assert [one.length for one in shown.credentials if one.name == NAME] == [13]


def test_many_at_once_and_some_that_stall_are_all_served(dev: DevDaemon) -> None:
    """The stalled ones are refused in the end, and keep nobody from starting."""
    keep(dev, b"secret")
    path = dev.directory / "credential.sock"
    stalled = [connected(path, address("none.service", NAME)) for _ in range(30)]

    assert all(credential(dev) == b"secret" for _ in range(50))
    for sock in stalled:
        sock.close()
