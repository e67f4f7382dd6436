"""Files: authorized and authenticated before a worker gets anything, and every begin has its end in the trail."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    AuditUnavailableError,
    FileAccessError,
    IncorrectKeyError,
    InvalidCiphertextError,
    KMSInternalError,
    MessageFormatError,
    StorageError,
    ThrottlingError,
)
from kmsd.api.files import (
    DECRYPT_FILE,
    ENCRYPT_FILE,
    DecryptFileRequest,
    DecryptFileResponse,
    EncryptFileRequest,
    EncryptFileResponse,
)
from kmsd.audit.record import Kind
from kmsd.audit.writer import SyncMode
from kmsd.envelope.pool import Direction, FileOutcome
from kmsd.service.batch import Batch
from kmsd.store.base import StoreUnavailableError
from tests.support.embedded import ALICE, BOB, Embedded, Gate, kind_is, request_frame

OpenService = Callable[..., Awaitable[Embedded]]
CONTEXT = {"project": "blue"}


async def begin(service: Embedded, arn: str, session: Any = ALICE) -> EncryptFileResponse:
    """Begin to encrypt a file, and hold the descriptor no longer."""
    batch = await service.reply_to(
        session, ENCRYPT_FILE, EncryptFileRequest(key_id=arn, encryption_context=CONTEXT, frame_length=4096)
    )
    response = service.response(batch, ENCRYPT_FILE)
    [descriptor] = batch.descriptors
    os.close(descriptor)
    return response


async def decrypt(service: Embedded, header: bytes, session: Any = ALICE, **members: Any) -> DecryptFileResponse:
    batch = await service.reply_to(session, DECRYPT_FILE, DecryptFileRequest(header=header, **members))
    response = service.response(batch, DECRYPT_FILE)
    [descriptor] = batch.descriptors
    os.close(descriptor)
    return response


def newest_two(service: Embedded) -> tuple[dict[str, Any], dict[str, Any]]:
    begin, end = service.lines()[-2:]
    assert (begin["eventType"], end["eventType"]) == (Kind.BEGIN, Kind.END)
    assert begin["requestID"] == end["requestID"]
    return begin, end


async def test_a_file_is_decrypted_with_the_key_that_encrypted_it(service: Embedded) -> None:
    """Both workers get the same message key, and the header tells who made it."""
    arn = await service.make_key()
    made = await begin(service, arn)

    opened = await decrypt(service, made.header, encryption_context=CONTEXT)

    encrypting, decrypting = service.pool.streams
    assert (encrypting.direction, decrypting.direction) == (Direction.ENCRYPT, Direction.DECRYPT)
    assert encrypting.message_key == decrypting.message_key
    assert any(encrypting.message_key)
    assert opened == DecryptFileResponse(key_id=arn, encryption_context=CONTEXT)
    assert service.pool.uids == [1000, 1000]


async def test_the_begin_is_recorded_before_a_worker_is_asked(service: Embedded) -> None:
    """Without it no worker gets a key."""
    arn = await service.make_key()
    service.trail.refuses = kind_is(Kind.BEGIN)

    with pytest.raises(AuditUnavailableError):
        await begin(service, arn)

    assert service.pool.uids == []


async def test_the_end_is_recorded_before_the_client_is_told(service: Embedded) -> None:
    """The worker may tell the client only when the outcome stands in the trail."""
    arn = await service.make_key()
    await begin(service, arn)
    [stream] = service.pool.streams
    assert service.files.streams == 1
    assert service.newest()["eventType"] == Kind.BEGIN

    stream.reported.set_result(FileOutcome(123, 456, None))

    assert await stream.acknowledged is None
    first, last = newest_two(service)
    assert first["requestParameters"] == {"keyId": arn, "encryptionContext": CONTEXT, "frameLength": 4096}
    assert last["additionalEventData"]["plaintextBytes"] == 123
    assert last["additionalEventData"]["messageBytes"] == 456
    await service.files.drain(1)
    assert service.files.streams == 0


async def test_an_end_that_cannot_be_recorded_is_what_the_client_is_told(service: Embedded) -> None:
    """The file was written, but nobody may take it for done."""
    arn = await service.make_key()
    await begin(service, arn)
    [stream] = service.pool.streams
    service.trail.refuses = kind_is(Kind.END)

    stream.reported.set_result(FileOutcome(1, 2, None))

    assert isinstance(await stream.acknowledged, AuditUnavailableError)


async def test_always_the_end_is_on_the_disk_before_the_client_is_told(open_service: OpenService) -> None:
    """With audit.sync = always a written record is not enough for a file either."""
    service = await open_service(sync=SyncMode.ALWAYS)
    arn = await service.make_key()
    await begin(service, arn)
    await begin(service, arn)
    first, second = service.pool.streams
    gate = service.trail.sync_gate = Gate()
    first.reported.set_result(FileOutcome(1, 2, None))
    await gate.arrived.wait()
    assert not first.acknowledged.done()
    gate.opened.set()
    assert await first.acknowledged is None

    service.trail.unsyncable = True
    second.reported.set_result(FileOutcome(1, 2, None))

    assert isinstance(await second.acknowledged, AuditUnavailableError)


async def test_what_the_worker_reports_is_recorded(service: Embedded) -> None:
    """Failures too; the client hears them from the worker."""
    arn = await service.make_key()
    await begin(service, arn)
    [stream] = service.pool.streams

    stream.reported.set_result(FileOutcome(0, 0, FileAccessError("reading failed: EIO")))

    assert await stream.acknowledged is None
    assert newest_two(service)[1]["errorCode"] == "FileAccessException"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ThrottlingError("all workers are busy"), ThrottlingError),
        (OSError(24, "Too many open files"), KMSInternalError),
    ],
    ids=["foreseen", "unforeseen"],
)
async def test_a_file_no_worker_takes_has_its_end(service: Embedded, fault: Exception, told: type[Exception]) -> None:
    """Whatever the pool raises, the record of the begin is not left open, and the reply is recorded by its end."""
    arn = await service.make_key()
    service.pool.fault = fault

    with pytest.raises(told) as refusal:
        await begin(service, arn)

    assert newest_two(service)[1]["errorCode"] == getattr(refusal.value, "code", None)


async def test_an_end_that_cannot_be_recorded_is_told_although_no_worker_took_the_file(service: Embedded) -> None:
    """No reply without its record, also not a refusal."""
    arn = await service.make_key()
    service.pool.fault = ThrottlingError("all workers are busy")
    service.trail.refuses = kind_is(Kind.END)

    with pytest.raises(AuditUnavailableError):
        await begin(service, arn)


async def test_a_peer_that_hangs_up_while_a_worker_is_fetched_leaves_an_end(service: Embedded) -> None:
    """The begin was recorded, and nothing came of it."""
    arn = await service.make_key()
    for refused in (None, kind_is(Kind.END)):
        gate = service.pool.gate = Gate()
        asked = asyncio.ensure_future(begin(service, arn))
        await gate.arrived.wait()
        service.trail.refuses = refused

        asked.cancel()
        await asyncio.wait({asked})

        assert asked.cancelled()
        if refused is None:
            assert newest_two(service)[1]["errorCode"] == "FileAccessException"
    assert service.files.streams == 0


async def test_a_peer_that_hangs_up_during_the_sync_leaves_no_descriptor(open_service: OpenService) -> None:
    """The worker sees its client's end close, and reports that."""
    service = await open_service(sync=SyncMode.ALWAYS)
    arn = await service.make_key()
    gate = service.trail.sync_gate = Gate()
    asked = asyncio.ensure_future(begin(service, arn))
    await gate.arrived.wait()
    [stream] = service.pool.streams
    assert not stream.abandoned

    asked.cancel()
    await asyncio.wait({asked})

    assert stream.abandoned


