"""The end of a key: at its date and not before, with everything that was kept about it, and for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.api.errors import ConflictError, NotFoundError, UnsupportedOperationError
from kmsd.api.grants import CREATE_GRANT, CreateGrantRequest, GrantOperation
from kmsd.api.keys import CREATE_ALIAS, DESCRIBE_KEY, CreateAliasRequest, DescribeKeyRequest
from kmsd.api.rotation import ROTATE_KEY_ON_DEMAND, RotateKeyOnDemandRequest
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.audit.record import Kind
from kmsd.service import destruction as destruction_module
from kmsd.service.calendar import TOLERANCE_MS
from kmsd.service.key_dates import DAY_MS, WARNING_MS
from kmsd.service.seal import CONFIGURED
from kmsd.service.settling import Settling
from kmsd.store.base import Replace, StoreUnavailableError
from tests.support.embedded import ALICE, Embedded, Gate, kind_is
from tests.support.host_time import HostTime
from tests.support.key_life import (
    DAY,
    SECRET,
    cancel,
    confirm_clock,
    decrypt,
    done,
    encrypt,
    id_of,
    rotate_every,
    row_of,
    schedule,
    told,
)

OpenService = Callable[..., Awaitable[Embedded]]


async def name(service: Embedded, arn: str, alias: str) -> None:
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name=alias, target_key_id=arn))


async def grant(service: Embedded, arn: str, number: int) -> None:
    request = CreateGrantRequest(
        key_id=arn, grantee_principal="user:bob", operations=[GrantOperation.ENCRYPT], name=f"grant-{number}"
    )
    await service.ask(ALICE, CREATE_GRANT, request)


async def outlive(service: Embedded, arn: str, days: int = 7) -> None:
    """Schedule a key's deletion and let the window pass."""
    await schedule(service, arn, days)
    service.time.let_pass(days * DAY)
    await service.housekeeping.look()


async def test_a_key_is_destroyed_with_all_that_was_kept_about_it(service: Embedded) -> None:
    """All its material, its aliases, its uses and its grants; a tombstone tells that there was one."""
    arn, other = await service.make_key(description="of the backup"), await service.make_key()
    for number in (1, 2):
        await name(service, arn, f"alias/gone-{number}")
    await name(service, other, "alias/stays")
    await grant(service, arn, 1)
    await grant(service, other, 1)
    await encrypt(service, arn)
    await service.ask(ALICE, ROTATE_KEY_ON_DEMAND, RotateKeyOnDemandRequest(key_id=arn))
    await encrypt(service, arn)
    await service.housekeeping.look()
    created, used_ms = await row_of(service, arn), service.wall_ms()
    materials = await service.store.materials(id_of(arn), after=0, limit=9)

    await outlive(service, arn)

    store, key_id = service.store, id_of(arn)
    assert await store.key(key_id) is None
    assert await store.materials(key_id, after=0, limit=9) == []
    assert await store.usage(key_id) is None
    assert await store.count_grants(key_id) == 0
    assert [row.name for row in await store.aliases(key_id=None, after=None, limit=9)] == ["alias/stays"]
    assert await store.count_grants(id_of(other)) == 1
    tombstone = await store.tombstone(key_id)
    assert tombstone is not None
    assert tombstone.material_ids == [row.material_id for row in materials]
    assert (tombstone.creation_ms, tombstone.creator_uid) == (created.creation_ms, 1000)
    assert (tombstone.destruction_ms, tombstone.last_used_ms) == (service.wall_ms(), used_ms)
    assert (tombstone.description, tombstone.grants_left) == ("of the backup", False)
    assert await decrypt(service, await encrypt(service, other)) == SECRET


async def test_afterwards_there_is_no_such_key(service: Embedded) -> None:
    """By no name, for nobody; and its alias can name another one."""
    arn = await service.make_key()
    await name(service, arn, "alias/app")
    blob = await encrypt(service, arn)
    await outlive(service, arn)

    for identifier in (arn, id_of(arn), "alias/app"):
        with pytest.raises(NotFoundError):
            await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=identifier))
        with pytest.raises(NotFoundError):
            await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=identifier, plaintext=memoryview(b"x")))
    with pytest.raises(NotFoundError):
        await decrypt(service, blob)

    other = await service.make_key()
    await name(service, other, "alias/app")
    assert await decrypt(service, await encrypt(service, "alias/app")) == SECRET


