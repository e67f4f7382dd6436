"""The files of the event log, and what is left of them after a crash: `kmsd.events.log`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmsd.api.events import Event, decode_event, encode_event
from kmsd.events.log import EventLog, LogSpoiledError, Reader

SMALL = 2000  # of a part: some eight events


def event(sequence: int) -> Event:
    return Event(
        version="0",
        id=f"id-{sequence}",
        detail_type="Started",
        source="kmsd",
        account="123456789012",
        time=f"2026-11-26T02:{sequence // 60:02d}:{sequence % 60:02d}Z",
        region="local-host-1",
        resources=[],
        detail={"sequence": sequence},
    )


def opened(directory: Path) -> EventLog:
    return EventLog.open(directory / "events.jsonl", part_bytes=SMALL)


def filled(directory: Path, *sequences: int) -> EventLog:
    log = opened(directory)
    for sequence in sequences:
        log.append(event(sequence))
    return log


def numbers(reader: Reader) -> list[int]:
    found: list[int] = []
    while lines := reader.read():
        found += [decode_event(line).sequence for line in lines.splitlines()]
    return found


def kept(log: EventLog) -> list[int]:
    return [one.sequence for one in log.events()]


def test_events_are_read_from_any_number_on(tmp_path: Path) -> None:
    """From the files, in order, across both, and what comes later too."""
    log = filled(tmp_path, *range(2, 26, 2))

    for after in range(26):
        assert numbers(log.reader(after)) == [number for number in range(2, 26, 2) if number > after]
    reader = log.reader(20)
    assert numbers(reader) == [22, 24]
    log.append(event(30))
    assert numbers(reader) == [30]
    assert numbers(log.reader(99)) == []


def test_a_log_is_found_again(tmp_path: Path) -> None:
    """And goes on where it was."""
    filled(tmp_path, 1, 2, 3)
    log = opened(tmp_path)
    log.append(event(4))

    assert (kept(log), log.last, log.dropped_until) == ([1, 2, 3, 4], 4, 0)
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_there_are_two_files_and_what_was_dropped_is_told(tmp_path: Path) -> None:
    """So it does not grow without end."""
    log = filled(tmp_path, *range(1, 101))

    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "events.jsonl.1"}
    assert all(path.stat().st_size <= SMALL for path in tmp_path.iterdir())
    assert kept(log) == list(range(log.dropped_until + 1, 101))
    assert (opened(tmp_path).dropped_until, kept(opened(tmp_path))) == (log.dropped_until, kept(log))


def test_who_is_slow_reads_also_what_was_dropped_meanwhile(tmp_path: Path) -> None:
    """The files are his as long as he reads them."""
    log = filled(tmp_path, 1)
    reader = log.reader(0)
    for sequence in range(2, 101):
        log.append(event(sequence))

    assert numbers(reader) == list(range(1, 101))


def test_a_time_is_found(tmp_path: Path) -> None:
    """The first event that is not before it."""
    log = filled(tmp_path, *range(10, 30))

    assert log.last_before("2026-11-26T02:00:00Z") == log.dropped_until
    assert log.last_before("2026-11-26T02:00:25Z") == 24
    assert log.last_before("2027-01-01T00:00:00Z") == 29


def test_what_is_cut_off_is_gone(tmp_path: Path) -> None:
    """In whichever file it is; the rest goes on from there."""
    sequences = list(range(1, 15))
    for number in range(15):
        directory = tmp_path / str(number)
        directory.mkdir()
        log = filled(directory, *sequences)
        log.keep_position(99, "digest")
        behind = max(number, log.dropped_until)
        log.cut_behind(behind)
        log.append(event(50))

        assert log.position() is None
        assert kept(log) == kept(opened(directory)) == [*range(log.dropped_until + 1, behind + 1), 50]


def test_a_position_counts_for_the_log_it_was_kept_with(tmp_path: Path) -> None:
    """And a file that is none does not."""
    log = filled(tmp_path, 1)
    assert log.position() is None
    log.keep_position(7, "digest")
    found = opened(tmp_path).position()
    assert found is not None
    assert (found.sequence, found.digest) == (7, "digest")
    log.append(event(9))

    assert log.position() is None
    (tmp_path / "events.position").write_bytes(b"{")
    assert log.position() is None


def test_an_event_is_written_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line of a full disk is written over."""
    log = filled(tmp_path, 1)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:10], offset))
    with pytest.raises(OSError, match="No space left"):
        log.append(event(2))
    monkeypatch.undo()

    assert numbers(log.reader(0)) == [1]
    assert kept(opened(tmp_path)) == [1]
    log.append(event(3))
    assert kept(opened(tmp_path)) == [1, 3]


