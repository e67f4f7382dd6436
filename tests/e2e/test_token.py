"""What a running daemon does when its token goes wrong, and how people seal and unseal it (kmsd/hsm/TOKENS.md)."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import (
    DependencyTimeoutError,
    KmsError,
    SealedError,
    TokenPinBlockedError,
    TokenPinIncorrectError,
)
from kmsd.hsm.softhsm import find_module
from kmsd_client import Client
from kmsd_client.unsealing import unseal
from tests.support.dev_daemon import SCRIPTS
from tests.support.faulty_token import build
from tests.support.host_daemon import HostDaemon

COUNT_LOW = 0x10000
PIN_INCORRECT = 0xA0
# Longer than any job here takes; a test that waits for it waits so long.
DEADLINE_SECONDS = 2.0

# Logins of an unseal: one opens the keys, one has the token remember the store's sequence.
UNSEALED = 2

MakeDaemon = Callable[..., HostDaemon]


@pytest.fixture(scope="module")
def module(module_path: Path) -> Path:
    return build(module_path)


@pytest.fixture
def make_daemon(short_path: Path, prepared: Path, module: Path) -> Iterator[MakeDaemon]:
    """Makes daemons that are not yet started, and ends them."""
    made: list[HostDaemon] = []

    def make(**hsm: object) -> HostDaemon:
        directory = shutil.copytree(prepared, short_path / f"d{len(made)}")
        settings = {"deadline_seconds": DEADLINE_SECONDS, **hsm}
        made.append(HostDaemon(directory, module, find_module(), **settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.end()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def is_sealed(client: Client) -> bool:
    return client.status().state == "sealed"


@pytest.mark.parametrize(
    ("fault", "code", "again", "logins"),
    [
        (f"C_Login return {PIN_INCORRECT}", "TokenPinIncorrectException", False, 1),
        (f"C_GetTokenInfo flags {COUNT_LOW}", "TokenPinBlockedException", False, 0),
        ("C_GetSlotList empty", "TokenException", True, 0),
        ("C_Login crash", "TokenException", True, 1),
        ("C_Decrypt hold", "DependencyTimeoutException", True, 1),
    ],
    ids=["refused", "low", "missing", "crash", "slow"],
)
def test_no_fault_of_the_token_prevents_a_start(
    make_daemon: MakeDaemon, fault: str, code: str, again: bool, logins: int
) -> None:
    """The daemon serves sealed, says why, has it on record, and has tried the PIN once at most."""
    daemon = make_daemon()
    daemon.token.fail(fault)
    daemon.start()
    with daemon.client() as client:
        status = client.status()
        with pytest.raises(SealedError):
            client.generate_random(number_of_bytes=8)

    assert status.state == "sealed"
    assert status.unseal_failure is not None
    [failed] = daemon.events("UnsealFailed")
    assert (failed["errorCode"], failed["errorMessage"]) == (code, status.unseal_failure)
    assert daemon.pin_file.read_text() not in daemon.audit_log.read_text() + daemon.said()
    assert f'"tried_again": {str(again).lower()}' in daemon.said()
    assert daemon.token.logins == logins
    daemon.stop()


def test_a_token_that_comes_later_unseals(make_daemon: MakeDaemon) -> None:
    """By itself, with the configured PIN."""
    daemon = make_daemon()
    daemon.token.fail("C_GetSlotList empty")
    daemon.start()
    daemon.token.heal()
    with daemon.client() as client:
        assert client.status().token is None
        until(lambda: not is_sealed(client))
        assert client.status().token is not None
        client.generate_random(number_of_bytes=8)
    until(lambda: daemon.token.logins == UNSEALED)
    daemon.stop()


def test_a_missing_pin_file_waits_for_an_administrator(make_daemon: MakeDaemon) -> None:
    """Who then unseals with a PIN of their own, or with the file when it is there."""
    daemon = make_daemon()
    pin = daemon.pin_file.read_bytes()
    daemon.pin_file.unlink()
    daemon.start()
    with daemon.client() as client:
        assert "cannot be read" in (client.status().unseal_failure or "")
        assert not unseal(client, pin).already
        assert unseal(client, pin).already
        client.generate_random(number_of_bytes=8)
    assert daemon.token.logins == UNSEALED
    daemon.stop()


def test_without_a_configured_pin_it_waits_for_one(make_daemon: MakeDaemon) -> None:
    """It shows that the token is there, and does not try what it does not have."""
    daemon = make_daemon(pin="")
    daemon.start()
    with daemon.client() as client:
        status = client.status()
        assert (status.state, status.pin, status.unseal_failure) == ("sealed", "none", None)
        assert status.token is not None
        with pytest.raises(KmsError, match="no source of the token's PIN is configured"):
            unseal(client, None)
        unseal(client, daemon.pin_file.read_bytes())
        client.generate_random(number_of_bytes=8)
    daemon.stop()


def test_a_slow_token_delays_nobody_else(make_daemon: MakeDaemon) -> None:
    """While an unsealing waits for the token everything that needs no keys is answered; and it ends when that does."""
    daemon = make_daemon(deadline_seconds=60)
    daemon.start()
    with daemon.client() as client, daemon.client() as other:
        client.seal()
        before = daemon.token.count("C_Decrypt")
        daemon.token.fail("C_Decrypt hold")
        ended: list[object] = []
        thread = threading.Thread(target=lambda: ended.append(unseal(other, daemon.pin_file.read_bytes())))
        thread.start()
        until(lambda: daemon.token.count("C_Decrypt") > before)
        for _ in range(20):
            assert is_sealed(client)
        with pytest.raises(SealedError):
            client.generate_random(number_of_bytes=8)
        assert ended == []

        daemon.token.heal()
        thread.join()
        assert len(ended) == 1
        assert not is_sealed(client)
    daemon.stop()


def test_a_slow_token_does_not_hold_up_its_users(make_daemon: MakeDaemon) -> None:
    """While a look at the token hangs, keys are made and used as ever, and a seal and a stop are not kept waiting."""
    daemon = make_daemon(check_seconds=0.05, when_lost="seal", deadline_seconds=60)
    daemon.start()
    with daemon.client() as client:
        daemon.token.fail("C_GetTokenInfo hold")
        before = daemon.token.count("C_GetTokenInfo")
        until(lambda: daemon.token.count("C_GetTokenInfo") > before)
        for _ in range(10):
            key = client.create_key().key_metadata.key_id
            blob = client.encrypt(key_id=key, plaintext=b"text").ciphertext_blob
            assert bytes(client.decrypt(ciphertext_blob=blob).plaintext) == b"text"
        client.seal()
        assert is_sealed(client)
    daemon.stop()


def test_a_seal_ends_an_unsealing_that_waits_for_the_token(make_daemon: MakeDaemon) -> None:
    """Who waited is told, and the token's process is gone."""
    daemon = make_daemon(deadline_seconds=60)
    daemon.start()
    with daemon.client() as client, daemon.client() as other:
        client.seal()
        before = daemon.token.count("C_Decrypt")
        daemon.token.fail("C_Decrypt hold")
        ended: list[KmsError] = []

        def try_it() -> None:
            try:
                unseal(other, None)
            except KmsError as error:
                ended.append(error)

        thread = threading.Thread(target=try_it)
        thread.start()
        until(lambda: daemon.token.count("C_Decrypt") > before)
        client.seal()
        thread.join()
        assert [error.code for error in ended] == ["SealedException"]
        daemon.token.heal()
        unseal(client, None)
    daemon.stop()


