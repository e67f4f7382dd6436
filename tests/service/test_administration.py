"""What the service tells about itself."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

import kmsd
from kmsd.api.administration import (
    GET_AUDIT_ANCHOR,
    GET_AUDIT_RECORDS,
    STATUS,
    GetAuditAnchorRequest,
    GetAuditRecordsRequest,
    GetAuditRecordsResponse,
    SealState,
    StatusRequest,
)
from kmsd.api.errors import AccessDeniedError
from kmsd.api.operation import MAX_FRAME_BYTES
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.audit.checkpoint import key_id_of
from tests.support.embedded import ACCOUNT, ALICE, AUDITOR, BOB, REGION, ROOT, Embedded


async def read(service: Embedded, **members: Any) -> GetAuditRecordsResponse:
    return await service.ask(ROOT, GET_AUDIT_RECORDS, GetAuditRecordsRequest(**members))


def numbers(response: GetAuditRecordsResponse) -> list[int]:
    return [msgspec.json.decode(line)["seq"] for line in response.records]


async def test_the_status_is_told_to_everybody(service: Embedded) -> None:
    """What is no secret: state, account, memory, counts."""
    status = await service.ask(BOB, STATUS, StatusRequest())

    assert (status.state, status.version) == (SealState.UNSEALED, kmsd.__version__)
    assert (status.account, status.region) == (ACCOUNT, REGION)
    assert status.secret_memory == service.arena.kind
    assert 0 < status.secret_memory_used_bytes <= status.secret_memory_limit_bytes
    assert (status.audit_sync, status.audit_sequence) == ("os", 0)
    assert (status.connections, status.file_streams, status.token) == (3, 0, None)
    assert status.started.tzinfo is not None


async def test_the_status_says_sealed(service: Embedded) -> None:
    """It is answered while the daemon is sealed."""
    await service.unsealing.seal()

    assert (await service.ask(BOB, STATUS, StatusRequest())).state is SealState.SEALED


async def test_administrators_read_the_trail_as_it_stands(service: Embedded) -> None:
    """Whole lines, the newest or those behind a number, and whether more follow; each reading is a record itself."""
    for _ in range(6):
        await service.ask(BOB, STATUS, StatusRequest())

    assert numbers(await read(service, limit=2)) == [5, 6]
    page = await read(service, after_sequence=1, limit=3)
    assert numbers(page) == [2, 3, 4]
    assert page.truncated
    rest = await read(service, after_sequence=4)
    assert numbers(rest) == [5, 6, 7, 8]
    assert not rest.truncated
    assert numbers(await read(service, after_sequence=1000)) == []
    assert "\n".join(rest.records).encode() in (service.directory / "audit.log").read_bytes()


async def test_others_do_not_read_the_trail(service: Embedded) -> None:
    """Nor learn how long it is."""
    for session in (ALICE, BOB):
        with pytest.raises(AccessDeniedError):
            await service.ask(session, GET_AUDIT_RECORDS, GetAuditRecordsRequest())


async def test_auditors_read_the_trail_and_that_is_recorded(service: Embedded) -> None:
    """With what they asked for."""
    since = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    request = GetAuditRecordsRequest(since=since, limit=7)
    await service.ask(AUDITOR, GET_AUDIT_RECORDS, request)

    record = service.newest()
    assert (record["eventName"], record["userIdentity"]["userName"]) == ("GetAuditRecords", "carol")
    assert record["requestParameters"] == {"since": "2026-01-02T00:00:00Z", "limit": 7}


async def test_reading_begins_at_a_time(service: Embedded) -> None:
    """At its first record or shortly before, also when a number is given the number counts; never behind the end."""
    for _ in range(3):
        await service.ask(BOB, STATUS, StatusRequest())
    now = dt.datetime.now(dt.UTC)

    assert numbers(await read(service, since=now - dt.timedelta(hours=1))) == [1, 2, 3]
    assert numbers(await read(service, since=now - dt.timedelta(hours=1), after_sequence=2)) == [3, 4]
    assert numbers(await read(service, since=dt.datetime(1, 1, 1, tzinfo=dt.UTC), limit=1)) == [1]
    await read(service, since=dt.datetime(9999, 12, 31, tzinfo=dt.UTC))


async def test_administrators_and_auditors_get_what_vouches_for_the_trail(service: Embedded) -> None:
    """The audit key's public part and the last checkpoint, as far as they are known; also while sealed."""
    empty = await service.ask(AUDITOR, GET_AUDIT_ANCHOR, GetAuditAnchorRequest())
    await service.unsealing.seal()  # which signs
    last = service.checkpoints.last
    told = await service.ask(ROOT, GET_AUDIT_ANCHOR, GetAuditAnchorRequest())

    assert empty.anchor is None
    assert last is not None
    assert told.public_key is not None
    assert told.public_key == empty.public_key
    assert told.key_id == key_id_of(told.public_key) == last.key_id
    assert told.anchor is not None
    assert msgspec.structs.astuple(told.anchor) == msgspec.structs.astuple(last)
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, GET_AUDIT_ANCHOR, GetAuditAnchorRequest())


async def test_a_reply_of_large_records_is_cut_to_a_frame(service: Embedded) -> None:
    """The rest is got with the next request."""
    arn = await service.make_key()
    context = {"x": "\u0000" * 8_000}  # six characters each in JSON
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"), encryption_context=context)
    for _ in range(30):
        await service.ask(ALICE, ENCRYPT, request)
    found: list[int] = []
    while len(found) < 32:
        page = await read(service, after_sequence=len(found))
        assert len(msgspec.msgpack.encode(page)) < MAX_FRAME_BYTES
        assert page.records
        found += numbers(page)

    assert found[:32] == list(range(1, 33))
