"""Scheduling the deletion of a key, and taking that back."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from typing import Any

import pytest

from kmsd.api.deletion import (
    CANCEL_KEY_DELETION,
    SCHEDULE_KEY_DELETION,
    CancelKeyDeletionRequest,
    ScheduleKeyDeletionRequest,
    ScheduleKeyDeletionResponse,
)
from kmsd.api.errors import (
    AccessDeniedError,
    ConflictError,
    DisabledError,
    KMSInvalidStateError,
    StorageError,
    ValidationError,
)
from kmsd.api.keys import (
    DESCRIBE_KEY,
    DISABLE_KEY,
    ENABLE_KEY,
    DescribeKeyRequest,
    EnableKeyRequest,
)
from kmsd.api.operation import KeyState
from kmsd.api.shapes import KeyMetadata
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.service.call import Session
from kmsd.service.key_dates import DAY_MS, WARNING_MS
from kmsd.store.base import StoreUnavailableError
from kmsd.store.rows import KeyRow
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate


async def schedule(
    service: Embedded, arn: str, session: Session = ALICE, **members: Any
) -> ScheduleKeyDeletionResponse:
    return await service.ask(session, SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest(key_id=arn, **members))


async def cancel(service: Embedded, arn: str, session: Session = ALICE) -> str:
    return (await service.ask(session, CANCEL_KEY_DELETION, CancelKeyDeletionRequest(key_id=arn))).key_id


async def described(service: Embedded, arn: str) -> KeyMetadata:
    return (await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))).key_metadata


async def row_of(service: Embedded, arn: str) -> KeyRow:
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    return row


async def encrypt(service: Embedded, arn: str) -> bytes:
    return (await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))).ciphertext_blob


async def decrypt(service: Embedded, blob: bytes) -> bytes:
    return bytes((await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob))).plaintext)


@pytest.mark.parametrize(("members", "days"), [({}, 30), ({"pending_window_in_days": 7}, 7)])
async def test_a_key_is_scheduled_for_deletion(service: Embedded, members: dict[str, Any], days: int) -> None:
    """In 30 days, if nothing is said; the answer and the key's description tell when."""
    arn = await service.make_key()
    deletion_ms = service.wall_ms() + days * DAY_MS

    answer = await schedule(service, arn, **members)

    date = dt.datetime.fromtimestamp(deletion_ms / 1000, dt.UTC)
    assert answer == ScheduleKeyDeletionResponse(
        key_id=arn, deletion_date=date, key_state=KeyState.PENDING_DELETION, pending_window_in_days=days
    )
    metadata = await described(service, arn)
    assert (metadata.enabled, metadata.key_state) == (False, KeyState.PENDING_DELETION)
    assert (metadata.deletion_date, metadata.pending_deletion_window_in_days) == (date, days)
    row = await row_of(service, arn)
    assert (row.deletion_ms, row.deletion_warned) == (deletion_ms, False)
    # What falls due first is to say that it is near.
    assert row.due_ms == deletion_ms - WARNING_MS


@pytest.mark.parametrize("days", [1, 6, 31, 365])
async def test_a_window_that_is_too_short_or_too_long_is_refused(service: Embedded, days: int) -> None:
    """Of what the shape lets through; the key stays as it is."""
    arn = await service.make_key()

    with pytest.raises(ValidationError, match=f"PendingWindowInDays is {days}: it may be 7 to 30"):
        await schedule(service, arn, pending_window_in_days=days)

    assert (await described(service, arn)).key_state is KeyState.ENABLED


async def test_a_key_pending_deletion_is_used_no_more(service: Embedded) -> None:
    """From the very next request on, and its material is wiped from memory at once, all versions of it."""
    arn, other = await service.make_key(), await service.make_key()
    blob, kept = await encrypt(service, arn), await encrypt(service, other)
    used = service.arena.used_bytes

    await schedule(service, arn)

    assert service.arena.used_bytes == used - 32
    for refused in (encrypt(service, arn), decrypt(service, blob), schedule(service, arn)):
        with pytest.raises(KMSInvalidStateError, match=f"^{re.escape(arn)} is pending deletion.$"):
            await refused
    for operation in (ENABLE_KEY, DISABLE_KEY):
        with pytest.raises(KMSInvalidStateError, match=f"^{re.escape(arn)} is pending deletion.$"):
            await service.ask(ALICE, operation, EnableKeyRequest(key_id=arn))
    assert service.arena.used_bytes == used - 32
    assert await decrypt(service, kept) == b"x"


