"""Unsealing as a client does it, against a daemon that may say anything: `kmsd_client.unsealing`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.administration import SealState, UnsealRequest, UnsealResponse
from kmsd.api.errors import (
    ConnectionLostError,
    KmsError,
    RecoverySharesError,
    SealedError,
    TokenPinIncorrectError,
    TokenPinUnavailableError,
    ValidationError,
)
from kmsd.api.failure import Failure
from kmsd.api.unsealing import Outcome, Unsealed, encode
from kmsd_client import Client
from kmsd_client.unsealing import unseal, unseal_by_shares
from tests.client.scripted import ScriptedDaemon

Scripted = Callable[..., list[bytes]]


@pytest.fixture
def daemon(short_path: Path) -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon(short_path / "s")
    yield daemon
    daemon.close()


@pytest.fixture
def says(daemon: ScriptedDaemon) -> Iterator[Scripted]:
    """Makes the daemon answer Unseal with a channel on which it reads the PIN, if there is one, and says this."""
    threads: list[threading.Thread] = []

    def script(said: bytes | None, *, reads: bool = True) -> list[bytes]:
        pins: list[bytes] = []

        def converse(channel: socket.socket) -> None:
            with channel:
                if reads:
                    pins.append(channel.recv(4096))
                if said is not None:
                    channel.send(said)

        def answer(_name: str, request: Any) -> tuple[UnsealResponse, list[int]]:
            assert isinstance(request, UnsealRequest)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            threads.append(threading.Thread(target=converse, args=(ours,)))
            threads[-1].start()
            return UnsealResponse(state=SealState.SEALED), [theirs.detach()]

        daemon.answer = answer
        return pins

    yield script
    for thread in threads:
        thread.join(5)


def test_the_pin_is_one_datagram(daemon: ScriptedDaemon, says: Scripted) -> None:
    """As it is."""
    pins = says(encode(Outcome(done=Unsealed())))
    with Client(daemon.path) as client:
        assert unseal(client, "1234 \u00e4".encode()) == Unsealed(already=False)
    assert pins == ["1234 \u00e4".encode()]


def test_the_configured_pin_is_not_sent(daemon: ScriptedDaemon, says: Scripted) -> None:
    """The client waits for what comes of it."""
    says(encode(Outcome(done=Unsealed(already=True))), reads=False)
    with Client(daemon.path) as client:
        assert unseal(client, None).already


@pytest.mark.parametrize("kind", [TokenPinIncorrectError, SealedError])
def test_a_failure_is_raised_and_not_asked_again(daemon: ScriptedDaemon, says: Scripted, kind: type[KmsError]) -> None:
    """Also one that may pass."""
    says(encode(Outcome(error=Failure.of(kind("why")))))
    with Client(daemon.path) as client, pytest.raises(kind, match="why"):
        unseal(client, b"1234")
    assert daemon.asked == ["Unseal"]


@pytest.mark.parametrize("said", [None, b"", b"\xff", encode(Outcome()), b"\x81\xa4done\x01", b"\x90"], ids=repr)
def test_a_daemon_that_goes_away_or_talks_nonsense(daemon: ScriptedDaemon, says: Scripted, said: bytes | None) -> None:
    """Is one error, and does not count as unsealed."""
    says(said)
    with Client(daemon.path) as client, pytest.raises(ConnectionLostError):
        unseal(client, b"1234")


def test_a_daemon_that_does_not_read_the_pin_may_still_say_why(daemon: ScriptedDaemon, says: Scripted) -> None:
    """Its word counts."""
    says(encode(Outcome(error=Failure.of(SealedError("why")))), reads=False)
    with Client(daemon.path) as client, pytest.raises((SealedError, ConnectionLostError)):
        unseal(client, b"1234")


@pytest.mark.parametrize(("pin", "error"), [(b"", TokenPinUnavailableError), (b"1" * 256, ValidationError)])
def test_what_is_no_pin_is_not_sent(daemon: ScriptedDaemon, pin: bytes, error: type[KmsError]) -> None:
    """The daemon is not even asked."""
    with Client(daemon.path) as client, pytest.raises(error):
        unseal(client, pin)
    assert daemon.asked == []


def test_shares_are_one_datagram(daemon: ScriptedDaemon, says: Scripted) -> None:
    """In the place of the PIN; the request says which of the two it is."""
    asked: list[Any] = []
    sent = says(encode(Outcome(done=Unsealed())))
    answer = daemon.answer

    def remember(name: str, request: Any) -> Any:
        asked.append(request)
        return answer(name, request)

    daemon.answer = remember
    with Client(daemon.path) as client:
        assert not unseal_by_shares(client, b"one two\nthree four\n").already

    assert asked == [UnsealRequest(shares=True)]
    assert sent == [b"one two\nthree four\n"]


@pytest.mark.parametrize(("shares", "error"), [(b"", RecoverySharesError), (b"x" * 4095, ValidationError)])
def test_what_cannot_be_shares_is_not_sent(daemon: ScriptedDaemon, shares: bytes, error: type[KmsError]) -> None:
    """Nobody is asked."""
    with Client(daemon.path) as client, pytest.raises(error):
        unseal_by_shares(client, shares)
