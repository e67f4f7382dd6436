"""Making lines durable, and failing closed while that fails."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.syncing import INTERVAL_SECONDS, REFUSE_AFTER_SECONDS
from kmsd.audit.verify import Report, read_lines, verify
from kmsd.audit.writer import SyncMode, Trail

if TYPE_CHECKING:
    from tests.audit.conftest import FaultySystem, MakeRecord, OpenTrail

EIO = OSError(errno.EIO, "Input/output error")


@pytest.fixture
def hang(system: FaultySystem) -> Iterator[threading.Event]:
    """Lets fdatasync return, at the latest when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def wait_until_it_appends(trail: Trail, make_record: MakeRecord) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            trail.append([make_record()])
        except AuditUnavailableError:
            assert time.monotonic() < until
            time.sleep(0.005)
        else:
            return


def test_interval_syncs_by_itself_and_not_too_often(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem
) -> None:
    """At most every 50 ms, however much is appended, and once more for what came last."""
    trail = open_trail(sync=SyncMode.INTERVAL, system=system)
    before, started = system.counts["fdatasync"], time.monotonic()

    while time.monotonic() - started < 6 * INTERVAL_SECONDS:
        trail.append([make_record()])
    count, elapsed = system.counts["fdatasync"] - before, time.monotonic() - started

    assert 1 <= count <= elapsed / INTERVAL_SECONDS + 1
    system.wait_for_syncs(before + count + 1)


@pytest.mark.parametrize("mode", [SyncMode.ALWAYS, SyncMode.OS])
async def test_other_modes_sync_only_when_asked(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem, mode: SyncMode
) -> None:
    """Whoever appends awaits it (always), or does not care (os); an intent is awaited in every mode."""
    trail = open_trail(sync=mode, system=system)
    before = system.counts["fdatasync"]
    trail.append([make_record()])
    await asyncio.sleep(2 * INTERVAL_SECONDS)
    assert system.counts["fdatasync"] == before

    await trail.sync()

    assert (trail.mode, system.counts["fdatasync"]) == (mode, before + 1)


async def test_many_who_wait_share_a_sync(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem, hang: threading.Event
) -> None:
    """Those who come while one runs wait for the next: it may have begun before their lines were written."""
    trail = open_trail(system=system)
    before = system.counts["fdatasync"]
    system.hang = hang
    first = asyncio.create_task(trail.sync())
    await system.sync_begins(before)
    others = [asyncio.create_task(trail.sync()) for _ in range(50)]
    others[0].cancel()
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in (first, *others[1:]))

    hang.set()
    await asyncio.gather(first, *others[1:])

    assert system.counts["fdatasync"] == before + 2


async def test_a_failed_sync_closes_the_trail_until_one_succeeds(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem, path: Path
) -> None:
    """It is tried again without anybody asking."""
    trail = open_trail(system=system)
    trail.append([make_record()])
    system.faults["fdatasync"] = EIO
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: sync failed: Input/output error"):
        await trail.sync()
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: sync failed: Input/output error"):
        trail.append([make_record()])
    system.wait_for_syncs(system.counts["fdatasync"] + 2)

    del system.faults["fdatasync"]
    wait_until_it_appends(trail, make_record)

    await trail.sync()
    assert verify_file(path).last_seq == trail.head[0] == 2


def test_a_failed_sync_that_nobody_awaited_closes_the_trail_too(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem
) -> None:
    """In the interval mode the next appends hear of it."""
    trail = open_trail(sync=SyncMode.INTERVAL, system=system)
    system.faults["fdatasync"] = EIO
    with pytest.raises(AuditUnavailableError, match="sync failed"):
        append_until_refused(trail, make_record)

    system.faults.clear()
    wait_until_it_appends(trail, make_record)


def append_until_refused(trail: Trail, make_record: MakeRecord) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        trail.append([make_record()])
        time.sleep(0.005)


def verify_file(path: Path) -> Report:
    with path.open("rb") as stream:
        return verify(read_lines(stream))


def lose_all_but_the_first_line(path: Path) -> bytes:
    """Do as if the kernel had dropped the pages behind it and read back what the disk has; return what was."""
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    with path.open("r+b") as stream:
        stream.seek(start)
        stream.write(bytes(len(whole) - start))
    return whole


def restore(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)


async def test_lines_that_a_failed_sync_lost_keep_the_trail_closed(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem, path: Path
) -> None:
    """Linux reports a write error once; a second fdatasync that succeeds proves nothing about the first one's lines."""
    trail = open_trail(system=system)
    trail.append([make_record()])
    await trail.sync()
    trail.append([make_record()] * 2)
    system.faults["fdatasync"] = EIO
    with pytest.raises(AuditUnavailableError, match="sync failed"):
        await trail.sync()
    whole = lose_all_but_the_first_line(path)

    del system.faults["fdatasync"]
    with pytest.raises(AuditUnavailableError, match="lost"):
        await trail.sync()
    with pytest.raises(AuditUnavailableError, match="lost"):
        trail.append([make_record()])

    restore(path, whole)
    wait_until_it_appends(trail, make_record)