async def test_a_reply_that_is_withdrawn_leaves_no_descriptor(open_service: OpenService) -> None:
    """What cannot be synced is not handed out."""
    service = await open_service(sync=SyncMode.ALWAYS)
    arn = await service.make_key()
    service.trail.unsyncable = True

    with pytest.raises(AuditUnavailableError):
        await begin(service, arn)

    [stream] = service.pool.streams
    assert stream.abandoned


async def test_who_may_not_use_the_key_gets_no_worker(service: Embedded) -> None:
    """Refused requests are ordinary records: nothing began."""
    arn = await service.make_key()
    made = await begin(service, arn)

    with pytest.raises(AccessDeniedError):
        await begin(service, arn, BOB)
    assert service.newest()["eventType"] == Kind.REQUEST
    for context in ({}, CONTEXT, {"wrong": "pair"}):
        with pytest.raises(AccessDeniedError):
            await decrypt(service, made.header, BOB, encryption_context=context)
    assert service.newest()["resources"] == [{"ARN": arn}]
    assert len(service.pool.uids) == 1


async def test_a_header_that_was_changed_opens_nothing(service: Embedded) -> None:
    """Commitment and tag are verified before a worker is asked."""
    arn = await service.make_key()
    header = bytearray((await begin(service, arn)).header)
    header[-1] ^= 1

    with pytest.raises(InvalidCiphertextError):
        await decrypt(service, bytes(header))
    with pytest.raises(MessageFormatError):
        await decrypt(service, b"no header at all")
    with pytest.raises(MessageFormatError, match="were sent"):
        await decrypt(service, bytes(header) + b"x")

    assert len(service.pool.uids) == 1


