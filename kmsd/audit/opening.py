"""Open the file of a trail: lock it, put a torn end beside it, and find where the chain goes on.

A kill or a power cut can leave the last line unfinished, and a power cut can leave a hole (NUL bytes, which no record
has) with more behind it. That part was never whole, so the chain goes on before it; but it may be evidence, so it is
kept in a file beside the trail before it is cut off. Anything else that does not fit was not caused by a crash: then
the trail is not opened, and an administrator has to look.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kmsd.audit.active import ActiveFile, End
from kmsd.audit.chain import GENESIS, Head, Line, parse_time
from kmsd.audit.files import open_for_writing, rotated_files
from kmsd.audit.reading import CHUNK_BYTES, Part, last_line_end, lines_between
from kmsd.audit.record import Intent
from kmsd.audit.succession import (
    AuditBrokenError,
    broken,
    check_start,
    drop_unused_next,
    finish_rotation,
    first_line,
)
from kmsd.audit.system import System, unavailable
from kmsd.audit.verify import MARK, ChainBrokenError, Report, verify

# How a mark starts. Anchored to the start of a line, because a request can have the rest put into its parameters, but
# never a line feed. A start of this form has at most 200 bytes.
_MARK = re.compile(
    rb'^\{"seq":[0-9]{1,19},"prev":"[0-9a-f]{64}","eventTime":"[0-9T:.Z-]{1,40}",'
    rb'"eventType":"ServiceEvent","eventName":"' + MARK.encode("ascii") + rb'",',
    re.MULTILINE,
)
_MARK_BYTES = 256

# How every trail begins; a file that begins otherwise is somebody else's and is left alone.
_FIRST_LINE = b'{"seq":1,"prev":"' + GENESIS.digest.encode("ascii") + b'",'

# A hole that a power cut leaves is made of whole pages, but for the last.
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Torn:
    """What a crash left behind the last whole line, and where it was put."""

    length: int
    sha256: str
    kept_as: Path


@dataclass(frozen=True)
class Opened:
    """An open trail.

    `checked_from` is the offset of the mark that checking started at; `open_intents` and `store_sequence` are what the
    trail tells from there on.
    """

    file: ActiveFile
    checked_from: int
    open_intents: tuple[Intent, ...]
    store_sequence: int
    torn: Torn | None


def open_trail(path: Path, system: System, now: float) -> Opened:
    """Open or create the active file of the trail at `path` (mode 0600) and return where its chain goes on.

    `now` is when a file that is new, or empty, begins. Raises AuditUnavailableError when it cannot be used now,
    AuditBrokenError when it is no whole trail.
    """
    try:
        with contextlib.ExitStack() as stack:
            finish_rotation(path, system)
            files = open_for_writing(path, os.O_CREAT, system, stack)
            drop_unused_next(path, system)
            start, whole, report = _check(path, files.fd, system)
            first = _check_first(path, files.fd, whole, system)
            head = Head(report.last_seq, report.last_hash)
            torn = _cut_torn_end(path, files.append, whole, head, system)
            # An earlier process may have left its last lines in the page cache, and its open intents are acted upon.
            _write_again(files.fd, start, whole)
            system.fdatasync(files.append)
            first_seq, began = _beginning(first, head, now)
            file = ActiveFile(path, files, End(whole, head), system, first_seq=first_seq, began=began)
            stack.pop_all()
            return Opened(file, start, report.open_intents, report.store_sequence, torn)
    except OSError as exc:
        raise unavailable(path, exc) from exc


def find_whole(path: Path, fd: int, size: int) -> tuple[int | None, int]:
    """Return the offset of the last mark, None if there is none, and the one behind the last whole line.

    What lies behind that one was left by a crash. Raises AuditBrokenError when there is no line, and never was one.
    """
    mark = _last_mark(fd, size)
    whole = _whole_until(fd, mark or 0, size)
    if whole == 0 and size > 0:
        _refuse_foreign(path, fd)
    return mark, whole


def _check(path: Path, fd: int, system: System) -> tuple[int, int, Report]:
    """Return the offset of the last mark, the one behind the last whole line, and what lies between."""
    size = system.fstat(fd).st_size
    if size == 0:
        system.sync_directory(path.parent)  # the new name has to survive a power cut as well
    mark, whole = find_whole(path, fd, size)
    start = mark or 0
    try:
        return start, whole, verify(lines_between(fd, start, whole), start=GENESIS if mark is None else None)
    except ChainBrokenError as exc:
        where = f" (lines counted from offset {start})" if start else ""
        raise AuditBrokenError(f"audit trail {path}{where}: {exc}") from exc


def _check_first(path: Path, fd: int, whole: int, system: System) -> Line | None:
    """Return the first line of the file, None if there is none, when it continues what is beside the file."""
    if whole == 0:
        # No crash empties a file that a rotation has made: its first line was on the disk before it got its name.
        rotated = rotated_files(path)
        if rotated:
            raise broken(path, f"the file is empty, and {rotated[-1].path.name} is not all of the trail")
        return None
    first = first_line(path, Part(fd, 0, whole))
    check_start(path, first, system)
    return first


def _beginning(first: Line | None, head: Head, now: float) -> tuple[int, float]:
    """Return number and time of a file's first record, which comes now if there is none yet."""
    if first is None:
        return head.seq + 1, now
    with contextlib.suppress(ValueError):
        return first.seq, parse_time(first.event_time)
    return first.seq, now  # the age of the file is not worth refusing it


