"""Read lines of a trail through its descriptor, by place or by number, within bounds.

Only the part up to `size` is read, which the writer knows to be whole lines; nothing here moves a file position, so
reading and appending do not meet.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kmsd.api.errors import IntegrityError, LimitExceededError
from kmsd.audit.chain import MAX_READ_LINE_BYTES, seq_of

# One pread: large enough that its call does not count (a memcpy of 256 KiB takes about 20 us), small enough to waste.
CHUNK_BYTES = 256 * 1024

# Enough of a line to see its number: `{"seq":`, at most 19 digits and a comma.
START_BYTES = 40


class Part(NamedTuple):
    """The lines of one file: from offset `start`, where one begins, to `stop`, where one ends."""

    fd: int
    start: int
    stop: int


def lines_between(fd: int, start: int, stop: int) -> Iterator[bytes]:
    """Yield the lines from offset `start`, where one begins, to `stop`, each with its line feed.

    A line longer than `MAX_READ_LINE_BYTES` comes in pieces; what is left before `stop` comes without a line feed.
    """
    pending = b""
    while start < stop:
        chunk = os.pread(fd, min(CHUNK_BYTES, stop - start), start)
        if not chunk:
            break
        start += len(chunk)
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
        if len(pending) > MAX_READ_LINE_BYTES:
            yield pending
            pending = b""
    if pending:
        yield pending


def last_line_end(fd: int, stop: int, pread: Callable[[int, int, int], bytes] = os.pread) -> int:
    """Return the offset behind the last line feed before `stop`, 0 if there is none."""
    while stop > 0:
        start = max(0, stop - CHUNK_BYTES)
        found = pread(fd, stop - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        stop = start
    return 0


def read_after(parts: Iterable[Part], *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
    """Return at most `limit` lines behind number `after_seq`, of `max_bytes` together, oldest first, no line feeds.

    `parts` are files in the order of their records. Raises LimitExceededError when the first line alone is longer than
    `max_bytes`, and IntegrityError where a file holds something that is no record.
    """
    found: list[str] = []
    for line in _lines_after(parts, after_seq):
        if len(found) == limit:
            break
        seq = seq_of(line[:START_BYTES])
        if seq is None:
            raise IntegrityError(f"the audit trail has a line behind record {after_seq} that is no record")
        if seq <= after_seq:
            continue
        max_bytes -= len(line)
        if max_bytes < 0:
            _need_one(found, len(line), seq)
            break
        found.append(line[:-1].decode("ascii", "backslashreplace"))
    return found


def read_last(parts: Iterable[Part], *, limit: int, max_bytes: int) -> list[str]:
    """Return the last lines, oldest first; `parts` has the newest file first, bounds and errors as in `read_after`."""
    found: list[str] = []
    for line in itertools.chain.from_iterable(map(_lines_before, parts)):
        if len(found) == limit:
            break
        max_bytes -= len(line) + 1
        if max_bytes < 0:
            _need_one(found, len(line) + 1, None)
            break
        found.append(line.decode("ascii", "backslashreplace"))
    return found[::-1]


def _lines_after(parts: Iterable[Part], after_seq: int) -> Iterator[bytes]:
    for part in parts:
        yield from lines_between(part.fd, offset_near(part, after_seq), part.stop)


def _lines_before(part: Part) -> Iterator[bytes]:
    """Yield the lines of a file from the last to the first, without line feeds.

    A line longer than `MAX_READ_LINE_BYTES` comes in pieces.
    """
    fd, first, stop = part
    stop -= 1  # the line feed of the last one
    pending = b""
    while stop > first:
        start = max(first, stop - CHUNK_BYTES)
        chunk = os.pread(fd, stop - start, start)
        if len(chunk) < stop - start:
            raise IntegrityError("the audit trail is shorter than what was written to it")
        pending, *lines = (chunk + pending).split(b"\n")
        yield from reversed(lines)
        if len(pending) > MAX_READ_LINE_BYTES:
            yield pending
            pending = b""
        stop = start
    if pending:
        yield pending


def _need_one(found: list[str], length: int, seq: int | None) -> None:
    # An empty answer would read as the end of the trail.
    if not found:
        name = "the last record" if seq is None else f"record {seq}"
        raise LimitExceededError(f"{name} of the audit trail has {length} bytes, more than were asked for")


def offset_near(part: Part, after_seq: int) -> int:
    """Return the offset of a line at or before number `after_seq`, at most about a chunk before it, by bisection.

    The start of the part when all its lines are behind that number.
    """
    fd, low, high = part
    while high - low > CHUNK_BYTES:
        middle = (low + high) // 2
        start = _next_line(fd, middle, high)
        seq = None if start is None else seq_of(os.pread(fd, START_BYTES, start))
        if start is not None and seq is not None and seq <= after_seq:
            low = start
        else:  # too far, or no line begins in the upper half
            high = middle
    return low


def _next_line(fd: int, offset: int, stop: int) -> int | None:
    """Return the offset of the first line that begins behind `offset` and before `stop`."""
    while offset < stop:
        chunk = os.pread(fd, min(CHUNK_BYTES, stop - offset), offset)
        found = chunk.find(b"\n")
        if found >= 0:
            offset += found + 1
            return offset if offset < stop else None
        offset += len(chunk) or stop
    return None
