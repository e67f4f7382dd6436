"""The daemon's end of a connection: bounded in both directions, balanced, and never silent about what it served."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.errors import (
    AuditUnavailableError,
    ProtocolError,
    StorageError,
    ThrottlingError,
    ValidationError,
)
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.api.keys import CREATE_KEY, DESCRIBE_KEY, CreateKeyRequest, DescribeKeyRequest
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest
from kmsd.audit.record import Kind
from kmsd.audit.writer import SyncMode
from kmsd.config import Limits
from kmsd.store.base import StoreUnavailableError
from tests.support.connected import LITTLE_BYTES, ConnectedPeer
from tests.support.embedded import Answer, Embedded, Gate

OpenService = Callable[..., Awaitable[Embedded]]

SMALL = GenerateRandomRequest(number_of_bytes=1)
LARGE = GenerateRandomRequest(number_of_bytes=32 * 1024)
# A frame whose body is no request.
NONSENSE = b"\x00\x00\x00\x01\xc0"
# A header that announces nothing.
EMPTY = b"\x00\x00\x00\x00"


def sizes_of_batches(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each batch had that was finished since."""
    sizes: list[int] = []
    finish = service.pipeline.finish

    def counted(batch: Any) -> None:
        sizes.append(len(batch.identifiers))
        finish(batch)

    monkeypatch.setattr(service.pipeline, "finish", counted)
    return sizes


def codes(answers: list[Answer]) -> list[tuple[int, str | None]]:
    return [(answer.id, answer.error.code if answer.error else None) for answer in answers]


async def test_a_request_that_comes_byte_by_byte_is_answered(service: Embedded) -> None:
    """However the stream is cut, a frame is served when it is whole."""
    peer = ConnectedPeer(service)
    for byte in peer.frame(GENERATE_RANDOM, SMALL):
        assert peer.socket.send(bytes([byte])) == 1
        await asyncio.sleep(0)

    assert codes(await peer.answers(1)) == [(1, None)]
    peer.hang_up()
    await peer.closed()


