"""Rotation that people ask for: a period, new material now, and the list of what there was."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from kmsd.api.deletion import (
    CANCEL_KEY_DELETION,
    SCHEDULE_KEY_DELETION,
    CancelKeyDeletionRequest,
    ScheduleKeyDeletionRequest,
)
from kmsd.api.errors import (
    AccessDeniedError,
    ConflictError,
    DisabledError,
    InvalidMarkerError,
    KMSInvalidStateError,
    LimitExceededError,
    StorageError,
    UnsupportedOperationError,
)
from kmsd.api.keys import DESCRIBE_KEY, DISABLE_KEY, ENABLE_KEY, DescribeKeyRequest, EnableKeyRequest
from kmsd.api.rotation import (
    DISABLE_KEY_ROTATION,
    ENABLE_KEY_ROTATION,
    GET_KEY_ROTATION_STATUS,
    LIST_KEY_ROTATIONS,
    ROTATE_KEY_ON_DEMAND,
    DisableKeyRotationRequest,
    EnableKeyRotationRequest,
    GetKeyRotationStatusRequest,
    GetKeyRotationStatusResponse,
    IncludeKeyMaterial,
    KeyMaterialState,
    ListKeyRotationsRequest,
    RotateKeyOnDemandRequest,
    RotationsListEntry,
    RotationType,
)
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.service.call import Session
from kmsd.service.key_dates import DAY_MS
from kmsd.service.key_rotation import ON_DEMAND_ROTATIONS_PER_KEY
from kmsd.store.base import Replace, StoreUnavailableError
from kmsd.store.rows import KeyRow
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate

OpenService = Callable[..., Awaitable[Embedded]]

DAY_SECONDS = 24 * 3600


async def enable(service: Embedded, arn: str, session: Session = ALICE, **members: Any) -> None:
    await service.ask(session, ENABLE_KEY_ROTATION, EnableKeyRotationRequest(key_id=arn, **members))


async def disable(service: Embedded, arn: str) -> None:
    await service.ask(ALICE, DISABLE_KEY_ROTATION, DisableKeyRotationRequest(key_id=arn))


async def status(service: Embedded, arn: str, session: Session = ALICE) -> GetKeyRotationStatusResponse:
    return await service.ask(session, GET_KEY_ROTATION_STATUS, GetKeyRotationStatusRequest(key_id=arn))


async def rotate(service: Embedded, arn: str, session: Session = ALICE) -> str:
    return (await service.ask(session, ROTATE_KEY_ON_DEMAND, RotateKeyOnDemandRequest(key_id=arn))).key_id


async def rotations(service: Embedded, arn: str, **members: Any) -> list[RotationsListEntry]:
    request = ListKeyRotationsRequest(key_id=arn, **members)
    return (await service.ask(ALICE, LIST_KEY_ROTATIONS, request)).rotations


async def row_of(service: Embedded, arn: str) -> KeyRow:
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    return row


async def encrypt(service: Embedded, arn: str) -> bytes:
    return (await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))).ciphertext_blob


async def decrypt(service: Embedded, blob: bytes) -> str:
    """The id of the material that a blob was made with."""
    return (await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob))).key_material_id


def in_days(service: Embedded, days: int) -> dt.datetime:
    return dt.datetime.fromtimestamp((service.wall_ms() + days * DAY_MS) / 1000, dt.UTC)


async def test_a_new_key_is_not_rotated_by_itself(service: Embedded) -> None:
    """It says so, and nothing of when."""
    arn = await service.make_key()

    answer = await status(service, arn)

    assert answer == GetKeyRotationStatusResponse(key_rotation_enabled=False, key_id=arn.rpartition("/")[2])
    assert (await row_of(service, arn)).due_ms == 0


@pytest.mark.parametrize(("members", "days"), [({}, 365), ({"rotation_period_in_days": 90}, 90)])
async def test_a_period_begins_when_it_is_asked_for(service: Embedded, members: dict[str, Any], days: int) -> None:
    """A year, if none is said; the key's row knows when it falls due."""
    arn = await service.make_key()

    await enable(service, arn, **members)

    answer = await status(service, arn)
    assert (answer.key_rotation_enabled, answer.rotation_period_in_days) == (True, days)
    assert answer.next_rotation_date == in_days(service, days)
    row = await row_of(service, arn)
    assert row.due_ms == row.rotation_next_ms == service.wall_ms() + days * DAY_MS


