"""Open the file of a trail: lock it, put a torn end beside it, and find where the chain goes on.

A kill or a power cut can leave the last line unfinished, and a power cut can leave a hole (NUL bytes, which no record
has) with more behind it. That part was never whole, so the chain goes on before it; but it may be evidence, so it is
kept in a file beside the trail before it is cut off. Anything else that does not fit was not caused by a crash: then
the trail is not opened, and an administrator has to look.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from kmsd.audit.chain import GENESIS, Head
from kmsd.audit.reading import CHUNK_BYTES, last_line_end, lines_between
from kmsd.audit.record import Intent
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


class AuditBrokenError(RuntimeError):
    """The file is not a trail, or was changed; it must not be continued until an administrator has looked at it."""


@dataclass(frozen=True)
class Torn:
    """What a crash left behind the last whole line, and where it was put."""

    length: int
    sha256: str
    kept_as: Path


@dataclass(frozen=True)
class Opened:
    """An open trail.

    `append_fd` is in append mode and holds the lock; `fd` reads, and writes in place. `identity` is the file's device
    and inode number, `checked_from` is the offset of
    the mark that checking started at.
    """

    append_fd: int
    fd: int
    identity: tuple[int, int]
    size: int
    head: Head
    checked_from: int
    open_intents: tuple[Intent, ...]
    torn: Torn | None


def open_file(path: Path, system: System) -> Opened:
    """Open or create the file at `path` (mode 0600) and return where its chain goes on.

    Raises AuditUnavailableError when it cannot be used now, AuditBrokenError when it is no whole trail.
    """
    try:
        with contextlib.ExitStack() as stack:
            append_fd = _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, stack)
            fd = _open(path, os.O_RDWR, stack)
            identity = _lock(path, append_fd, fd, system)
            start, whole, report = _check(path, fd, system.fstat(fd).st_size)
            head = Head(report.last_seq, report.last_hash)
            torn = _cut_torn_end(path, append_fd, whole, head, system)
            # An earlier process may have left its last lines in the page cache, and its open intents are acted upon.
            system.fdatasync(append_fd)
            opened = Opened(append_fd, fd, identity, whole, head, start, report.open_intents, torn)
            stack.pop_all()
            return opened
    except OSError as exc:
        raise unavailable(path, exc) from exc


def _open(path: Path, flags: int, stack: contextlib.ExitStack) -> int:
    # O_NONBLOCK: to open a FIFO must not hang; it means nothing for a regular file.
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    stack.callback(os.close, fd)
    return fd


def _lock(path: Path, append_fd: int, fd: int, system: System) -> tuple[int, int]:
    """Make this the only writer; return the file's identity."""
    try:
        fcntl.flock(append_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise unavailable(path, "another process writes it") from None
    ours = system.fstat(append_fd)
    if not stat.S_ISREG(ours.st_mode):
        raise unavailable(path, "not a regular file")
    identity = (ours.st_dev, ours.st_ino)
    # Somebody may have put another file here between the calls.
    if any((other.st_dev, other.st_ino) != identity for other in (system.fstat(fd), system.lstat(path))):
        raise unavailable(path, "was replaced while it was opened")
    return identity


def _check(path: Path, fd: int, size: int) -> tuple[int, int, Report]:
    """Return the offset of the last mark, the one behind the last whole line, and what lies between."""
    if size == 0:
        _sync_directory(path)  # the new name has to survive a power cut as well
    start = _last_mark(fd, size)
    whole = _whole_until(fd, start, size)
    if whole == 0 and size > 0:
        _refuse_foreign(path, fd)
    try:
        return start, whole, verify(lines_between(fd, start, whole), start=None if start else GENESIS)
    except ChainBrokenError as exc:
        where = f" (lines counted from offset {start})" if start else ""
        raise AuditBrokenError(f"audit trail {path}{where}: {exc}") from exc


def _last_mark(fd: int, size: int) -> int:
    """Return the offset of the last mark, 0 if there is none."""
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
    return 0


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
        raise AuditBrokenError(f"audit trail {path}: the file is not an audit trail")


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
    _sync_directory(path)
    system.ftruncate(fd, start)
    return Torn(stop - start, digest.hexdigest(), kept_as)


def _unused(path: Path, head: Head) -> Path:
    # A crash between keeping and cutting off leaves the same bytes under the first name.
    first = path.with_name(f"{path.name}.torn-{head.seq + 1}")
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([first], others) if not name.exists())


def _sync_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