async def test_a_tick_serves_32_frames(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends many requests at once waits after 32 until the other connections had their turn."""
    sizes = sizes_of_batches(service, monkeypatch)
    first, second = ConnectedPeer(service), ConnectedPeer(service)
    many = b"".join(first.frame(GENERATE_RANDOM, SMALL) for _ in range(100))
    assert first.socket.send(many) == len(many)
    assert second.socket.send(second.frame(GENERATE_RANDOM, SMALL))

    assert len(await first.answers(100)) == 100
    await second.answers(1)

    assert sizes.index(1) <= 2
    assert sorted(sizes) == [1, 4, 32, 32, 32]
    first.hang_up()
    second.hang_up()


async def test_a_flood_of_small_requests_fits_the_buffer(service: Embedded) -> None:
    """While requests that were read wait for their tick, nothing more is read."""
    peer = ConnectedPeer(service, max_body=2048, limits=Limits(requests_per_second_per_uid=1_000_000))
    many = b"".join(peer.frame(GENERATE_RANDOM, SMALL) for _ in range(2000))

    sending = asyncio.ensure_future(peer.send(many))
    answers = await peer.answers(2000)
    await sending

    assert [answer.id for answer in answers] == list(range(1, 2001))
    peer.hang_up()
    await peer.closed()


async def test_who_does_not_read_is_not_read_from(service: Embedded) -> None:
    """Replies that nobody takes are kept up to a bound; what was read before that waits, and is served later."""
    limits = Limits(send_buffer_bytes_per_connection=100_000)
    peer = ConnectedPeer(service, limits=limits, buffer_bytes=LITTLE_BYTES)
    await peer.send(b"".join(peer.frame(GENERATE_RANDOM, LARGE) for _ in range(50)))
    await peer.read(1)
    await asyncio.sleep(0.01)

    # One tick of the largest replies was made before the bound was seen to be passed.
    assert peer.connection.unsent_bytes < 32 * 33_000
    answers = await peer.answers(50)
    await peer.ask(GENERATE_RANDOM, SMALL)
    answers += await peer.answers(1)

    assert [answer.id for answer in answers] == list(range(1, 52))
    peer.hang_up()
    await peer.closed()


async def test_single_requests_without_reading_are_bounded_too(service: Embedded) -> None:
    """The bound holds when each request comes alone, tick by tick."""
    limits = Limits(send_buffer_bytes_per_connection=50_000)
    peer = ConnectedPeer(service, limits=limits, buffer_bytes=LITTLE_BYTES)
    for number in range(40):
        frame = peer.frame(GENERATE_RANDOM, LARGE)
        try:
            assert peer.socket.send(frame) == len(frame)
        except BlockingIOError:
            assert number > 3
            break
        await asyncio.sleep(0.001)

    assert peer.connection.unsent_bytes < 50_000 + 2 * 33_000
    assert len(await peer.answers(2)) == 2
    peer.hang_up()
    await peer.closed()


async def test_a_slow_reader_gets_every_byte(service: Embedded) -> None:
    """Replies that are sent in pieces arrive whole and in order."""
    peer = ConnectedPeer(service, buffer_bytes=LITTLE_BYTES)
    for _ in range(10):
        await peer.ask(GENERATE_RANDOM, LARGE)
        await peer.read(1000)

    answers = await peer.answers(10)

    assert [answer.id for answer in answers] == list(range(1, 11))
    assert len({answer.result for answer in answers}) == 10
    peer.hang_up()
    await peer.closed()


async def test_descriptors_come_with_their_own_reply(service: Embedded) -> None:
    """Behind replies that could not be sent at once, descriptors leave with the first byte of their frame."""
    arn = await service.make_key()
    peer = ConnectedPeer(service, buffer_bytes=LITTLE_BYTES)
    await peer.ask(GENERATE_RANDOM, LARGE)
    await asyncio.sleep(0.01)
    for _ in range(3):
        await peer.ask(ENCRYPT_FILE, EncryptFileRequest(key_id=arn, encryption_context={"a": "x" * 5000}))
    await service.pool.started(3)
    await asyncio.sleep(0.01)

    answers: list[Answer] = []
    for number in range(4):
        answers += await peer.answers(1, descriptors=8)
        assert len(peer.descriptors) >= number

    assert len(peer.descriptors) == 3
    assert [answer.descriptors for answer in answers] == [0, 1, 1, 1]
    for stream, descriptor in zip(service.pool.streams, peer.descriptors, strict=True):
        assert not stream.abandoned
        os.close(descriptor)
        assert stream.abandoned
    peer.hang_up()
    await peer.closed()


async def test_descriptors_nobody_fetched_are_closed(service: Embedded) -> None:
    """A peer that hangs up with replies unsent leaves no descriptor open in the daemon."""
    arn = await service.make_key()
    peer = ConnectedPeer(service, buffer_bytes=LITTLE_BYTES)
    await peer.ask(GENERATE_RANDOM, LARGE)
    await peer.ask(ENCRYPT_FILE, EncryptFileRequest(key_id=arn))
    await service.pool.started(1)
    await asyncio.sleep(0.01)
    assert not service.pool.streams[0].abandoned

    peer.hang_up()
    await peer.closed()

    assert service.pool.streams[0].abandoned


async def test_unsent_replies_are_wiped_when_the_peer_hangs_up(service: Embedded) -> None:
    """They may hold plaintexts."""
    peer = ConnectedPeer(service, buffer_bytes=LITTLE_BYTES)
    await peer.ask(GENERATE_RANDOM, LARGE)
    await asyncio.sleep(0.01)
    [segment] = peer.connection._unsent
    assert any(segment.data)

    peer.hang_up()
    await peer.closed()

    assert not any(segment.data)
    assert peer.connection.unsent_bytes == 0


async def test_above_its_rate_a_peer_waits_and_is_served(service: Embedded) -> None:
    """A throttled connection goes on by itself, with what it had read and with what comes later."""
    peer = ConnectedPeer(service, limits=Limits(requests_per_second_per_uid=100))
    started = time.monotonic()

    await peer.send(b"".join(peer.frame(GENERATE_RANDOM, SMALL) for _ in range(140)))
    answers = await peer.answers(140)
    waited = time.monotonic() - started
    await peer.ask(GENERATE_RANDOM, SMALL)
    answers += await peer.answers(1)

    assert [answer.id for answer in answers] == list(range(1, 142))
    assert 0.2 < waited < 2
    assert peer.connection.share.pauses >= 1
    peer.hang_up()
    await peer.closed()


async def test_hanging_up_while_throttled_is_noticed_at_the_latest_after_the_pause(service: Embedded) -> None:
    """The pause is not longer than the peer's debt."""
    peer = ConnectedPeer(service, limits=Limits(requests_per_second_per_uid=100))
    await peer.send(b"".join(peer.frame(GENERATE_RANDOM, SMALL) for _ in range(128)))
    await peer.answers(128)

    peer.hang_up()

    await peer.closed()


async def test_large_requests_cost_more(service: Embedded) -> None:
    """The bucket is charged by bytes as well as by requests."""
    peer = ConnectedPeer(service, limits=Limits(bytes_per_request_charge=100, requests_per_second_per_uid=100))
    await peer.send(peer.frame(DESCRIBE_KEY, DescribeKeyRequest(key_id="x" * 2000)))

    assert codes(await peer.answers(1)) == [(1, "NotFoundException")]
    assert peer.share.bucket.charge(0) == 0.0
    assert peer.share.bucket.charge(85) > 0.0
    peer.hang_up()
    await peer.closed()


@pytest.mark.parametrize("sync", [SyncMode.OS, SyncMode.ALWAYS])
@pytest.mark.parametrize("breach", [NONSENSE, EMPTY, b"\xff" * 4], ids=["envelope", "empty", "huge"])
async def test_what_came_before_a_breach_is_answered_first(
    open_service: OpenService, sync: SyncMode, breach: bytes
) -> None:
    """Valid requests of the same read are answered, then comes the error about the connection, then the end."""
    service = await open_service(sync=sync)
    peer = ConnectedPeer(service)
    await peer.send(bytes(peer.frame(GENERATE_RANDOM, SMALL) + peer.frame(GENERATE_RANDOM, SMALL)) + breach)

    assert codes(await peer.until_end()) == [(1, None), (2, None), (0, "ProtocolException")]
    assert peer.closings == 1
    peer.hang_up()


async def test_the_breach_is_told_although_the_trail_fails(service: Embedded) -> None:
    """The error about the connection stands in no record, so it is not withdrawn."""
    peer = ConnectedPeer(service)
    service.trail.refuses = lambda _: True
    await peer.send(bytes(peer.frame(GENERATE_RANDOM, SMALL)) + NONSENSE)

    assert codes(await peer.until_end()) == [(1, AuditUnavailableError.code), (0, ProtocolError.code)]
    peer.hang_up()


async def test_a_breach_waits_for_the_sync_of_earlier_replies(open_service: OpenService) -> None:
    """With audit.sync = always, replies of several reads that wait for the disk all leave before the end."""
    service = await open_service(sync=SyncMode.ALWAYS)
    gate = service.trail.sync_gate = Gate()
    peer = ConnectedPeer(service)
    for _ in range(3):
        await peer.ask(GENERATE_RANDOM, SMALL)
        await asyncio.sleep(0.005)
    await peer.send(bytes(peer.frame(GENERATE_RANDOM, SMALL)) + NONSENSE)
    await gate.arrived.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer.socket, 1), 0.02)

    gate.opened.set()

    assert codes(await peer.until_end()) == [(1, None), (2, None), (3, None), (4, None), (0, "ProtocolException")]
    peer.hang_up()