async def test_the_same_period_again_changes_nothing(service: Embedded) -> None:
    """Not its date either, so that asking every day does not put rotation off for ever."""
    arn = await service.make_key()
    await enable(service, arn)
    before = await row_of(service, arn)
    service.wall_time += 30 * DAY_SECONDS

    await enable(service, arn)

    assert await row_of(service, arn) == before


async def test_another_period_begins_anew(service: Embedded) -> None:
    """From the day on which it is asked for."""
    arn = await service.make_key()
    await enable(service, arn)
    service.wall_time += 30 * DAY_SECONDS

    await enable(service, arn, rotation_period_in_days=180)

    answer = await status(service, arn)
    assert (answer.rotation_period_in_days, answer.next_rotation_date) == (180, in_days(service, 180))


async def test_rotation_is_switched_off(service: Embedded) -> None:
    """Nothing is due any more; doing it twice is the same as once."""
    arn = await service.make_key()
    await enable(service, arn)

    for _ in range(2):
        await disable(service, arn)

    assert (await status(service, arn)).key_rotation_enabled is False
    row = await row_of(service, arn)
    assert (row.rotation_days, row.rotation_next_ms, row.due_ms) == (0, 0, 0)


async def test_a_disabled_key_keeps_its_dates(service: Embedded) -> None:
    """Nothing is due while it is disabled, and its period cannot be changed; enabled again it goes on."""
    arn = await service.make_key()
    await enable(service, arn)
    before = await status(service, arn)

    await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))

    assert await status(service, arn) == before
    assert (await row_of(service, arn)).due_ms == 0
    for refused in (enable(service, arn), disable(service, arn), rotate(service, arn)):
        with pytest.raises(DisabledError, match=f"^{arn} is disabled.$"):
            await refused
    await service.ask(ALICE, ENABLE_KEY, EnableKeyRequest(key_id=arn))
    row = await row_of(service, arn)
    assert row.due_ms == row.rotation_next_ms != 0


async def test_a_key_pending_deletion_is_not_rotated(service: Embedded) -> None:
    """Its status is false as long as that stands, and then what it was; its rotations can be listed."""
    arn = await service.make_key()
    await enable(service, arn)
    await rotate(service, arn)
    before = await status(service, arn)

    await service.ask(ALICE, SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest(key_id=arn))

    answer = await status(service, arn)
    assert (answer.key_rotation_enabled, answer.rotation_period_in_days, answer.next_rotation_date) == (
        False,
        None,
        None,
    )
    assert len(await rotations(service, arn)) == 1
    for refused in (enable(service, arn), disable(service, arn), rotate(service, arn)):
        with pytest.raises(KMSInvalidStateError, match=f"^{arn} is pending deletion.$"):
            await refused
    await service.ask(ALICE, CANCEL_KEY_DELETION, CancelKeyDeletionRequest(key_id=arn))
    assert await status(service, arn) == before


async def test_new_material_encrypts_and_all_of_it_decrypts(open_service: OpenService) -> None:
    """Also when far more versions are used than memory keeps, and whatever was encrypted first."""
    service = await open_service(keys_in_memory=2)
    arn = await service.make_key()
    blobs = [await encrypt(service, arn)]
    for _ in range(5):
        await rotate(service, arn)
        blobs.append(await encrypt(service, arn))

    made_with = [await decrypt(service, blob) for blob in blobs]

    assert [blob[17:21] for blob in blobs] == [number.to_bytes(4, "big") for number in range(1, 7)]
    listed = await rotations(service, arn, include_key_material=IncludeKeyMaterial.ALL_KEY_MATERIAL)
    assert made_with == [entry.key_material_id for entry in listed]
    assert len(set(made_with)) == 6
    described = (await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))).key_metadata
    assert described.current_key_material_id == made_with[-1]
    row = await row_of(service, arn)
    assert (row.current_material, row.on_demand_rotations) == (6, 5)


async def test_a_rotation_on_demand_leaves_the_dates_alone(service: Embedded) -> None:
    """The automatic one comes when it would have come."""
    arn = await service.make_key()
    await enable(service, arn)
    before = await status(service, arn)
    service.wall_time += 30 * DAY_SECONDS

    assert await rotate(service, arn) == arn.rpartition("/")[2]

    assert await status(service, arn) == before
    row = await row_of(service, arn)
    assert row.due_ms == row.rotation_next_ms