async def test_it_is_told_before_and_then_done_at_the_date(service: Embedded) -> None:
    """Three days before, once; the key is there to the last second."""
    arn = await service.make_key()
    await schedule(service, arn, 10)
    date_ms = (await row_of(service, arn)).deletion_ms

    service.time.let_pass(10 * DAY - WARNING_MS / 1000 - 1)
    await service.housekeeping.look()
    assert told(service) == []
    service.time.let_pass(1)
    await service.housekeeping.look()
    assert told(service) == [("WarnOfKeyDeletion", id_of(arn))]
    service.time.let_pass(WARNING_MS / 1000 - 1)
    await service.housekeeping.look()
    assert (await row_of(service, arn)).deletion_ms == date_ms

    service.time.let_pass(1)
    await service.housekeeping.look()
    await service.housekeeping.look()
    assert told(service) == [("WarnOfKeyDeletion", id_of(arn)), ("DeleteKey", id_of(arn))]
    warning, end = done(service)
    assert "userIdentity" not in warning
    assert warning["requestParameters"] == end["requestParameters"]
    assert warning["requestParameters"]["pendingWindowInDays"] == 10
    assert warning["requestParameters"]["deletionDate"].startswith(end["eventTime"][:19])


async def test_a_deletion_that_was_cancelled_does_not_happen(service: Embedded) -> None:
    """Also after the warning; and who schedules it again is warned again."""
    arn = await service.make_key()
    await schedule(service, arn, 7)
    service.time.let_pass(5 * DAY)
    await service.housekeeping.look()
    await cancel(service, arn)
    service.time.let_pass(30 * DAY)
    await service.housekeeping.look()
    assert told(service) == [("WarnOfKeyDeletion", id_of(arn))]

    await outlive(service, arn)

    assert told(service) == [("WarnOfKeyDeletion", id_of(arn))] * 2 + [("DeleteKey", id_of(arn))]


async def test_a_cancellation_at_the_last_moment_wins(service: Embedded) -> None:
    """What is to be destroyed is what was read; a row that changed since is looked at anew."""
    arn = await service.make_key()
    await schedule(service, arn, 7)
    service.time.let_pass(7 * DAY)
    row = msgspec.structs.replace(await row_of(service, arn), deletion_warned=True)
    await cancel(service, arn)

    with pytest.raises(ConflictError):
        await service.destruction.destroy(row)

    assert (await row_of(service, arn)).version == row.version + 1


@pytest.mark.parametrize("change", [{"deletion_ms": 2**52}, {"deletion_ms": 0}, {"key_state": "Enabled"}])
async def test_a_key_whose_time_has_not_come_is_not_destroyed(service: Embedded, change: dict[str, Any]) -> None:
    """Whoever asks for that."""
    arn = await service.make_key()
    await schedule(service, arn, 7)
    service.time.let_pass(7 * DAY)
    row = msgspec.structs.replace(await row_of(service, arn), **change)

    with pytest.raises(ConflictError, match="not to be destroyed now"):
        await service.destruction.destroy(row)


async def test_its_material_leaves_secret_memory(service: Embedded) -> None:
    """What was there is free again."""
    arn, used = await service.make_key(), service.arena.used_bytes
    await encrypt(service, arn)
    assert service.arena.used_bytes > used

    await outlive(service, arn)

    assert service.arena.used_bytes <= used