async def test_an_id_in_flight_must_not_be_used_again(service: Embedded) -> None:
    """What is being served then is given up, and everything is balanced."""
    arn = await service.make_key()
    gate = service.store.gates["material"] = Gate()
    peer = ConnectedPeer(service)
    frame = peer.frame(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await peer.send(frame)
    await gate.arrived.wait()
    assert peer.share.in_flight == 1

    await peer.send(frame)

    assert codes(await peer.until_end()) == [(0, "ProtocolException")]
    await asyncio.sleep(0)
    assert peer.share.in_flight == 0
    peer.hang_up()


async def test_requests_cut_off_before_their_first_turn_are_given_back(service: Embedded) -> None:
    """A breach right behind a request that has to wait leaves nothing counted as in flight."""
    arn = await service.make_key()
    peer = ConnectedPeer(service)
    await peer.send(bytes(peer.frame(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))) + NONSENSE)

    assert codes(await peer.until_end()) == [(0, "ProtocolException")]
    await asyncio.sleep(0)
    assert peer.share.in_flight == 0
    assert peer.shares.connections == 0
    peer.hang_up()


async def test_a_peer_that_hangs_up_gives_everything_back(service: Embedded) -> None:
    """Reading is cancelled, a change goes on to its record; the uid's share is what it was."""
    arn = await service.make_key()
    for name in ("material", "commit"):
        service.store.gates[name] = Gate()
    peer = ConnectedPeer(service)
    await peer.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await peer.ask(CREATE_KEY, CreateKeyRequest())
    await service.store.gates["material"].arrived.wait()
    await service.store.gates["commit"].arrived.wait()
    assert peer.share.in_flight == 2

    peer.hang_up()
    await peer.closed()
    await asyncio.sleep(0)
    assert peer.share.in_flight == 0
    assert (peer.share.connections, peer.shares.connections) == (0, 0)
    for gate in service.store.gates.values():
        gate.opened.set()
    await service.pipeline.drain()

    assert service.newest()["eventType"] == Kind.OUTCOME
    assert "errorCode" not in service.newest()


