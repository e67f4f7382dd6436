"""What counts as a use of a key, and that no use is lost by a flush that fails, a seal, or a kill."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    AuditUnavailableError,
    DryRunOperationError,
    InvalidCiphertextError,
    KMSInternalError,
    LimitExceededError,
    StorageError,
    ThrottlingError,
)
from kmsd.api.keys import DISABLE_KEY, EnableKeyRequest
from kmsd.audit.chain import GENESIS
from kmsd.envelope.pool import FileOutcome
from kmsd.service.key_use import Counted, KeyUse, Tracking
from kmsd.service.seal import CONFIGURED
from kmsd.service.unsealing import system_record
from kmsd.service.uses import BATCH_ROWS
from kmsd.store.base import Delete, Insert, Replace, StoreUnavailableError
from kmsd.store.rows import HousekeepingRow, UsageRow
from tests.support.embedded import ALICE, BOB, Embedded, Gate
from tests.support.killed import open_again
from tests.support.uses import (
    counted,
    decrypt,
    decrypt_file,
    encrypt,
    encrypt_file,
    hand_credential_out,
    keep_credential,
    last_usage,
    re_encrypt,
    use_in_all_ways,
)

OpenService = Callable[..., Awaitable[Embedded]]
FULL = StoreUnavailableError("the store cannot be written: No space left on device")
DAY_SECONDS = 86_400
EACH_ONCE = dict.fromkeys(
    ("Decrypt", "DecryptFile", "Encrypt", "EncryptFile", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext"), 1
)


async def uses(service: Embedded, arn: str) -> dict[str, int]:
    return (await last_usage(service, arn)).uses


async def stored(service: Embedded, arn: str) -> UsageRow | None:
    return await service.store.usage(arn.rpartition("/")[2])


async def housekeeping(service: Embedded) -> HousekeepingRow:
    row = await service.store.housekeeping()
    assert row is not None
    return row


async def end_files(service: Embedded, error: Any = None) -> None:
    """Have every file's worker report, and wait for the record of it."""
    for stream in service.pool.streams:
        if not stream.reported.done():
            stream.reported.set_result(FileOutcome(plaintext_bytes=1, message_bytes=2, error=error))
    await asyncio.gather(*(stream.acknowledged for stream in service.pool.streams))


async def test_every_use_of_a_key_counts(service: Embedded) -> None:
    """Under the operation's own name, and for the version of the material that was used."""
    arn = await service.make_key()

    await use_in_all_ways(service, arn)

    told = await last_usage(service, arn)
    assert told.uses == EACH_ONCE
    [material] = told.material
    assert (material.number, material.encrypted, material.decrypted) == (1, 4, 2)


async def test_a_re_encryption_is_a_use_of_both_keys(service: Embedded) -> None:
    """Of the one it decrypts, of the other it encrypts, and of one and the same both."""
    source, destination = await service.make_key(), await service.make_key()
    blob = await re_encrypt(service, await encrypt(service, source), destination)

    await re_encrypt(service, blob, destination)

    told = [await last_usage(service, arn) for arn in (source, destination)]
    assert [one.uses for one in told] == [{"Encrypt": 1, "ReEncrypt": 1}, {"ReEncrypt": 3}]
    assert [(one.material[0].encrypted, one.material[0].decrypted) for one in told] == [(1, 1), (2, 1)]


async def test_a_secret_of_a_unit_is_a_use_of_the_unit_s_key(service: Embedded) -> None:
    """When it is kept, and each time the unit starts."""
    arn = await keep_credential(service)
    await hand_credential_out(service)
    await hand_credential_out(service)

    assert await counted(service, arn) == {"CreateCredential": 1, "GetCredential": 2}


async def test_what_was_not_done_is_no_use(service: Embedded) -> None:
    """A dry run, a refusal, a blob that was changed, a key that is disabled."""
    arn = await service.make_key()
    blob = await encrypt(service, arn)

    with pytest.raises(DryRunOperationError):
        await encrypt(service, arn, dry_run=True)
    with pytest.raises(DryRunOperationError):
        await decrypt(service, blob, dry_run=True)
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn, BOB)
    with pytest.raises(InvalidCiphertextError):
        await decrypt(service, blob[:-1] + bytes([blob[-1] ^ 1]))
    await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))
    with pytest.raises(Exception, match="is disabled"):
        await encrypt(service, arn)

    assert await uses(service, arn) == {"Encrypt": 1}


