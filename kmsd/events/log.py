"""The event log: events in the order of the records that they come from, in two files of bounded size.

`events.jsonl` is written, `events.jsonl.1` is the file before it; the one before that is dropped. The first line of a
file tells which event it continues, each other line is an event. `events.position` tells up to which record the trail
was looked at, so that a start need not look at all that stands behind the last event.

Nothing of it is synced: all of it can be made anew from the audit trail. What a power cut leaves is taken as far as it
is whole, and the position counts only if the log ends where it did when that was kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import msgspec

from kmsd.api.events import Event, decode_event, encode_event

NAME = "events.jsonl"
# Some 4,000 events: those of years on most hosts.
PART_BYTES = 2 * 1024 * 1024
# What a reader is given at once; an event has some 500 bytes.
_READ_BYTES = 64 * 1024


class LogSpoiledError(OSError):
    """A file is no longer as it was written: somebody has cut it, or written into it."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the event log is not as it was written")


class Position(msgspec.Struct, frozen=True):
    """Up to which record the trail was looked at: its number, its line's SHA-256, and which event was the last then."""

    sequence: int
    digest: str
    last_event: int


class _Head(msgspec.Struct, frozen=True):
    """The first line of a file: the number of the last event in the file before it, 0 if there was none."""

    continues: int


class _Part:
    """One file of the log; who reads it keeps it, also when it is dropped meanwhile, and the last one closes it."""

    def __init__(self, fd: int, continues: int, start: int) -> None:
        self.continues = continues
        self.start = start
        self.size = start
        self.last = continues
        self.next: _Part | None = None
        # Whether nothing comes behind it any more, in this file or another.
        self.is_given_up = False
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    @classmethod
    def make(cls, path: Path, continues: int) -> _Part:
        """Make an empty file, whatever was there; raises OSError."""
        part = cls(_open(path, os.O_CREAT | os.O_TRUNC), continues, 0)
        part.write(msgspec.json.encode(_Head(continues)) + b"\n")
        part.start = part.size
        return part

    @classmethod
    def find(cls, path: Path) -> _Part | None:
        """Open a file and forget what is not whole; None if there is none, or not even its first line."""
        try:
            part = cls(_open(path, 0), 0, 0)
        except FileNotFoundError:
            return None
        part.size = os.fstat(part._fd).st_size
        head, sign, rest = part.read(0, part.size).partition(b"\n")
        try:
            part.continues = part.last = msgspec.json.decode(head, type=_Head).continues
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if not sign:
            return None
        part.start = part.size = len(head) + 1
        for line in rest.splitlines(keepends=True):
            event = _event_in(line)
            if event is None or event.sequence <= part.last:
                break
            part.last = event.sequence
            part.size += len(line)
        return part

    @property
    def is_empty(self) -> bool:
        """Whether no event is in it."""
        return self.size == self.start

    def write(self, data: bytes) -> None:
        """Put data behind what is there, all of it or nothing that counts; raises OSError."""
        if os.fstat(self._fd).st_size < self.size:
            raise LogSpoiledError
        if os.pwrite(self._fd, data, self.size) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += len(data)

    def read(self, offset: int, most_bytes: int) -> bytes:
        """Return what there is from an offset; raises OSError."""
        length = min(most_bytes, self.size - offset)
        data = os.pread(self._fd, length, offset)
        if len(data) < length:
            raise LogSpoiledError
        return data

    def events(self) -> Iterator[tuple[int, Event]]:
        """Yield each event with the offset of its line; raises OSError."""
        return _events_in(self.read(self.start, self.size), self.start)

    def offset_behind(self, sequence: int) -> int:
        """Return the offset behind the events up to a number."""
        if sequence >= self.last:
            return self.size
        return next((offset for offset, event in self.events() if event.sequence > sequence), self.size)

    def cut_behind(self, sequence: int) -> None:
        """Forget the events behind a number; raises OSError."""
        last = max((event.sequence for _, event in self.events() if event.sequence <= sequence), default=self.continues)
        self.size, self.last = self.offset_behind(sequence), last
        os.ftruncate(self._fd, self.size)


class Reader:
    """Reads the log behind some event, as far as it goes, in the order of the events.

    `after_sequence` may be the number of an event that the log has yet to get again.
    """

    def __init__(self, part: _Part, offset: int, after_sequence: int) -> None:
        self._part = part
        self._offset = offset
        # None once it was passed.
        self._after: int | None = after_sequence

    def read(self) -> bytes:
        """Return the next lines, all of them whole, b"" when there are none yet; raises OSError."""
        while lines := self._next_lines():
            if self._after is None or (lines := self._wanted(lines, self._after)):
                return lines
        return b""

    def _next_lines(self) -> bytes:
        while self._offset >= self._part.size:
            if self._part.is_given_up:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            if self._part.next is None:
                return b""
            self._part = self._part.next
            self._offset = self._part.start
        most = _READ_BYTES
        while b"\n" not in (data := self._part.read(self._offset, most)):
            if len(data) < most:
                raise LogSpoiledError
            most *= 2
        lines = data[: data.rindex(b"\n") + 1]
        self._offset += len(lines)
        return lines

    def _wanted(self, lines: bytes, after_sequence: int) -> bytes:
        """Return the lines of events behind a number."""
        wanted = next((offset for offset, event in _events_in(lines) if event.sequence > after_sequence), None)
        if wanted is None:
            return b""
        self._after = None
        return lines[wanted:]