def test_a_lost_token_seals_where_that_is_wanted(make_daemon: MakeDaemon) -> None:
    """At once and on record; when it is back the daemon unseals itself."""
    daemon = make_daemon(check_seconds=0.05, when_lost="seal")
    daemon.start()
    with daemon.client() as client:
        key = client.create_key().key_metadata.key_id
        blob = client.encrypt(key_id=key, plaintext=b"text").ciphertext_blob
        until(lambda: daemon.token.logins == UNSEALED)
        daemon.token.fail("C_GetSlotList empty")
        until(lambda: is_sealed(client))
        with pytest.raises(SealedError):
            client.decrypt(ciphertext_blob=blob)
        [lost] = daemon.events("TokenLost")
        assert lost["errorCode"] == "TokenException"
        daemon.token.heal()
        until(lambda: not is_sealed(client))
        assert bytes(client.decrypt(ciphertext_blob=blob).plaintext) == b"text"
    until(lambda: daemon.token.logins == 2 * UNSEALED)
    daemon.stop()


@pytest.mark.parametrize(
    ("fault", "event", "when_lost"),
    [
        ("C_GetSlotList empty", "token_lost", "continue"),
        ("C_GetSlotList crash", "token_check_failed", "seal"),
        ("C_GetTokenInfo return 5", "token_check_failed", "seal"),
    ],
    ids=["missing", "crash", "error"],
)
def test_other_troubles_of_the_token_are_logged(
    make_daemon: MakeDaemon, fault: str, event: str, when_lost: str
) -> None:
    """The service goes on."""
    daemon = make_daemon(check_seconds=0.05, when_lost=when_lost)
    daemon.start()
    with daemon.client() as client:
        daemon.token.fail(fault)
        until(lambda: event in daemon.said())
        client.create_key()
        daemon.token.heal()
        if event == "token_lost":
            until(lambda: "token_back" in daemon.said())
        assert not is_sealed(client)
    assert daemon.said().count('"token_lost"') == (event == "token_lost")
    daemon.stop()