async def test_a_deletion_that_is_cancelled_leaves_the_key_disabled(service: Embedded) -> None:
    """With nothing left of the date; enabled again, it decrypts what it always did."""
    arn = await service.make_key()
    before = await described(service, arn)
    blob = await encrypt(service, arn)
    await schedule(service, arn)

    assert await cancel(service, arn) == arn

    metadata = await described(service, arn)
    assert (metadata.key_state, metadata.deletion_date, metadata.pending_deletion_window_in_days) == (
        KeyState.DISABLED,
        None,
        None,
    )
    row = await row_of(service, arn)
    assert (row.deletion_ms, row.pending_window_days, row.due_ms) == (0, 0, 0)
    with pytest.raises(DisabledError):
        await decrypt(service, blob)
    await service.ask(ALICE, ENABLE_KEY, EnableKeyRequest(key_id=arn))
    assert await decrypt(service, blob) == b"x"
    assert await described(service, arn) == before


async def test_only_a_deletion_that_is_pending_is_cancelled(service: Embedded) -> None:
    """Whatever else the key is."""
    arn = await service.make_key()

    for _ in range(2):
        with pytest.raises(KMSInvalidStateError, match=f"^{re.escape(arn)} is not pending deletion.$"):
            await cancel(service, arn)
        await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))


async def test_a_disabled_key_is_scheduled_as_well(service: Embedded) -> None:
    """And a second time after that was cancelled, with a date of its own."""
    arn = await service.make_key()
    await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))
    await schedule(service, arn)
    await cancel(service, arn)
    service.wall_time += 5 * 24 * 3600

    answer = await schedule(service, arn, pending_window_in_days=10)

    assert answer.deletion_date == dt.datetime.fromtimestamp((service.wall_ms() + 10 * DAY_MS) / 1000, dt.UTC)


async def test_material_that_is_being_loaded_does_not_come_back(service: Embedded) -> None:
    """Who asked for it before is told what the key is now, and nothing of it stays in memory."""
    arn = await service.make_key()
    used = service.arena.used_bytes
    gate = service.store.gates["material"] = Gate()
    use = asyncio.ensure_future(encrypt(service, arn))
    await gate.arrived.wait()

    await schedule(service, arn)
    gate.opened.set()

    with pytest.raises(KMSInvalidStateError, match="is pending deletion"):
        await use
    assert service.arena.used_bytes == used


async def test_two_changes_at_once_are_not_both_made(service: Embedded) -> None:
    """Whoever comes second is told of the first."""
    arn = await service.make_key()
    await described(service, arn)

    outcomes = await asyncio.gather(
        schedule(service, arn),
        service.ask(ROOT, DISABLE_KEY, EnableKeyRequest(key_id=arn)),
        return_exceptions=True,
    )

    assert sum(isinstance(one, ConflictError) for one in outcomes) == 1


async def test_material_is_wiped_also_when_the_commit_may_have_failed(service: Embedded) -> None:
    """It was committed here, and the disk failed behind that."""
    arn = await service.make_key()
    await encrypt(service, arn)
    used = service.arena.used_bytes
    service.store.faults["committing"] = StoreUnavailableError("store.sqlite: the disk failed to sync")

    with pytest.raises(StorageError):
        await schedule(service, arn)

    service.store.faults.clear()
    assert service.arena.used_bytes == used - 32
    with pytest.raises(KMSInvalidStateError):
        await encrypt(service, arn)


async def test_the_records_tell_who_and_when(service: Embedded) -> None:
    """The outcome has what was answered."""
    arn = await service.make_key()

    answer = await schedule(service, arn, ROOT)

    intent, outcome = service.lines()[-2:]
    assert (intent["eventType"], outcome["eventType"]) == ("ApiCallIntent", "ApiCallOutcome")
    assert outcome["requestParameters"] == {"keyId": arn, "pendingWindowInDays": 30}
    assert outcome["userIdentity"]["uid"] == 0
    told = outcome["responseElements"]
    assert (told["keyId"], told["keyState"], told["pendingWindowInDays"]) == (arn, "PendingDeletion", 30)
    assert dt.datetime.fromisoformat(told["deletionDate"]) == answer.deletion_date


async def test_who_may_not_delete_a_key_cannot(service: Embedded) -> None:
    """Nor keep it from being deleted; administrators can, under the default policy."""
    arn = await service.make_key()

    with pytest.raises(AccessDeniedError, match="kms:ScheduleKeyDeletion"):
        await schedule(service, arn, BOB)
    await schedule(service, arn, ROOT)
    with pytest.raises(AccessDeniedError, match="kms:CancelKeyDeletion"):
        await cancel(service, arn, BOB)
    await cancel(service, arn, ROOT)
