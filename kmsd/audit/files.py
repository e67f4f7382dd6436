"""The files of a trail: their names, and how they are opened (FORMAT.md, "Files").

The active file bears the trail's name. A rotated one is named by the numbers of its first and last record, and
`.reduced` is added when retention has dropped records from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kmsd.audit.active import Descriptors
from kmsd.audit.reading import Part
from kmsd.audit.reduced import HEADER_BYTES
from kmsd.audit.system import System, unavailable

REDUCED = ".reduced"
_ROTATED = re.compile(r"\.([0-9]{12,19})-([0-9]{12,19})(\.reduced)?\Z")


class RotatedFile(NamedTuple):
    """A file that holds the records from number `first` to `last`, all of them or what was kept."""

    first: int
    last: int
    path: Path
    is_reduced: bool


def rotated_path(trail: Path, first: int, last: int) -> Path:
    """Return the path of the rotated file with these records; of 12 digits each, so that names sort by number."""
    return trail.with_name(f"{trail.name}.{first:012d}-{last:012d}")


def reduced_path(rotated: Path) -> Path:
    """Return the path that a rotated file has when it was reduced."""
    return rotated.with_name(rotated.name + REDUCED)


def next_path(trail: Path) -> Path:
    """Return the path at which the next file is made ready."""
    return trail.with_name(f"{trail.name}.next")


def rotated_files(trail: Path) -> list[RotatedFile]:
    """Return the rotated files beside a trail, oldest first.

    Of a file that is there whole and reduced, it is the whole one: reducing it was not finished.
    """
    found: dict[tuple[int, int], RotatedFile] = {}
    for name in (path.name for path in trail.parent.iterdir()):
        match = _ROTATED.match(name, len(trail.name)) if name.startswith(trail.name) else None
        if match is not None:
            rotated = RotatedFile(int(match[1]), int(match[2]), trail.with_name(name), match[3] is not None)
            if not rotated.is_reduced or rotated[:2] not in found:
                found[rotated[:2]] = rotated
    return [found[numbers] for numbers in sorted(found)]


def open_regular(path: Path, flags: int, system: System, stack: contextlib.ExitStack) -> int:
    """Open a file, mode 0600 if it is made; a FIFO does not hang and a link is not followed. `stack` closes it."""
    # O_NONBLOCK means nothing for a regular file.
    fd = system.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    stack.callback(os.close, fd)
    return fd


def open_for_writing(path: Path, flags: int, system: System, stack: contextlib.ExitStack) -> Descriptors:
    """Open a file of lines as its only writer; `stack` closes it."""
    append_fd = open_regular(path, os.O_RDWR | os.O_APPEND | flags, system, stack)
    fd = open_regular(path, os.O_RDWR, system, stack)
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
    return Descriptors(append_fd, fd, identity)


@contextlib.contextmanager
def open_part(rotated: RotatedFile, system: System) -> Iterator[Part]:
    """Open the lines of a rotated file for reading."""
    with contextlib.ExitStack() as stack:
        fd = open_regular(rotated.path, os.O_RDONLY, system, stack)
        status = system.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise unavailable(rotated.path, "not a regular file")
        start = system.pread(fd, HEADER_BYTES, 0).find(b"\n") + 1 if rotated.is_reduced else 0
        yield Part(fd, start, status.st_size)