def test_a_pin_is_tried_as_often_as_somebody_asks(make_daemon: MakeDaemon) -> None:
    """A wrong one is refused once each time, and the configured one is not tried at a token that counts."""
    daemon = make_daemon()
    daemon.start()
    until(lambda: daemon.token.logins == UNSEALED)
    with daemon.client() as client:
        client.seal()
        with pytest.raises(TokenPinIncorrectError):
            unseal(client, b"0000")
        with pytest.raises(TokenPinBlockedError):
            unseal(client, None)
        assert daemon.token.logins == UNSEALED + 1
        unseal(client, daemon.pin_file.read_bytes())
        until(lambda: daemon.token.logins == 2 * UNSEALED + 1)
    outcomes = [record for record in daemon.events("Unseal") if record["eventType"] == "ApiCallOutcome"]
    assert [record.get("errorCode") for record in outcomes] == [
        "TokenPinIncorrectException",
        "TokenPinBlockedException",
        None,
    ]
    daemon.stop()


def test_a_token_beyond_its_deadline_is_told_as_such(make_daemon: MakeDaemon) -> None:
    """Its process is killed, and the next attempt is as good as the first."""
    daemon = make_daemon(deadline_seconds=0.7)
    daemon.start()
    with daemon.client() as client:
        client.seal()
        daemon.token.fail("C_Login hold")
        with pytest.raises(DependencyTimeoutError, match="did not answer within"):
            unseal(client, None)
        daemon.token.heal()
        unseal(client, None)
    daemon.stop()


def typed(daemon: HostDaemon, pin: bytes) -> tuple[int, bytes]:
    """Run `kms unseal` on a terminal of its own, type `pin`; its exit code and what the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(SCRIPTS / "kms", ["kms", "unseal"], daemon.environment)  # noqa: S606 - its own terminal
    shown = b""
    with open(terminal, "rb", buffering=0) as screen:  # noqa: PTH123 - a descriptor
        while b"PIN of the token: " not in shown:
            shown += screen.read(1024)
        os.write(terminal, pin + b"\n")
        with contextlib.suppress(OSError):  # how a terminal ends whose programs are gone
            while more := screen.read(1024):
                shown += more
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_person_types_the_pin(make_daemon: MakeDaemon) -> None:
    """It is not shown; a wrong one is told with what to do, the right one unseals."""
    daemon = make_daemon(pin="")
    daemon.start()
    pin = daemon.pin_file.read_bytes()
    code, shown = typed(daemon, b"54321")
    assert code == 1
    assert b"refused the PIN" in shown
    assert b"hint: try again with care" in shown
    assert b"54321" not in shown

    code, shown = typed(daemon, pin)
    assert code == 0
    assert shown.endswith(b"kmsd is unsealed\r\n")
    assert pin not in shown
    assert daemon.state() == "unsealed"
    daemon.stop()


def test_a_host_whose_store_and_trail_are_gone_is_not_begun_anew(make_daemon: MakeDaemon) -> None:
    """New keys under an old name would open nothing; only a set-up, or a restore, makes a store."""
    daemon = make_daemon()
    for path in (*daemon.directory.glob("store.sqlite*"), *daemon.directory.glob("audit.log*")):
        path.unlink()
    daemon.launch()
    with pytest.raises(AssertionError):
        daemon.wait_until_ready()

    assert "is missing or was never finished" in daemon.said().splitlines()[-1]
    assert not [*daemon.directory.glob("store.sqlite*"), *daemon.directory.glob("audit.log*")]