async def test_wanted_pairs_must_be_the_message_s_own(service: Embedded) -> None:
    """A pair more, or another value, is refused."""
    arn = await service.make_key()
    made = await begin(service, arn)

    for wanted in ({"project": "red"}, {"other": "x"}):
        with pytest.raises(InvalidCiphertextError, match="does not have the pair"):
            await decrypt(service, made.header, encryption_context=wanted)


async def test_another_key_than_the_message_s_is_refused(service: Embedded) -> None:
    """A key that the request names has to be the one that made the message."""
    arn, other = await service.make_key(), await service.make_key()
    made = await begin(service, arn)

    assert (await decrypt(service, made.header, key_id=arn)).key_id == arn
    with pytest.raises(IncorrectKeyError):
        await decrypt(service, made.header, key_id=other)


async def test_a_store_that_fails_is_told(service: Embedded) -> None:
    """Material that cannot be loaded begins nothing."""
    arn = await service.make_key()
    service.store.faults["material"] = StoreUnavailableError("store: gone")

    with pytest.raises(StorageError):
        await begin(service, arn)

    assert service.newest()["errorCode"] == "StorageException"
    assert service.pool.uids == []


async def test_keys_of_files_are_wiped(service: Embedded) -> None:
    """What was leased for a request is given back, however it ends."""
    arn = await service.make_key()
    await begin(service, arn)
    used = service.arena.used_bytes

    await begin(service, arn)
    service.pool.fault = ThrottlingError("busy")
    with pytest.raises(ThrottlingError):
        await begin(service, arn)
    service.pool.gate = Gate()
    asked = asyncio.ensure_future(begin(service, arn))
    await service.pool.gate.arrived.wait()
    asked.cancel()
    await asyncio.wait({asked})

    assert service.arena.used_bytes == used


async def test_drain_waits_no_longer_than_it_may(service: Embedded) -> None:
    """A file that does not end is left to the pool."""
    arn = await service.make_key()
    await begin(service, arn)

    await asyncio.wait_for(service.files.drain(0.01), 5)

    assert service.files.streams == 1
    service.pool.streams[0].reported.set_result(FileOutcome(0, 0, None))
    await service.files.drain(5)
    assert service.files.streams == 0


async def test_each_request_before_its_first_turn_can_be_dropped(service: Embedded) -> None:
    """A request that was never awaited did nothing."""
    arn = await service.make_key()
    later = service.serve(ALICE, request_frame(ENCRYPT_FILE, EncryptFileRequest(key_id=arn)), Batch())
    assert later is not None
    asked = asyncio.ensure_future(later)
    asked.cancel()
    await asyncio.wait({asked})

    assert service.pool.uids == []