async def test_a_sync_that_hangs_closes_the_trail(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem, hang: threading.Event
) -> None:
    """Soon, and without a write that might hang as well; no more lines pile up than a power cut may take."""
    trail = open_trail(sync=SyncMode.INTERVAL, system=system)
    before = system.counts["fdatasync"]
    system.hang = hang
    trail.append([make_record()])
    await system.sync_begins(before)
    trail.append([make_record()])

    writes = system.counts["write"]
    system.late = REFUSE_AFTER_SECONDS + 0.1
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: a sync has not returned for 1 s"):
        trail.append([make_record()])
    assert system.counts["write"] == writes

    hang.set()
    wait_until_it_appends(trail, make_record)


@pytest.mark.parametrize("turns", range(6))
async def test_who_is_cancelled_while_the_sync_returns_is_cancelled(
    open_trail: OpenTrail, system: FaultySystem, hang: threading.Event, turns: int
) -> None:
    """However many turns of the loop after it: who swallows that goes on for ever in a daemon that stops."""
    trail = open_trail(system=system)
    before = system.counts["fdatasync"]
    system.hang = hang

    async def wait_and_go_on() -> None:
        await trail.sync()
        await asyncio.sleep(60)

    task = asyncio.create_task(wait_and_go_on())
    await system.sync_begins(before)
    hang.set()
    time.sleep(0.05)  # noqa: ASYNC251 - the thread is done meanwhile, and the loop has yet to hear of it
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()

    _, waiting = await asyncio.wait({task}, timeout=10)
    assert not waiting
    assert task.cancelled()


async def test_waiting_for_a_sync_that_hangs_ends(
    open_trail: OpenTrail, system: FaultySystem, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a longer time, as it was appended already."""
    monkeypatch.setattr("kmsd.audit.syncing.DEADLINE_SECONDS", 0.05)
    monkeypatch.setattr("kmsd.audit.syncing.REFUSE_AFTER_SECONDS", 0.01)
    trail = open_trail(system=system)
    system.hang = hang

    with pytest.raises(AuditUnavailableError, match="has not returned"):
        await trail.sync()
    with pytest.raises(AuditUnavailableError, match="has not returned"):
        trail.close()


def test_closing_syncs_what_is_left(open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem) -> None:
    """In every mode, and says when it cannot."""
    trail = open_trail(system=system)
    before = system.counts["fdatasync"]
    trail.append([make_record()])
    trail.close()
    assert system.counts["fdatasync"] == before + 1

    trail = open_trail(system=system)
    system.faults["fdatasync"] = EIO
    with pytest.raises(AuditUnavailableError, match="sync failed"):
        trail.close()
    system.faults.clear()
    open_trail(system=system)


def comes_to(trail: Trail, *, lag: bool) -> bool:
    """Tell whether something waits to be on the disk, or nothing does, as soon as it is so."""
    until = time.monotonic() + 10
    while bool(trail.lag_seconds) is not lag and time.monotonic() < until:
        time.sleep(0.001)
    return bool(trail.lag_seconds) is lag


def test_the_lag_is_that_of_the_oldest_line_that_waits(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem, hang: threading.Event
) -> None:
    """It grows while a disk hangs, whatever comes behind it, and is nothing when all lines are on the disk."""
    trail = open_trail(sync=SyncMode.INTERVAL, system=system)
    assert comes_to(trail, lag=False)
    system.hang = hang
    trail.append([make_record()])
    system.late += REFUSE_AFTER_SECONDS / 2
    trail.append([make_record()])
    system.late += 5

    assert trail.lag_seconds is not None
    assert trail.lag_seconds >= REFUSE_AFTER_SECONDS / 2 + 5

    hang.set()
    assert comes_to(trail, lag=False)


def test_the_lag_goes_on_while_syncs_fail(open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem) -> None:
    """A sync that failed took nothing to the disk."""
    trail = open_trail(sync=SyncMode.INTERVAL, system=system)
    assert comes_to(trail, lag=False)
    system.faults["fdatasync"] = EIO
    trail.append([make_record()])
    system.wait_for_syncs(system.counts["fdatasync"] + 2)
    system.late += 5

    assert trail.lag_seconds is not None
    assert trail.lag_seconds >= 5

    del system.faults["fdatasync"]
    assert comes_to(trail, lag=False)


def test_without_syncs_there_is_no_lag(open_trail: OpenTrail, make_record: MakeRecord) -> None:
    """The kernel writes when it likes."""
    trail = open_trail(sync=SyncMode.OS)
    trail.append([make_record()])

    assert trail.lag_seconds is None


def test_what_is_written_is_counted(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """In bytes, since the trail was opened."""
    trail = open_trail()
    before = path.stat().st_size
    trail.append([make_record(), make_record()])
    trail.append([make_record()])

    assert trail.written_bytes == path.stat().st_size - before