def test_what_comes_again_is_not_told_again(tmp_path: Path) -> None:
    """A log that is being made anew reaches later what its readers have had."""
    log = filled(tmp_path, 1, 2)
    readers = [log.reader(20) for _ in range(2)]
    assert numbers(readers[0]) == []
    for sequence in range(3, 19):
        log.append(event(sequence))
    assert numbers(readers[0]) == []
    for sequence in range(19, 24):
        log.append(event(sequence))

    assert [numbers(reader) for reader in readers] == [[21, 22, 23]] * 2


@pytest.mark.parametrize("left", [0, 500])
def test_a_file_that_was_cut_under_it_is_noticed(tmp_path: Path, left: int) -> None:
    """By who reads what is gone, and by who would write behind a hole."""
    log = filled(tmp_path, *range(1, 6))
    reader = log.reader(0)
    os.truncate(tmp_path / "events.jsonl", left)

    with pytest.raises(LogSpoiledError):
        numbers(reader)
    with pytest.raises(LogSpoiledError):
        log.reader(1)
    with pytest.raises(LogSpoiledError):
        log.append(event(6))


def test_a_file_that_was_overwritten_under_it_is_noticed(tmp_path: Path) -> None:
    """Lines are looked for no further than the file goes."""
    log = filled(tmp_path, *range(1, 6))
    reader = log.reader(0)
    path = tmp_path / "events.jsonl"
    path.write_bytes(bytes(path.stat().st_size))

    with pytest.raises(LogSpoiledError):
        reader.read()
    with pytest.raises(LogSpoiledError):
        log.events()


def test_who_reads_a_log_that_was_given_up_comes_to_its_end(tmp_path: Path) -> None:
    """Nothing comes behind it any more."""
    log = filled(tmp_path, 1, 2)
    reader = log.reader(1)
    log.give_up()

    assert [decode_event(line).sequence for line in reader.read().splitlines()] == [2]
    with pytest.raises(OSError, match="Stale"):
        reader.read()


def test_a_file_that_was_removed_under_it_is_missed_by_nobody(tmp_path: Path) -> None:
    """The log goes on in the next file."""
    log = filled(tmp_path, 1, 2)
    (tmp_path / "events.jsonl").unlink()
    for sequence in range(3, 30):
        log.append(event(sequence))

    assert kept(opened(tmp_path)) == kept(log)


def test_a_change_of_files_that_failed_halfway_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name was given, the other could not be."""
    log = opened(tmp_path)
    path = tmp_path / "events.jsonl"
    while path.stat().st_size + len(encode_event(event(99))) <= SMALL:
        log.append(event(log.last + 1))
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target.name == "events.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    with monkeypatch.context() as full:
        full.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="No space left"):
            log.append(event(99))
    log.append(event(99))

    assert kept(log) == kept(opened(tmp_path))
    assert kept(log) == [*range(1, len(kept(log))), 99]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), count=st.integers(0, 30))
def test_what_a_crash_leaves_is_a_beginning(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    """Whatever became of the files: cut, overwritten, away. No event is out of order, none is missing before one."""
    directory = tmp_path_factory.mktemp("log")
    whole = kept(filled(directory, *range(1, count + 1)))
    for path in sorted(directory.iterdir()):
        match data.draw(st.sampled_from(["whole", "cut", "zeros", "away"])):
            case "cut":
                os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
            case "zeros":
                content = bytearray(path.read_bytes())
                place = data.draw(st.integers(0, len(content)))
                content[place : place + 64] = bytes(len(content[place : place + 64]))
                path.write_bytes(content)
            case "away":
                path.unlink()
    log = opened(directory)

    left = kept(log)
    assert left == list(range(log.dropped_until + 1, log.last + 1))
    assert set(left) <= set(whole)
    log.append(event(100))
    assert kept(opened(directory)) == [*(number for number in left if number > log.dropped_until), 100]