def _last_mark(fd: int, size: int) -> int | None:
    """Return the offset of the last mark, None if there is none."""
    stop = size
    while stop > 0:
        start = max(0, stop - CHUNK_BYTES)
        # One byte more in front, so that a mark at `start` is seen to begin a line.
        before = min(start, 1)
        chunk = os.pread(fd, stop - start + before + _MARK_BYTES, start - before)
        found = [match.start() for match in _MARK.finditer(chunk) if match.start() >= before]
        if found:
            return start - before + found[-1]
        stop = start
    return None


def _whole_until(fd: int, start: int, size: int) -> int:
    """Return the offset behind the last line that was written whole."""
    offset = start
    while offset < size:
        chunk = os.pread(fd, min(CHUNK_BYTES, size - offset), offset)
        hole = chunk.find(b"\0")
        if hole >= 0:
            return last_line_end(fd, offset + hole)
        offset += len(chunk) or size
    return last_line_end(fd, size)


def _refuse_foreign(path: Path, fd: int) -> None:
    """Raise AuditBrokenError unless a file without one whole line can be a trail that a crash left at its start."""
    found = os.pread(fd, _PAGE_BYTES, 0)
    text = found.split(b"\0", 1)[0][: len(_FIRST_LINE)]
    if text != _FIRST_LINE[: len(text)] or (not text and found.strip(b"\0")):
        raise broken(path, "the file is not an audit trail")


def _cut_torn_end(path: Path, fd: int, start: int, head: Head, system: System) -> Torn | None:
    """Move what lies behind the last whole line into a new file beside the trail, durably."""
    stop = system.fstat(fd).st_size
    if stop == start:
        return None
    digest = hashlib.sha256()
    kept_as = _unused(path, head)
    with os.fdopen(os.open(kept_as, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as kept:
        for offset in range(start, stop, CHUNK_BYTES):
            chunk = os.pread(fd, min(CHUNK_BYTES, stop - offset), offset)
            digest.update(chunk)
            kept.write(chunk)
        kept.flush()
        os.fsync(kept.fileno())
    system.sync_directory(path.parent)
    system.ftruncate(fd, start)
    return Torn(stop - start, digest.hexdigest(), kept_as)


def _write_again(fd: int, start: int, stop: int) -> None:
    """Write lines that were read once more in their place, so that syncing writes them back.

    The last sync of an earlier process may have failed before it was killed. Linux then holds for clean what is not on
    the disk: the chain would be continued behind it, and a power cut would take all that came since.
    """
    offset = start
    while offset < stop:
        chunk = os.pread(fd, min(CHUNK_BYTES, stop - offset), offset)
        if not chunk:
            raise OSError(None, "the file was truncated while it was opened")
        offset += os.pwrite(fd, chunk, offset)


def _unused(path: Path, head: Head) -> Path:
    # A crash between keeping and cutting off leaves the same bytes under the first name.
    first = path.with_name(f"{path.name}.torn-{head.seq + 1}")
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([first], others) if not name.exists())