async def test_a_purge_that_fails_is_tried_again(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute later, until it is done, and then no more."""
    arn = await service.make_key()
    purges: list[bool] = []

    async def purge() -> None:
        purges.append(len(purges) > 0)
        if not purges[-1]:
            raise StoreUnavailableError("busy")

    monkeypatch.setattr(service.store, "purge", purge)
    await outlive(service, arn)
    assert "destroyed_keys" in service.log.getvalue()
    for _ in range(3):
        await service.housekeeping.look()

    assert purges == [False, True]


async def test_what_is_left_is_cleared_also_when_the_destruction_was_not_seen_to_its_end(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of its outcome cannot be written, or the daemon is sealed amid the commit."""
    purges: list[bool] = []
    purge = service.store.purge

    async def noted_purge() -> None:
        purges.append(True)
        await purge()

    monkeypatch.setattr(service.store, "purge", noted_purge)
    unrecorded, interrupted = await service.make_key(), await service.make_key()
    for arn in (unrecorded, interrupted):
        await grant(service, arn, 1)
    await schedule(service, unrecorded, 7)
    service.time.let_pass(4 * DAY)
    await service.housekeeping.look()
    service.time.let_pass(3 * DAY)
    service.trail.refuses = kind_is(Kind.OUTCOME)
    await service.housekeeping.look()
    service.trail.refuses = None
    assert await service.store.tombstone(id_of(unrecorded)) is not None
    assert await service.store.count_grants(id_of(unrecorded)) == 0
    assert len(purges) == 1

    await schedule(service, interrupted, 7)
    service.time.let_pass(4 * DAY)
    await service.housekeeping.look()
    service.time.let_pass(3 * DAY)
    await service.timekeeping.tick()
    service.store.gates["commit"] = gate = Gate()
    await service.minutes.wake()
    await gate.arrived.wait()
    sealing = asyncio.ensure_future(service.unsealing.seal())
    await asyncio.sleep(0)
    del service.store.gates["commit"]
    gate.opened.set()
    await sealing
    assert len(purges) == 1
    await service.unsealing.unseal(CONFIGURED, lambda: None)
    await service.minutes.again()

    assert await service.store.tombstone(id_of(interrupted)) is not None
    assert await service.store.count_grants(id_of(interrupted)) == 0
    assert len(purges) == 2


async def test_many_grants_are_removed_in_batches(
    service: Embedded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Behind the commit; who is stopped between two of them goes on at the next start."""
    monkeypatch.setattr(destruction_module, "_GRANTS", 2)
    arn = await service.make_key()
    for number in range(5):
        await grant(service, arn, number)
    await schedule(service, arn, 7)
    service.time.let_pass(7 * DAY)
    key_id = id_of(arn)

    grants = service.store.grants
    reads = 0

    async def grants_until_the_second(*arguments: Any, **members: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise StoreUnavailableError("gone")
        return await grants(*arguments, **members)

    monkeypatch.setattr(service.store, "grants", grants_until_the_second)
    await service.housekeeping.look()
    tombstone = await service.store.tombstone(key_id)
    assert tombstone is not None
    assert tombstone.grants_left
    assert await service.store.count_grants(key_id) == 3

    directory, host = service.directory, service.time
    await service.close()
    again = await Embedded.open(directory, initialize=False, host_time=host)
    await again.unsealing.unseal(CONFIGURED, lambda: None)
    await again.minutes.again()

    assert await again.store.count_grants(key_id) == 0
    tombstone = await again.store.tombstone(key_id)
    assert tombstone is not None
    assert not tombstone.grants_left
    await again.close()


@pytest.mark.parametrize("switch", ["intent", "commit", "outcome"])
async def test_a_kill_leaves_one_of_two_states(tmp_path: Path, switch: str) -> None:
    """Everything, or nothing but the tombstone; the next start tells which, and brings it to its end, once."""
    host = HostTime()
    service = await Embedded.open(tmp_path, host_time=host)
    arn = await service.make_key()
    await schedule(service, arn, 7)
    host.let_pass(7 * DAY)
    await service.store.commit(None, [Replace(_warned(await row_of(service, arn)))])
    # From this moment on nothing reaches the trail, as if the process had ended.
    kinds = {"intent": (Kind.INTENT, Kind.OUTCOME)}.get(switch, (Kind.OUTCOME,))
    service.trail.refuses = kind_is(*kinds)
    if switch == "commit":
        service.store.faults["commit"] = StoreUnavailableError("gone")
    await service.housekeeping.look()
    service.store.faults.clear()
    destroyed = switch == "outcome"
    tombstone = await service.store.tombstone(id_of(arn))
    assert (tombstone is not None) is (await service.store.key(id_of(arn)) is None) is destroyed
    await service.housekeeping.close()
    await service.close()

    service = await Embedded.open(tmp_path, initialize=False, host_time=host)
    await service.unsealing.unseal(CONFIGURED, lambda: None)
    await Settling(service.store, service.trail).settle()
    await service.minutes.again()

    assert told(service, "DeleteKey") == [("DeleteKey", id_of(arn))]
    with pytest.raises(NotFoundError):
        await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await service.close()


def _warned(row: Any) -> Any:
    warned = msgspec.structs.replace(row, deletion_warned=True, version=row.version + 1)
    return msgspec.structs.replace(warned, due_ms=warned.deletion_ms)


async def test_by_a_clock_that_was_never_set_no_date_is_counted(open_service: OpenService) -> None:
    """It would have passed once the clock is set; everything else works."""
    service = await open_service(host_time=HostTime(1000.0))
    arn = await service.make_key()
    for ask in (schedule(service, arn, 7), rotate_every(service, arn, 90)):
        with pytest.raises(UnsupportedOperationError, match="was never set"):
            await ask
    assert await decrypt(service, await encrypt(service, arn)) == SECRET

    service.time.step(1_800_000_000)
    await service.housekeeping.look()
    await outlive(service, arn)

    assert told(service) == [
        ("ClockInDoubt", ""),
        ("ClockBelieved", ""),
        ("WarnOfKeyDeletion", id_of(arn)),
        ("DeleteKey", id_of(arn)),
    ]


async def test_a_clock_that_jumps_destroys_nothing(service: Embedded) -> None:
    """By ten years or forty days; nor does one that was behind when the deletion was scheduled, and is mended."""
    first = await service.make_key()
    await schedule(service, first, 7)
    service.time.step(40 * DAY)
    second = await service.make_key()
    await schedule(service, second, 7)
    service.time.step(-80 * DAY)
    third = await service.make_key()
    await schedule(service, third, 7)
    for jump in (40 * DAY, 3650 * DAY, -3650 * DAY):
        service.time.step(jump)
        await service.housekeeping.look()
    assert told(service, "DeleteKey") == []
    assert (await row_of(service, third)).deletion_ms >= service.wall_ms() + 7 * DAY_MS - 1000

    service.time.let_pass(7 * DAY + 1)
    await service.housekeeping.look()

    assert sorted(told(service, "DeleteKey")) == sorted(("DeleteKey", id_of(arn)) for arn in (first, third))
    service.time.step(40 * DAY)
    await service.housekeeping.look()
    assert len(told(service, "DeleteKey")) == 2
    await confirm_clock(service)
    await service.housekeeping.look()
    assert told(service, "DeleteKey")[-1] == ("DeleteKey", id_of(second))


async def test_no_clock_jumps_over_a_window_that_was_promised(open_service: OpenService) -> None:
    """A host boots with a clock that is behind, and learns the time when a deletion was scheduled."""
    service = await open_service()
    arn, host = await service.make_key(), service.time
    directory = service.directory
    await service.close()
    host.boot(0.0)
    service = await Embedded.open(directory, initialize=False, host_time=host)
    await service.unsealing.unseal(CONFIGURED, lambda: None)
    await service.minutes.again()
    await schedule(service, arn, 7)
    row = await service.store.housekeeping()
    assert row is not None
    assert row.slack_ms == TOLERANCE_MS, "it was committed together"

    host.step(20 * DAY)
    await service.housekeeping.look()

    assert told(service, "DeleteKey") == []
    assert told(service, "ClockInDoubt") == [("ClockInDoubt", "")]
    host.let_pass(7 * DAY)
    await service.housekeeping.look()
    assert told(service, "DeleteKey") == [("DeleteKey", id_of(arn))]
    await service.close()