async def test_too_many_in_flight_are_throttled(service: Embedded) -> None:
    """The excess is answered at once and recorded, the others when they are served; the uid's connections share."""
    arn = await service.make_key()
    gate = service.store.gates["material"] = Gate()
    first = ConnectedPeer(service, limits=Limits(requests_in_flight_per_uid=2))
    second = ConnectedPeer(service, first.shares)
    await first.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await second.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await gate.arrived.wait()
    await first.ask(STATUS, StatusRequest())

    [refused] = await first.answers(1)
    assert isinstance(refused.error, ThrottlingError)
    assert service.newest()["errorCode"] == "ThrottlingException"
    gate.opened.set()
    assert codes(await first.answers(1) + await second.answers(1)) == [(1, None), (1, None)]
    await first.ask(STATUS, StatusRequest())
    assert codes(await first.answers(1)) == [(3, None)]
    assert first.share.in_flight == 0
    first.hang_up()
    second.hang_up()


async def test_a_request_that_fails_unexpectedly_is_answered(service: Embedded) -> None:
    """Also one that had to load something from a store that is gone."""
    arn = await service.make_key()
    peer = ConnectedPeer(service)
    service.records.forget_all()
    service.store.faults["key"] = StoreUnavailableError("store: gone")
    await peer.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await peer.send(peer.frame(GENERATE_RANDOM, DescribeKeyRequest(key_id=arn)))

    answers = {answer.id: answer.error for answer in await peer.answers(2)}

    assert isinstance(answers[1], StorageError)
    assert isinstance(answers[2], ValidationError)
    peer.hang_up()
    await peer.closed()


async def test_passed_descriptors_end_the_connection(service: Embedded) -> None:
    """The daemon takes none: it notices, and says nothing."""
    peer = ConnectedPeer(service)
    with socket.socket() as passed:
        socket.send_fds(peer.socket, [peer.frame(STATUS, StatusRequest())], [passed.fileno()])

    assert await peer.until_end() == []
    peer.hang_up()


async def test_always_replies_wait_for_the_disk(open_service: OpenService) -> None:
    """With audit.sync = always nothing leaves before the sync; replies that wait count as unsent."""
    service = await open_service(sync=SyncMode.ALWAYS)
    gate = service.trail.sync_gate = Gate()
    peer = ConnectedPeer(service, limits=Limits(send_buffer_bytes_per_connection=50_000))
    sent = 0
    for _ in range(40):
        frame = peer.frame(GENERATE_RANDOM, LARGE)
        try:
            sent += peer.socket.send(frame) > 0
        except BlockingIOError:
            break
        await asyncio.sleep(0.001)
    assert peer.connection.unsent_bytes < 50_000 + 2 * 33_000

    gate.opened.set()

    assert len(await peer.answers(sent)) == sent
    peer.hang_up()
    await peer.closed()


async def test_always_hanging_up_during_the_sync_wipes_the_reply(open_service: OpenService) -> None:
    """Whether the wait for the disk has begun or not."""
    service = await open_service(sync=SyncMode.ALWAYS)
    gate = service.trail.sync_gate = Gate()
    peer = ConnectedPeer(service)
    await peer.ask(GENERATE_RANDOM, LARGE)
    await gate.arrived.wait()

    peer.hang_up()
    await peer.closed()
    await asyncio.sleep(0)

    assert peer.connection.unsent_bytes == 0
    assert service.newest()["eventName"] == "GenerateRandom"


