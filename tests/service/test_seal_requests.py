"""Unseal on request: how the PIN comes, what is recorded, and what the client is told."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from kmsd.api.administration import UNSEAL, SealState, UnsealRequest, UnsealResponse
from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, KmsError, ThrottlingError
from kmsd.api.unsealing import MAX_DATAGRAM_BYTES, Outcome, decode_outcome
from kmsd.audit.record import Kind
from kmsd.hsm.root import PinIncorrectError
from kmsd.service.call import Session
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate, kind_is

PIN = "1234 \u00e4".encode()


@pytest.fixture
async def sealed(service: Embedded) -> Embedded:
    """A service that was sealed before it was used."""
    await service.unsealing.seal()
    service.root.pins.clear()
    return service


async def begin(service: Embedded, session: Session = ROOT, *, configured: bool = False) -> socket.socket:
    """Ask for Unseal and return the end that comes with the answer."""
    batch = await service.reply_to(session, UNSEAL, UnsealRequest(configured=configured))
    response: UnsealResponse = service.response(batch, UNSEAL)
    assert response.state in {SealState.SEALED, SealState.UNSEALED}
    [descriptor] = batch.descriptors
    channel = socket.socket(fileno=descriptor)
    channel.setblocking(False)
    return channel


async def told(channel: socket.socket) -> Outcome:
    """What the daemon says, after which it closes its end."""
    loop = asyncio.get_running_loop()
    with channel:
        outcome = decode_outcome(await asyncio.wait_for(loop.sock_recv(channel, MAX_DATAGRAM_BYTES), 10))
        assert await asyncio.wait_for(loop.sock_recv(channel, MAX_DATAGRAM_BYTES), 10) == b""
    return outcome


async def failure(channel: socket.socket) -> KmsError:
    outcome = await told(channel)
    assert outcome.done is None
    assert outcome.error is not None
    return outcome.error.error()


async def test_a_pin_unseals(sealed: Embedded) -> None:
    """The one that was sent is tried, once; who asked stands in the trail before the PIN is there, the outcome before
    the client is told."""
    channel = await begin(sealed)
    intent = sealed.newest()
    assert (intent["eventType"], intent["eventName"], intent["userIdentity"]["uid"]) == (
        Kind.INTENT.value,
        "Unseal",
        0,
    )
    assert intent["requestParameters"] == {"configured": False}
    assert sealed.root.pins == []
    channel.send(PIN)
    outcome = await told(channel)

    assert (outcome.done is not None, outcome.error) == (True, None)
    assert not sealed.gate.closed
    assert sealed.root.pins == [PIN]
    record = sealed.newest()
    assert (record["eventType"], record["requestID"]) == (Kind.OUTCOME.value, intent["requestID"])
    assert "errorCode" not in record
    assert record["readOnly"] is False
    assert PIN not in (sealed.directory / "audit.log").read_bytes()
    assert "1234" not in (sealed.directory / "audit.log").read_text()


async def test_a_refused_pin_is_told_and_recorded(sealed: Embedded) -> None:
    """With what to do, and without the PIN; nothing is tried again."""
    sealed.root.fault = PinIncorrectError("the token refused the PIN")
    channel = await begin(sealed)
    channel.send(PIN)
    error = await failure(channel)

    assert (error.code, error.message) == ("TokenPinIncorrectException", "the token refused the PIN")
    assert sealed.newest()["errorCode"] == "TokenPinIncorrectException"
    assert sealed.root.pins == [PIN]
    assert sealed.seal.sealed
    assert sealed.sleeps.seconds == []


async def test_the_configured_pin_is_used_when_asked_for(sealed: Embedded) -> None:
    """Then the client sends none."""
    outcome = await told(await begin(sealed, configured=True))

    assert outcome.done is not None
    assert sealed.root.pins == [None]
    assert sealed.newest()["requestParameters"] == {"configured": True}


@pytest.mark.parametrize("configured", [True, False])
async def test_what_is_unsealed_stays_so(service: Embedded, configured: bool) -> None:
    """No PIN is tried, and the client is told."""
    service.root.pins.clear()
    channel = await begin(service, configured=configured)
    if not configured:
        channel.send(PIN)
    outcome = await told(channel)

    assert outcome.done is not None
    assert outcome.done.already
    assert service.root.pins == []
    assert service.newest()["eventType"] == Kind.OUTCOME.value


@pytest.mark.parametrize(
    ("datagram", "code"),
    [(b"", "TokenPinUnavailableException"), (b"1" * 256, "ValidationException"), (b"1" * 9000, "ValidationException")],
    ids=["empty", "long", "longer than a page"],
)
async def test_what_is_no_pin_is_not_tried(sealed: Embedded, datagram: bytes, code: str) -> None:
    """It is told so, and on record."""
    channel = await begin(sealed)
    channel.send(datagram)

    assert (await failure(channel)).code == code
    assert sealed.newest()["errorCode"] == code
    assert sealed.root.pins == []


async def test_the_longest_pin_is_tried(sealed: Embedded) -> None:
    """255 bytes."""
    channel = await begin(sealed)
    channel.send(b"1" * 255)

    assert (await told(channel)).done is not None
    assert sealed.root.pins == [b"1" * 255]


async def test_who_sends_nothing_is_not_waited_for(sealed: Embedded) -> None:
    """There is a deadline."""
    assert "no PIN came" in (await failure(await begin(sealed))).message
    assert sealed.newest()["errorCode"] == "TokenPinUnavailableException"


async def test_who_goes_away_leaves_a_record(sealed: Embedded) -> None:
    """And no login."""
    (await begin(sealed)).close()
    await recorded(sealed, "TokenPinUnavailableException")
    assert sealed.root.pins == []


async def test_who_goes_away_behind_the_pin_has_unsealed(sealed: Embedded) -> None:
    """The attempt was begun, and its outcome is on record."""
    channel = await begin(sealed)
    channel.send(PIN)
    channel.close()
    await recorded(sealed, None)
    async with asyncio.timeout(10):
        while sealed.gate.closed:  # noqa: ASYNC110 - the store's thread is part of it
            await asyncio.sleep(0.001)


async def test_descriptors_that_are_passed_are_dropped(sealed: Embedded) -> None:
    """The daemon takes none, also beside a PIN."""
    channel = await begin(sealed)
    passed, kept = socket.socketpair()
    with kept:
        socket.send_fds(channel, [PIN], [passed.fileno()])
        passed.close()
        assert (await told(channel)).done is not None
        kept.settimeout(5)
        assert kept.recv(1) == b""


async def test_others_do_not_unseal(sealed: Embedded) -> None:
    """They do not get so far as to send a PIN."""
    for session in (ALICE, BOB):
        with pytest.raises(AccessDeniedError):
            await sealed.ask(session, UNSEAL, UnsealRequest())
        assert sealed.newest()["eventType"] == Kind.REQUEST.value


async def test_a_trail_that_cannot_be_written_prevents_it(sealed: Embedded) -> None:
    """Without an intent no PIN is taken; without an outcome the daemon is sealed again and the client is told why."""
    sealed.trail.refuses = kind_is(Kind.INTENT)
    with pytest.raises(AuditUnavailableError):
        await sealed.ask(ROOT, UNSEAL, UnsealRequest())

    sealed.trail.refuses = kind_is(Kind.OUTCOME)
    channel = await begin(sealed)
    channel.send(PIN)
    assert (await failure(channel)).code == "AuditUnavailableException"
    assert sealed.seal.sealed
    assert sealed.gate.closed


async def test_an_intent_is_on_the_disk_before_a_pin_is_tried(sealed: Embedded) -> None:
    """So that not even a power cut hides who tried."""
    sealed.trail.unsyncable = True
    channel = await begin(sealed)
    channel.send(PIN)

    assert (await failure(channel)).code == "AuditUnavailableException"
    assert sealed.root.pins == []


async def test_only_a_few_may_unseal_at_once(sealed: Embedded) -> None:
    """Each holds a page of secret memory."""
    channels = [await begin(sealed) for _ in range(8)]
    with pytest.raises(ThrottlingError):
        await sealed.ask(ROOT, UNSEAL, UnsealRequest())
    for channel in channels:
        channel.close()
    async with asyncio.timeout(10):
        while sealed.seal_requests._conversations:  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(0.001)
    (await begin(sealed)).close()


async def test_whoever_waits_for_the_token_when_kmsd_stops_is_told(sealed: Embedded) -> None:
    """Its record is whole."""
    sealed.root.gate = Gate()
    channel = await begin(sealed)
    channel.send(PIN)
    await sealed.root.gate.arrived.wait()

    await sealed.seal_requests.close()

    assert (await failure(channel)).code == "ShuttingDownException"
    assert sealed.newest()["errorCode"] == "ShuttingDownException"


async def test_a_client_that_hung_up_before_the_reply_is_one_that_sent_nothing(tmp_path: Path) -> None:
    """The descriptor is closed with the reply, and nothing waits."""
    service = await Embedded.open(tmp_path)
    try:
        await service.unsealing.seal()
        batch = await service.reply_to(ROOT, UNSEAL, UnsealRequest())
        batch.discard()
        await recorded(service, "TokenPinUnavailableException")
    finally:
        await service.close()


async def recorded(service: Embedded, code: str | None) -> None:
    """Wait for the outcome of Unseal in the trail."""
    async with asyncio.timeout(10):
        while service.newest()["eventType"] != Kind.OUTCOME.value:  # noqa: ASYNC110 - a task of the service writes it
            await asyncio.sleep(0.001)
    assert service.newest().get("errorCode") == code