async def test_an_automatic_rotation_sets_the_next_date(service: Embedded) -> None:
    """A period after it, however many were missed."""
    arn = await service.make_key()
    await enable(service, arn, rotation_period_in_days=90)
    service.wall_time += 400 * DAY_SECONDS

    await service.rotation.rotate(await row_of(service, arn))

    row = await row_of(service, arn)
    assert (row.current_material, row.on_demand_rotations) == (2, 0)
    assert row.due_ms == row.rotation_next_ms == service.wall_ms() + 90 * DAY_MS
    [entry] = await rotations(service, arn)
    assert (entry.rotation_type, entry.key_material_state) == (RotationType.AUTOMATIC, KeyMaterialState.CURRENT)
    _, outcome = [line for line in service.lines() if line["eventName"] == "RotateKey"]
    assert outcome["eventType"] == "ApiCallOutcome"
    assert outcome["requestParameters"] == {"rotationType": "AUTOMATIC", "keyMaterialId": entry.key_material_id}


async def test_a_clock_that_was_set_back_brings_no_rotation_forward(service: Embedded) -> None:
    """The next date is counted from the time that has passed for certain, where that is the later one."""
    arn = await service.make_key()
    await enable(service, arn, rotation_period_in_days=90)
    service.wall_time += 400 * DAY_SECONDS
    passed_ms = service.calendar.latest_ms()
    service.time.wall -= 200 * DAY_SECONDS

    await service.rotation.rotate(await row_of(service, arn))

    assert (await row_of(service, arn)).rotation_next_ms == passed_ms + 90 * DAY_MS


async def test_a_clock_that_is_years_ahead_leaves_no_key_unrotated_for_years(service: Embedded) -> None:
    """A rotation that falls due meanwhile, by how long the host is up, has its next one a period later all the same."""
    arn = await service.make_key()
    await enable(service, arn, rotation_period_in_days=90)
    service.time.step(3650 * DAY_SECONDS)
    service.time.let_pass(90 * DAY_SECONDS)
    passed_ms = service.calendar.certain_ms()

    await service.housekeeping.look()

    row = await row_of(service, arn)
    assert (row.current_material, row.rotation_next_ms) == (2, passed_ms + 90 * DAY_MS)


async def test_rotations_are_listed_oldest_first(service: Embedded) -> None:
    """With their dates; the first material has none, and is listed if all is asked for."""
    service.wall_time = 1_800_000_000.0
    arn = await service.make_key()
    key_id = arn.rpartition("/")[2]
    service.wall_time += DAY_SECONDS
    await rotate(service, arn)

    first, second = await rotations(service, arn, include_key_material=IncludeKeyMaterial.ALL_KEY_MATERIAL)

    assert (first.rotation_date, first.rotation_type) == (None, None)
    assert (first.key_id, first.key_material_state) == (key_id, KeyMaterialState.NON_CURRENT)
    assert (second.rotation_date, second.rotation_type) == (in_days(service, 0), RotationType.ON_DEMAND)
    assert (second.key_id, second.key_material_state) == (key_id, KeyMaterialState.CURRENT)
    assert await rotations(service, arn) == [second]


async def test_the_pages_of_rotations_are_all_rotations(service: Embedded) -> None:
    """Each once; a marker of another list is refused."""
    arn = await service.make_key()
    for _ in range(5):
        await rotate(service, arn)
    found: list[RotationsListEntry] = []
    marker, truncated = None, True
    while truncated:
        request = ListKeyRotationsRequest(key_id=arn, limit=2, marker=marker)
        page = await service.ask(ALICE, LIST_KEY_ROTATIONS, request)
        found += page.rotations
        marker, truncated = page.next_marker, page.truncated

    assert found == await rotations(service, arn)
    assert len(found) == 5
    for wrong in ("mine", "MTphbGlhcy9h", "MTo5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"):
        with pytest.raises(InvalidMarkerError):
            await rotations(service, arn, marker=wrong)


async def test_a_key_is_rotated_on_demand_a_bounded_number_of_times(service: Embedded) -> None:
    """For ever; rotation by itself does not count."""
    arn = await service.make_key()
    row = await row_of(service, arn)
    nearly = msgspec.structs.replace(row, on_demand_rotations=ON_DEMAND_ROTATIONS_PER_KEY - 1, version=row.version + 1)
    await service.store.commit(None, [Replace(nearly)])
    service.records.forget(row.key_id)
    await rotate(service, arn)

    with pytest.raises(LimitExceededError, match="was rotated on demand 25 times, which is the limit"):
        await rotate(service, arn)

    assert (await row_of(service, arn)).current_material == 2
    await service.rotation.rotate(await row_of(service, arn))
    assert (await row_of(service, arn)).current_material == 3


