"""What becomes of keys: asking an embedded service for it, and reading in its trail what it did by itself."""

from __future__ import annotations

from typing import Any

from kmsd.api.calendar import CONFIRM_CLOCK, ConfirmClockRequest, ConfirmClockResponse
from kmsd.api.deletion import (
    CANCEL_KEY_DELETION,
    SCHEDULE_KEY_DELETION,
    CancelKeyDeletionRequest,
    ScheduleKeyDeletionRequest,
)
from kmsd.api.rotation import ENABLE_KEY_ROTATION, EnableKeyRotationRequest
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.audit.record import Kind
from kmsd.service.calendar import moment
from kmsd.service.call import Session
from kmsd.store.rows import KeyRow
from tests.support.embedded import ALICE, ROOT, Embedded

DAY = 24 * 3600.0
SECRET = b"secret"

# What kmsd does by itself to keys, and what it tells of the clock.
OF_KEYS = {"RotateKey", "WarnOfKeyDeletion", "DeleteKey"}
OF_THE_CLOCK = {"ClockInDoubt", "ClockBelieved"}


async def encrypt(service: Embedded, arn: str, session: Session = ALICE) -> bytes:
    request = EncryptRequest(key_id=arn, plaintext=memoryview(SECRET))
    return (await service.ask(session, ENCRYPT, request)).ciphertext_blob


async def decrypt(service: Embedded, blob: bytes, session: Session = ALICE) -> bytes:
    return bytes((await service.ask(session, DECRYPT, DecryptRequest(ciphertext_blob=blob))).plaintext)


async def schedule(service: Embedded, arn: str, days: int = 30) -> None:
    request = ScheduleKeyDeletionRequest(key_id=arn, pending_window_in_days=days)
    await service.ask(ALICE, SCHEDULE_KEY_DELETION, request)


async def cancel(service: Embedded, arn: str) -> None:
    await service.ask(ALICE, CANCEL_KEY_DELETION, CancelKeyDeletionRequest(key_id=arn))


async def rotate_every(service: Embedded, arn: str, days: int) -> None:
    await service.ask(ALICE, ENABLE_KEY_ROTATION, EnableKeyRotationRequest(key_id=arn, rotation_period_in_days=days))


async def confirm_clock(service: Embedded) -> ConfirmClockResponse:
    request = ConfirmClockRequest(clock=moment(service.wall_ms()))
    return await service.ask(ROOT, CONFIRM_CLOCK, request)


def id_of(arn: str) -> str:
    return arn.rpartition("/")[2]


async def row_of(service: Embedded, arn: str) -> KeyRow:
    row = await service.store.key(id_of(arn))
    assert row is not None
    return row


def done(service: Embedded, *names: str) -> list[dict[str, Any]]:
    """The records that tell what kmsd did by itself, of these names or of all; in the order in which it was done."""
    wanted = set(names) or OF_KEYS | OF_THE_CLOCK
    kinds = {Kind.OUTCOME, Kind.SYSTEM}
    return [one for one in service.lines() if one["eventName"] in wanted and one["eventType"] in kinds]


def told(service: Embedded, *names: str) -> list[tuple[str, str]]:
    """The names of these records, and the key that each is about, if it is about one."""
    return [
        (one["eventName"], id_of(one["resources"][0]["ARN"]) if one.get("resources") else "")
        for one in done(service, *names)
        if "errorCode" not in one
    ]
