"""From the trail into the event log, across kills, lost files and trouble: `kmsd.service.event_feed`."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmsd.api.errors import AuditUnavailableError, LimitExceededError
from kmsd.api.events import Event
from kmsd.audit.record import Actor, Kind, Record
from kmsd.audit.rotation import Rotation
from kmsd.audit.writer import SyncMode, Trail
from kmsd.events.log import EventLog
from kmsd.events.projection import Projection
from kmsd.logs import StructuredLogger
from kmsd.service import event_feed
from kmsd.service.event_feed import EventFeed
from kmsd.service.unsealing import system_record

PROJECTION = Projection("123456789012", "local-host-1")
ACTOR = Actor(uid=1000, gid=1000, user="alice", pid=7, unit=None, exe=None)
REQUEST = Record(Kind.REQUEST, "Encrypt", ACTOR, "", read_only=True)
EVENT = system_record("TokenBack")


# What a step appends.
APPENDED = {"request": [REQUEST], "event": [EVENT], "batch": [REQUEST, EVENT, EVENT, REQUEST]}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever is waited for tells nobody
            await asyncio.sleep(0.001)


class Running:
    """A trail and its feed, which can be killed: nothing is closed as it should be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = io.StringIO()
        self.trail = Trail.open(
            directory / "audit.log", sync=SyncMode.OS, clock=time.time, rotation=Rotation(4096, 86_400)
        )
        self.start_feed()

    def start_feed(self) -> None:
        self.feed = EventFeed(
            trail=self.trail,
            path=self.directory / "events.jsonl",
            projection=PROJECTION,
            logger=StructuredLogger(self.log),
            sleep=lambda _: asyncio.sleep(0.001),
        )
        self.feed.start()

    async def caught_up(self) -> EventLog:
        return await asyncio.wait_for(self.feed.caught_up(), 10)

    async def kill(self) -> None:
        self.feed._feeding.end()
        self.feed._keeping.end()
        await asyncio.sleep(0)
        self.trail.close()

    async def stop(self) -> None:
        await self.feed.close(10)
        self.trail.close()

    def expected(self) -> list[Event]:
        lines = self.trail.read(after_seq=0, limit=100_000, max_bytes=1 << 30)
        return [event for line in lines if (event := PROJECTION.event_of(line)) is not None]


def logged(directory: Path) -> list[Event]:
    return EventLog.open(directory / "events.jsonl").events()


async def test_an_event_is_told_when_it_happens(tmp_path: Path) -> None:
    """And what does not matter is not."""
    running = Running(tmp_path)
    log = await running.caught_up()
    changed = running.feed.changed
    running.trail.append([REQUEST, EVENT, REQUEST])
    await asyncio.wait_for(changed.wait(), 10)

    assert [event.sequence for event in log.events()] == [2]
    await running.stop()