async def test_of_two_rotations_at_once_one_is_told_of_the_other(service: Embedded) -> None:
    """There is one new version, and the trail tells of one."""
    arn = await service.make_key()
    await encrypt(service, arn)

    outcomes = await asyncio.gather(*(rotate(service, arn) for _ in range(2)), return_exceptions=True)

    assert sum(isinstance(one, ConflictError) for one in outcomes) == 1
    assert (await row_of(service, arn)).current_material == 2
    assert len(await rotations(service, arn)) == 1


async def test_use_goes_on_during_a_rotation(service: Embedded) -> None:
    """With the old material until the new one is durable, then with that; nothing fails, and all of it decrypts."""
    arn = await service.make_key()
    await encrypt(service, arn)
    gate = service.store.gates["commit"] = Gate()
    rotation = asyncio.ensure_future(rotate(service, arn))
    await gate.arrived.wait()
    before = [await encrypt(service, arn) for _ in range(3)]

    gate.opened.set()
    during = await asyncio.gather(*(encrypt(service, arn) for _ in range(50)), rotation)
    behind = await encrypt(service, arn)

    assert {blob[17:21] for blob in before} == {(1).to_bytes(4, "big")}
    assert behind[17:21] == (2).to_bytes(4, "big")
    for blob in (*before, *during[:-1], behind):
        assert isinstance(blob, bytes)
        await decrypt(service, blob)


async def test_the_record_of_a_rotation_names_its_material(service: Embedded) -> None:
    """Of the outcome, as the intent comes before there is any; also when it is not known whether it was committed."""
    arn = await service.make_key()
    await rotate(service, arn)
    [entry] = await rotations(service, arn)
    _, outcome = [line for line in service.lines() if line["eventName"] == "RotateKeyOnDemand"]

    assert outcome["eventType"] == "ApiCallOutcome"
    told = outcome["additionalEventData"]
    assert (told["rotationType"], told["keyMaterialId"]) == ("ON_DEMAND", entry.key_material_id)

    service.store.faults["committing"] = StoreUnavailableError("store.sqlite: the disk failed to sync")
    with pytest.raises(StorageError):
        await rotate(service, arn)
    service.store.faults.clear()

    told = service.newest()["additionalEventData"]
    listed = await rotations(service, arn)
    assert told["committed"] is True
    assert told["keyMaterialId"] == listed[-1].key_material_id


async def test_default_keys_are_rotated_every_year_by_kmsd_alone(service: Embedded) -> None:
    """Their owner sees when, and what there was; nobody may change it."""
    created = service.wall_ms()
    await encrypt(service, "alias/kmsd/default")
    row = await service.store.default_key("uid:1000/user:alice")
    assert row is not None
    service.wall_time += 365 * DAY_SECONDS
    await service.care.look()

    answer = await status(service, row.key_id)
    [entry] = await rotations(service, row.key_id)

    assert (answer.key_rotation_enabled, answer.rotation_period_in_days) == (True, 365)
    assert answer.next_rotation_date == in_days(service, 365)
    assert entry.rotation_date is not None
    assert entry.rotation_date.timestamp() * 1000 == pytest.approx(created + 365 * DAY_MS, abs=2)
    assert entry.rotation_type is RotationType.AUTOMATIC
    for refused in (enable(service, row.key_id), rotate(service, row.key_id), enable(service, row.key_id, ROOT)):
        with pytest.raises(AccessDeniedError):
            await refused


async def test_not_even_who_may_rotates_a_default_key(service: Embedded) -> None:
    """Should its policy ever let somebody, the operation does not."""
    await encrypt(service, "alias/kmsd/default")
    owned = await service.store.default_key("uid:1000/user:alice")
    assert owned is not None
    mine = await row_of(service, await service.make_key())
    row = await row_of(service, owned.key_id)
    opened = msgspec.structs.replace(
        row, policy=mine.policy, policy_principals=mine.policy_principals, version=row.version + 1
    )
    await service.store.commit(None, [Replace(opened)])
    service.records.forget(row.key_id)

    for refused in (enable(service, row.key_id), disable(service, row.key_id), rotate(service, row.key_id)):
        with pytest.raises(UnsupportedOperationError, match="is managed by kmsd"):
            await refused

    assert await row_of(service, row.key_id) == opened


async def test_who_may_not_rotate_a_key_learns_nothing_of_it(service: Embedded) -> None:
    """Each operation is a permission of its own; administrators have them under the default policy."""
    arn = await service.make_key()

    for refused in (enable(service, arn, BOB), rotate(service, arn, BOB), status(service, arn, BOB)):
        with pytest.raises(AccessDeniedError):
            await refused
    await enable(service, arn, ROOT)
    await rotate(service, arn, ROOT)