class EventLog:
    """The log at `path`; made by `open`. All methods raise OSError when files fail, and have done nothing then.

    After LogSpoiledError it is to be given up, and opened anew.
    """

    def __init__(self, path: Path, older: _Part | None, newer: _Part, part_bytes: int) -> None:
        self._path = path
        self._position_path = path.with_suffix(".position")
        self._older = older
        self._newer = newer
        self._part_bytes = part_bytes
        if older is not None:
            older.next = newer

    @classmethod
    def open(cls, path: Path, *, part_bytes: int = PART_BYTES) -> EventLog:
        """Open the log, or begin one. A file holds about `part_bytes`."""
        older, newer = _Part.find(_older(path)), _Part.find(path)
        if newer is None or (older is not None and newer.continues != older.last):
            # A kill between two names; or a power cut, and then what it took comes again and must not come later.
            newer = _Part.make(path, 0 if older is None else older.last)
        return cls(path, older, newer, part_bytes)

    @property
    def last(self) -> int:
        """The number of the last event, 0 if there never was one."""
        return self._newer.last

    @property
    def dropped_until(self) -> int:
        """The number of the last event that was dropped, 0 if none was."""
        return self._oldest.continues

    @property
    def _oldest(self) -> _Part:
        return self._older or self._newer

    def append(self, event: Event) -> None:
        """Add an event, whose number is above all that are there."""
        line = encode_event(event)
        if self._newer.size + len(line) > self._part_bytes and not self._newer.is_empty:
            self._rotate()
        self._newer.write(line)
        self._newer.last = event.sequence

    def events(self) -> list[Event]:
        """Return all events that are kept, oldest first."""
        parts = [self._newer] if self._older is None else [self._older, self._newer]
        return [event for part in parts for _, event in part.events()]

    def cut_behind(self, sequence: int) -> None:
        """Forget the events behind a number, before anybody reads them; the position counts no more."""
        self._position_path.unlink(missing_ok=True)
        if self._older is not None and sequence < self._newer.continues:
            self._older.cut_behind(sequence)
            self._newer = _Part.make(self._path, self._older.last)
            self._older.next = self._newer
        else:
            self._newer.cut_behind(sequence)

    def reader(self, after_sequence: int) -> Reader:
        """Return what reads the events behind a number that are kept, and those that are still to come."""
        part = self._oldest if after_sequence < self._newer.continues else self._newer
        return Reader(part, part.offset_behind(after_sequence), after_sequence)

    def last_before(self, time: str) -> int:
        """Return the number of the last event before the first that has this time, or a later one."""
        last = self.dropped_until
        for event in self.events():
            if event.time >= time:
                break
            last = event.sequence
        return last

    def give_up(self) -> None:
        """Let who reads it come to an end: another takes its place."""
        self._newer.is_given_up = True

    def position(self) -> Position | None:
        """Return the position that was kept, if it still counts."""
        try:
            position = msgspec.json.decode(self._position_path.read_bytes(), type=Position)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return position if position.last_event == self.last else None

    def keep_position(self, sequence: int, digest: str) -> None:
        """Keep up to which record the trail was looked at: its number, and the SHA-256 of its line in hex."""
        temporary = self._position_path.with_suffix(".position.new")
        with FileIO(_open(temporary, os.O_CREAT | os.O_TRUNC), "w") as file:
            file.write(msgspec.json.encode(Position(sequence, digest, self.last)))
        temporary.rename(self._position_path)

    def _rotate(self) -> None:
        made_at = self._path.with_name(f"{self._path.name}.new")
        made = _Part.make(made_at, self.last)
        with contextlib.suppress(FileNotFoundError):  # somebody removed it, or this was as far as it came last time
            self._path.rename(_older(self._path))
        made_at.rename(self._path)
        self._older, self._newer = self._newer, made
        self._older.next = made


def _open(path: Path, flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _events_in(lines: bytes, offset: int = 0) -> Iterator[tuple[int, Event]]:
    """Yield each event with the offset of its line, of which the first is at `offset`; raises LogSpoiledError."""
    for line in lines.splitlines(keepends=True):
        event = _event_in(line)
        if event is None:
            raise LogSpoiledError
        yield offset, event
        offset += len(line)


def _event_in(line: bytes) -> Event | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return decode_event(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