async def test_a_file_counts_once_a_worker_has_its_key(service: Embedded) -> None:
    """Not before; from then on it counts whatever becomes of it."""
    arn = await service.make_key()
    service.pool.fault = ThrottlingError("all workers are busy")
    with pytest.raises(ThrottlingError):
        await encrypt_file(service, arn)
    assert await uses(service, arn) == {}
    service.pool.fault = None

    await encrypt_file(service, arn)
    await end_files(service, KMSInternalError("the disk is full"))

    assert await uses(service, arn) == {"EncryptFile": 1}


async def test_uses_outlive_what_is_in_memory_of_the_key(service: Embedded) -> None:
    """A change of the key has its record read anew, while requests may have the old one still."""
    arn = await service.make_key()
    await encrypt(service, arn)
    old = service.records.get(arn)
    service.records.forget(old.key_id)
    await encrypt(service, arn)

    old.use.note_encryption("Encrypt", "0", 1)

    assert await uses(service, arn) == {"Encrypt": 3}


async def test_a_flush_stores_what_was_counted(service: Embedded) -> None:
    """Each minute, and up to which record of the trail."""
    arn = await service.make_key()
    before = await housekeeping(service)
    await encrypt(service, arn)
    assert await stored(service, arn) is None

    await service.minutes.wake()
    await service.minutes.again()

    row = await stored(service, arn)
    assert row is not None
    assert (row.counts, row.operation, row.request_id) == ({"Encrypt": 1}, "Encrypt", service.newest()["requestID"])
    assert (await housekeeping(service)).counted_sequence == service.trail.head[0] > before.counted_sequence
    assert service.minutes.seconds == [60.0, 60.0]


async def test_what_was_stored_takes_no_memory(service: Embedded) -> None:
    """Of a key that nobody uses any more and that was forgotten, nothing is left."""
    arn = await service.make_key()
    await encrypt(service, arn)
    use = weakref.ref(service.records.get(arn).use)
    await service.uses.flush()
    service.records.forget(arn.rpartition("/")[2])
    gc.collect()

    assert use() is None
    assert await uses(service, arn) == {"Encrypt": 1}