_STEPS = st.lists(
    st.sampled_from(["request", "event", "batch", "wait", "kill", "stop", "rotate", "tear", "forget", "lose", "older"]),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
async def test_the_log_is_the_trail_s_projection_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """In order, once: with kills anywhere, a log that is torn, lost or an older one, and a position that is lost."""
    directory = tmp_path_factory.mktemp("trail")
    running = Running(directory)
    for step in steps:
        if step in APPENDED:
            running.trail.append(APPENDED[step])
        elif step == "wait":
            await running.caught_up()
            await asyncio.sleep(0.002)
        elif step == "rotate":
            await running.trail.maintain()
        else:
            await (running.stop() if step == "stop" else running.kill())
            damage(directory, step)
            running = Running(directory)
    await running.caught_up()
    expected = running.expected()
    await running.stop()

    assert logged(directory) == expected
    assert '"error"' not in running.log.getvalue()


def damage(directory: Path, how: str) -> None:
    """What may have become of the log since."""
    log, older, position = (directory / name for name in ("events.jsonl", "older", "events.position"))
    if how == "forget":
        position.unlink(missing_ok=True)
    elif how == "older" and older.exists():
        shutil.copy(older, log)
    elif log.exists():
        shutil.copy(log, older)
        if how == "tear":
            os.truncate(log, log.stat().st_size * 2 // 3)
        elif how == "lose":
            log.unlink()


async def test_events_of_another_trail_are_dropped(tmp_path: Path) -> None:
    """A trail that was begun anew has the same numbers, and other records."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        running = Running(directory)
        running.trail.append([EVENT] * 5)
        await running.caught_up()
        await running.stop()
        await asyncio.sleep(0.002)  # the records' times differ
    shutil.copy(first / "events.jsonl", second / "events.jsonl")
    running = Running(second)
    await running.caught_up()
    expected = running.expected()
    await running.stop()

    assert logged(second) == expected
    assert "events_dropped" in running.log.getvalue()


async def test_only_what_is_new_is_read_at_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The position tells up to where the trail was looked at."""
    running = Running(tmp_path)
    running.trail.append([EVENT, *[REQUEST] * 2000])
    await running.caught_up()
    await running.stop()
    read: list[int] = []
    real = Trail.read

    def reading(self: Trail, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        lines = real(self, after_seq=after_seq, limit=limit, max_bytes=max_bytes)
        read.append(len(lines))
        return lines

    monkeypatch.setattr(Trail, "read", reading)
    running = Running(tmp_path)
    await running.caught_up()
    await running.stop()

    assert sum(read) < 5


async def test_what_cannot_be_written_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk of the log: it is told once, and nothing is lost."""
    running = Running(tmp_path)
    log = await running.caught_up()
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda *_: 3)
        running.trail.append([EVENT])
        await until(lambda: "events_not_written" in running.log.getvalue())
        running.trail.append([EVENT])
        await asyncio.sleep(0.02)
        assert log.events() == []
    await until(lambda: len(log.events()) == 2)

    assert log.events() == running.expected()
    assert running.log.getvalue().count("events_not_written") == 1
    await running.stop()


@pytest.mark.parametrize("left", [0, 700])
async def test_a_log_that_was_cut_is_made_anew_of_the_trail(tmp_path: Path, left: int) -> None:
    """A tool that shortens logs, say: at the next event everything is there again, and who reads the old one ends."""
    running = Running(tmp_path)
    log = await running.caught_up()
    running.trail.append([EVENT] * 4)
    await until(lambda: len(log.events()) == 4)
    reader = log.reader(4)
    os.truncate(tmp_path / "events.jsonl", left)
    running.trail.append([EVENT])
    log = await running.caught_up()

    assert log.events() == logged(tmp_path) == running.expected()
    with pytest.raises(OSError, match="Stale"):
        reader.read()
    assert running.log.getvalue().count("events_not_written") == 1
    await running.stop()


async def test_whoever_finds_the_log_spoiled_has_it_made_anew(tmp_path: Path) -> None:
    """Once, however many do."""
    running = Running(tmp_path)
    log = await running.caught_up()
    running.trail.append([EVENT])
    await until(lambda: len(log.events()) == 1)
    (tmp_path / "events.jsonl").write_bytes(bytes(2000))
    for _ in range(3):
        running.feed.distrust(log)
    await until(lambda: "events_not_written" in running.log.getvalue())
    made = await running.caught_up()
    running.feed.distrust(log)

    assert made.events() == running.expected()
    assert await running.caught_up() is made
    assert running.log.getvalue().count("events_not_written") == 1
    await running.stop()


async def test_a_line_that_is_too_long_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kmsd writes none; it is a record that was spoiled."""
    running = Running(tmp_path)
    await running.caught_up()
    await running.feed.close(10)
    running.trail.append([EVENT] * 2)
    real = Trail.read

    def reading(self: Trail, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        if after_seq == 0:
            raise LimitExceededError("record 1 is too long")
        return real(self, after_seq=after_seq, limit=limit, max_bytes=max_bytes)

    monkeypatch.setattr(Trail, "read", reading)
    running.start_feed()
    log = await running.caught_up()
    running.trail.append([EVENT])
    await until(lambda: bool(log.events()))

    assert [event.sequence for event in log.events()] == [3]
    await running.stop()


@pytest.mark.parametrize("when", ["at the start", "later"])
async def test_a_fault_does_not_end_the_feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """It is in the log, as a fault; what was not told is told when it has passed."""
    running = Running(tmp_path)
    log = await running.caught_up()
    if when == "at the start":
        await running.feed.close(10)
    faults = iter([MemoryError, MemoryError])
    real = Projection.event_of

    def faulty(self: Projection, line: str) -> Event | None:
        if (fault := next(faults, None)) is not None:
            raise fault
        return real(self, line)

    monkeypatch.setattr(Projection, "event_of", faulty)
    running.trail.append([EVENT])
    if when == "at the start":
        running.start_feed()
        log = await running.feed.opened()
    await until(lambda: bool(log.events()))

    assert log.events() == running.expected()
    assert running.log.getvalue().count("events_failed") == 2
    await running.stop()


async def test_an_event_waits_until_its_record_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could take what somebody was told of."""
    running = Running(tmp_path)
    log = await running.caught_up()
    refuse = True

    async def sync(self: Trail) -> None:
        if refuse:
            raise AuditUnavailableError("not now")

    monkeypatch.setattr(Trail, "sync", sync)
    running.trail.append([EVENT])
    await asyncio.sleep(0.02)
    assert log.events() == []
    refuse = False
    await until(lambda: bool(log.events()))

    assert log.events() == running.expected()
    await running.stop()


async def test_more_at_once_than_is_remembered_is_read_from_the_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what waits is bounded."""
    monkeypatch.setattr(event_feed, "_MOST_LINES", 3)
    running = Running(tmp_path)
    log = await running.caught_up()
    for _ in range(20):
        running.trail.append([EVENT])
    assert len(running.feed._lines) <= 4
    await running.stop()

    assert len(log.events()) == 20


async def test_a_record_that_was_spoiled_holds_up_nothing(tmp_path: Path) -> None:
    """It is said, and what comes behind is told."""
    running = Running(tmp_path)
    await running.caught_up()
    await running.feed.close(10)
    running.trail.append([EVENT, EVENT])
    path = tmp_path / "audit.log"
    with path.open("r+b") as stream:
        stream.write(b'{"xyz"')
    running.start_feed()
    log = await running.caught_up()
    running.trail.append([EVENT])
    await until(lambda: bool(log.events()))

    assert [event.sequence for event in log.events()] == [3]
    assert "events_incomplete" in running.log.getvalue()
    await running.stop()