async def test_always_a_failed_sync_is_the_answer(open_service: OpenService) -> None:
    """Nothing of the reply leaves."""
    service = await open_service(sync=SyncMode.ALWAYS)
    service.trail.unsyncable = True
    peer = ConnectedPeer(service)
    await peer.ask(GENERATE_RANDOM, LARGE)

    assert codes(await peer.answers(1)) == [(1, "AuditUnavailableException")]
    peer.hang_up()
    await peer.closed()


async def test_finish_answers_what_is_being_served(service: Embedded) -> None:
    """A stopping daemon serves nothing more, and its peer cannot even send it; but what it began is answered."""
    arn = await service.make_key()
    gate = service.store.gates["material"] = Gate()
    peer = ConnectedPeer(service)
    await peer.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await gate.arrived.wait()

    finishing = asyncio.ensure_future(peer.connection.finish())
    await asyncio.sleep(0.005)
    with pytest.raises(BrokenPipeError):
        await peer.ask(STATUS, StatusRequest())
    await asyncio.sleep(0.005)
    assert not finishing.done()
    gate.opened.set()

    assert codes(await peer.until_end()) == [(1, None)]
    await finishing
    assert peer.share.in_flight == 0
    peer.hang_up()


@pytest.mark.parametrize("count", [1, 100])
async def test_finish_refuses_what_nobody_has_looked_at(service: Embedded, count: int) -> None:
    """With an error by which the peer knows that nothing was done, however many ticks it would have taken."""
    peer = ConnectedPeer(service)
    for _ in range(count):
        peer.socket.send(peer.frame(STATUS, StatusRequest()))

    await peer.connection.finish()

    assert codes(await peer.until_end()) == [(number, "ShuttingDownException") for number in range(1, count + 1)]
    assert peer.closings == 1
    peer.hang_up()


async def test_finish_of_half_a_request_closes_the_connection(service: Embedded) -> None:
    """The peer knows that the daemon cannot have got all of it."""
    peer = ConnectedPeer(service)
    peer.socket.send(peer.frame(STATUS, StatusRequest())[:-1])

    await peer.connection.finish()

    assert await peer.until_end() == []
    peer.hang_up()


async def test_finish_waits_until_all_is_sent(service: Embedded) -> None:
    """Also what a slow peer has not read yet."""
    peer = ConnectedPeer(service, buffer_bytes=LITTLE_BYTES)
    for _ in range(5):
        await peer.ask(GENERATE_RANDOM, LARGE)
    await asyncio.sleep(0.01)

    finishing = asyncio.ensure_future(peer.connection.finish())
    await asyncio.sleep(0.01)
    assert not finishing.done()

    assert len(await peer.until_end()) == 5
    await finishing
    assert peer.closings == 1
    peer.hang_up()


async def test_finish_of_an_idle_connection_closes_it(service: Embedded) -> None:
    """There is nothing to wait for; and closing it twice is once."""
    peer = ConnectedPeer(service)

    await peer.connection.finish()
    peer.connection.close()

    assert await peer.until_end() == []
    assert peer.closings == 1
    peer.hang_up()


async def test_what_nobody_foresaw_ends_the_connection(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether while a request is served, while its batch is recorded or in its task: no peer waits for ever."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context.get("exception")))

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def fail_later(*_: object) -> None:
        raise ZeroDivisionError

    for name, failing in (("serve", fail), ("finish", fail), ("serve", fail_later)):
        peer = ConnectedPeer(service)
        with monkeypatch.context() as patched:
            patched.setattr(service.pipeline, name, failing)
            await peer.send(peer.frame(GENERATE_RANDOM, SMALL))
            assert await peer.until_end() == []
        await peer.closed()
        assert (peer.share.in_flight, peer.share.connections) == (0, 0)
        assert peer.connection.unsent_bytes == 0
        peer.hang_up()

    assert [type(fault) for fault in faults] == [ZeroDivisionError] * 3


async def test_always_what_nobody_foresaw_ends_the_connection(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same while records are synced."""
    service = await open_service(sync=SyncMode.ALWAYS)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context.get("exception")))

    async def fail_later(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service.pipeline, "settle", fail_later)
    peer = ConnectedPeer(service)
    await peer.send(peer.frame(GENERATE_RANDOM, SMALL))

    assert await peer.until_end() == []
    assert peer.connection.unsent_bytes == 0
    assert [type(fault) for fault in faults] == [ZeroDivisionError]
    peer.hang_up()