async def test_an_idle_daemon_writes_nothing(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """But after so many records of other things that it would take long to read them again."""
    monkeypatch.setattr("kmsd.service.uses.IDLE_RECORDS", 20)
    await service.uses.flush()
    service.store.calls.clear()
    service.trail.append([system_record("Start")] * 10)
    await service.uses.flush()
    assert service.store.calls == []

    service.trail.append([system_record("Start")] * 10)
    await service.uses.flush()

    assert service.store.calls.count("commit") == 1
    assert (await housekeeping(service)).counted_sequence == service.trail.head[0]


@pytest.mark.parametrize("point", ["commit", "committing"])
async def test_a_flush_that_fails_is_tried_again(service: Embedded, point: str) -> None:
    """Whether the store had taken it after all or not: each use counts once."""
    arn = await service.make_key()
    await encrypt(service, arn)
    service.store.faults[point] = FULL
    with pytest.raises(StorageError, match="No space left"):
        await service.uses.flush()
    await encrypt(service, arn)
    assert await uses(service, arn) == {"Encrypt": 2}
    with pytest.raises(StorageError):
        await service.uses.flush()
    del service.store.faults[point]
    await encrypt(service, arn)

    await service.uses.flush()

    row = await stored(service, arn)
    assert row is not None
    assert row.counts == await uses(service, arn) == {"Encrypt": 3}
    assert row.materials["1"].encrypted == 3


async def test_a_flush_whose_time_is_over_goes_on_to_its_end(service: Embedded) -> None:
    """Otherwise nobody could tell whether it was stored; the next flush waits for it."""
    arn = await service.make_key()
    await encrypt(service, arn)
    gate = service.store.gates["commit"] = Gate()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(service.uses.flush(), 0.01)
    await encrypt(service, arn)
    assert await uses(service, arn) == {"Encrypt": 2}
    flush = asyncio.ensure_future(service.uses.flush())
    await asyncio.sleep(0)

    gate.opened.set()
    await flush

    row = await stored(service, arn)
    assert row is not None
    assert (row.counts, row.version) == ({"Encrypt": 2}, 2)


async def test_others_may_change_the_same_rows(service: Embedded) -> None:
    """Housekeeping notes its own progress where uses note theirs, and neither loses anything."""
    arn = await service.make_key()
    await encrypt(service, arn)
    gate = service.store.gates["commit"] = Gate()
    flush = asyncio.ensure_future(service.uses.flush())
    await gate.arrived.wait()
    row = await housekeeping(service)
    gates, service.store.gates = service.store.gates, {}
    await service.store.commit(None, [Replace(msgspec.structs.replace(row, daily_ms=7, version=row.version + 1))])
    gates["commit"].opened.set()

    await flush

    assert (await housekeeping(service)).daily_ms == 7
    found = await stored(service, arn)
    assert found is not None
    assert found.counts == {"Encrypt": 1}


async def test_a_key_that_was_destroyed_leaves_no_uses_behind(service: Embedded) -> None:
    """What was counted of it is of no interest, and keeps nothing else from being stored."""
    arn, other = await service.make_key(), await service.make_key()
    await encrypt(service, arn)
    await service.uses.flush()
    await encrypt(service, arn)
    await encrypt(service, other)
    row, key = await stored(service, arn), await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    assert key is not None
    await service.store.commit(None, [Delete(row), Delete(key)])

    await service.uses.flush()

    assert await stored(service, arn) is None
    assert await uses(service, other) == {"Encrypt": 1}


async def test_uses_of_many_keys_are_stored_piece_by_piece(service: Embedded) -> None:
    """So that neither requests nor the store wait for all of them; what fails in between is tried again."""
    arn = await service.make_key()
    model = await service.store.key(arn.rpartition("/")[2])
    assert model is not None
    rows = [msgspec.structs.replace(model, key_id=f"{number:036}") for number in range(2 * BATCH_ROWS + 1)]
    for row in rows:
        service.uses.of(row, None).note_encryption("Encrypt", row.key_id, 1)
    await service.store.commit(None, [Insert(row) for row in rows])
    service.store.calls.clear()
    gate = service.store.gates["committing"] = Gate()
    flush = asyncio.ensure_future(service.uses.flush())
    await gate.arrived.wait()
    service.store.faults["commit"] = FULL
    gate.opened.set()
    with pytest.raises(StorageError):
        await flush
    assert service.store.calls.count("commit") == 2
    service.store.faults.clear()

    await service.uses.flush()

    assert service.store.calls.count("commit") == 4
    found = [await service.store.usage(row.key_id) for row in rows]
    assert all(one is not None and one.counts == {"Encrypt": 1} for one in found)


async def test_sealing_stores_what_was_counted(service: Embedded) -> None:
    """The minute is not waited for, and the next unseal counts nothing again."""
    arn = await service.make_key()
    await encrypt(service, arn)
    await encrypt_file(service, arn)

    await service.unsealing.seal()
    await end_files(service)
    await service.unsealing.unseal(CONFIGURED, lambda: None)

    assert await uses(service, arn) == {"Encrypt": 1, "EncryptFile": 1}


async def test_what_a_seal_cannot_store_is_kept_until_the_next_unseal(service: Embedded) -> None:
    """A full disk keeps nobody from sealing."""
    arn = await service.make_key()
    await encrypt(service, arn)
    service.store.faults["commit"] = FULL
    await service.unsealing.seal()
    service.store.faults.clear()
    assert "uses_not_stored" in service.log.getvalue()

    await service.unsealing.unseal(CONFIGURED, lambda: None)
    await service.uses.flush()

    row = await stored(service, arn)
    assert row is not None
    assert row.counts == {"Encrypt": 1}


async def test_a_kill_loses_no_use(service: Embedded) -> None:
    """What was not stored is counted from the trail: by operation, the last one with its time and its request."""
    arn, other = await service.make_key(), await service.make_key()
    await encrypt(service, arn)
    await service.uses.flush()
    await use_in_all_ways(service, arn)
    await end_files(service)
    await re_encrypt(service, await encrypt(service, arn), other)
    await re_encrypt(service, await encrypt(service, other), other)
    with pytest.raises(DryRunOperationError):
        await encrypt(service, arn, dry_run=True)
    before = [await last_usage(service, one) for one in (arn, other)]

    again = await open_again(service)

    try:
        after = [await last_usage(again, one) for one in (arn, other)]
        assert [one.uses for one in after] == [one.uses for one in before]
        last = [(one.key_last_usage.operation, one.key_last_usage.kms_request_id) for one in after]  # type: ignore[union-attr] # both were used
        assert last == [(one.key_last_usage.operation, one.key_last_usage.kms_request_id) for one in before]  # type: ignore[union-attr] # both were used
    finally:
        await again.close()


async def test_files_under_way_at_a_kill_count(service: Embedded) -> None:
    """Their workers had a key; one that never had one was not used."""
    arn = await service.make_key()
    header = await encrypt_file(service, arn)
    service.pool.fault = ThrottlingError("all workers are busy")
    with pytest.raises(ThrottlingError):
        await encrypt_file(service, arn)
    service.pool.fault = None
    await decrypt_file(service, header)

    again = await open_again(service)

    try:
        assert await uses(again, arn) == {"EncryptFile": 1, "DecryptFile": 1}
    finally:
        await again.close()


async def test_a_kill_is_made_good_once(service: Embedded) -> None:
    """Also when the next kill comes before anything was stored, and when one comes after."""
    arn = await service.make_key()
    await encrypt(service, arn)
    service = await open_again(service)
    assert await uses(service, arn) == {"Encrypt": 1}
    service.store.faults["commit"] = FULL
    await encrypt(service, arn)
    service = await open_again(service)
    await service.uses.keep()

    service = await open_again(service)

    try:
        assert await uses(service, arn) == {"Encrypt": 2}
    finally:
        await service.close()


async def test_a_seal_while_the_trail_is_counted_loses_nothing(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was counted so far is not counted again, nor what is used meanwhile; nothing is stored before all is."""
    arn = await service.make_key()
    for _ in range(3):
        await encrypt(service, arn)
    read, reads = type(service.trail).read, itertools.count()

    def fails_later(trail: Any, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        if next(reads) >= 5:
            raise AuditUnavailableError("audit trail: Input/output error")
        # Line by line, so that it has counted some when it fails.
        return read(trail, after_seq=after_seq, limit=min(limit, 1), max_bytes=max_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(type(service.trail), "read", fails_later)
        service = await open_again(service)
        with pytest.raises(AuditUnavailableError):
            await service.uses.recount()
        assert 0 < (await counted(service, arn))["Encrypt"] < 3
        await encrypt(service, arn)
        await service.unsealing.seal()

    await service.unsealing.unseal(CONFIGURED, lambda: None)

    try:
        assert await uses(service, arn) == {"Encrypt": 4}
        await service.uses.keep()
        service = await open_again(service)
        assert await uses(service, arn) == {"Encrypt": 4}
    finally:
        await service.close()


def test_what_the_trail_tells_again_is_not_the_last_use() -> None:
    """A kill in the middle of a flush has some uses both stored and counted again."""
    use = KeyUse("key", Tracking(lambda: 9.0, lambda: 9000))
    members = {"last_ms": 5000, "operation": "Decrypt", "request_id": "new", "counts": {"Decrypt": 1}}
    use.learn(0, msgspec.convert({"key_id": "key", "tracking_ms": 0, "version": 1, **members}, UsageRow))
    earlier = Counted()
    earlier.count("Encrypt", "old", 3.0, 1)

    use.recount(earlier)

    total = use.total()
    assert total is not None
    assert (total.last_ms, total.operation, total.request_id) == (5000, "Decrypt", "new")
    assert total.counts == {"Decrypt": 1, "Encrypt": 1}


async def test_a_trail_that_cannot_be_read_is_counted_later(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks meanwhile is told so, and not that the key was not used."""
    arn = await service.make_key()
    await encrypt(service, arn)
    service = await open_again(service)

    def fails(**_: Any) -> list[str]:
        raise AuditUnavailableError("audit trail: Input/output error")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(service.trail, "read", fails)
            with pytest.raises(AuditUnavailableError):
                await last_usage(service, arn)
            assert service.records.get(arn).use.days_unused() is None
        assert await uses(service, arn) == {"Encrypt": 1}
    finally:
        await service.close()


def without_one(lines: list[str]) -> list[str]:
    return lines[:1] + lines[2:]


def with_another(lines: list[str]) -> list[str]:
    return [*lines[:1], "{}", *lines[1:]]


def of_a_new_chain(lines: list[str]) -> list[str]:
    """As an administrator begins one who repairs a trail."""
    return lines[:1] + [re.sub('"prev":"[0-9a-f]+"', f'"prev":"{GENESIS.digest}"', line) for line in lines[1:2]]


def nothing(_: list[str]) -> list[str]:
    return []


def too_long_a_line(_: list[str]) -> list[str]:
    raise LimitExceededError("the record has more bytes than were asked for")


@pytest.mark.parametrize("lost", [without_one, with_another, of_a_new_chain, nothing, too_long_a_line])
async def test_where_the_trail_cannot_tell_tracking_begins_anew(
    service: Embedded, lost: Callable[[list[str]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key is known to be unused before that, and the log tells why."""
    arn = await service.make_key()
    await encrypt(service, arn)
    service.wall_time += 10 * DAY_SECONDS
    read = type(service.trail).read
    monkeypatch.setattr(type(service.trail), "read", lambda trail, **members: lost(read(trail, **members)))

    await check_that_tracking_begins_anew(service, arn)


@pytest.mark.parametrize("change", [{"counted_sequence": 1000}, {"counted_digest": "f" * 64}])
async def test_another_trail_tells_nothing(service: Embedded, change: dict[str, Any]) -> None:
    """A store that was restored from a backup may have come to a trail that tells of another one."""
    arn = await service.make_key()
    row = await housekeeping(service)
    await service.store.commit(None, [Replace(msgspec.structs.replace(row, version=row.version + 1, **change))])
    service.wall_time += 10 * DAY_SECONDS

    await check_that_tracking_begins_anew(service, arn)


async def check_that_tracking_begins_anew(service: Embedded, arn: str) -> None:
    service = await open_again(service)
    try:
        told = await last_usage(service, arn)
        await service.uses.flush()
        row = await housekeeping(service)
    finally:
        await service.close()
    assert told.tracking_start_date.timestamp() == pytest.approx(service.wall_time, abs=1)
    assert told.tracking_start_date > told.key_creation_date
    assert row.tracking_ms == int(told.tracking_start_date.timestamp() * 1000)
    assert "uses_not_known" in service.log.getvalue()


async def test_a_flush_waits_for_the_trail_to_be_on_the_disk(service: Embedded) -> None:
    """After a power cut the trail must not be shorter than what the store says was counted of it."""
    arn = await service.make_key()
    await encrypt(service, arn)
    service.trail.unsyncable = True
    with pytest.raises(AuditUnavailableError):
        await service.uses.flush()
    assert await stored(service, arn) is None
    service.trail.unsyncable = False

    await service.uses.flush()

    row = await stored(service, arn)
    assert row is not None
    assert row.counts == {"Encrypt": 1}


async def test_keys_that_are_older_than_tracking_are_tracked_from_then_on(tmp_path: Path) -> None:
    """A kmsd that counted nothing made them; what they were used for by then, only the trail tells."""
    service = await Embedded.open(tmp_path)
    arn = await service.make_key()
    await encrypt(service, arn)
    row = await housekeeping(service)
    old = msgspec.structs.replace(row, counted_sequence=0, tracking_ms=0, version=row.version + 1)
    await service.store.commit(None, [Replace(old)])
    service.wall_time += 100

    service = await open_again(service)

    try:
        told = await last_usage(service, arn)
        assert told.key_last_usage is None
        assert told.tracking_start_date.timestamp() == pytest.approx(service.wall_time, abs=1)
        await encrypt(service, arn)
        await service.uses.keep()
        row_of_key = await stored(service, arn)
        assert row_of_key is not None
        assert row_of_key.tracking_ms == int(told.tracking_start_date.timestamp() * 1000)
    finally:
        await service.close()


async def test_a_clock_that_ran_ahead_leaves_no_use_in_the_future(open_service: OpenService) -> None:
    """Neither the last use nor the beginning of tracking: else a key could not be given up for years."""
    service = await open_service()
    arn = await service.make_key()
    service.time.step(400 * 86_400)
    await encrypt(service, arn)
    await service.uses.flush()
    service.time.step(-400 * 86_400)

    service.time.let_pass(10 * 86_400)

    assert service.records.get(arn).use.days_unused() == 10
    row = await stored(service, arn)
    assert row is not None
    assert max(row.last_ms, row.materials["1"].last_ms, row.tracking_ms) < service.wall_ms()


async def test_a_clock_that_runs_ahead_makes_no_key_look_unused(service: Embedded) -> None:
    """Neither does one that is behind when the key is used: what counts is the time that is sure to have passed."""
    arn = await service.make_key()
    await encrypt(service, arn)
    certain = service.wall_time
    service.time.step(400 * DAY_SECONDS)
    assert service.records.get(arn).use.days_unused() == 0

    service.time.step(-800 * 86_400)
    await encrypt(service, arn)

    assert service.records.get(arn).use.days_unused() == 0
    await service.uses.flush()
    row = await stored(service, arn)
    assert row is not None
    assert row.last_ms >= int(certain * 1000)
