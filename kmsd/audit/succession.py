"""How the files of a trail follow each other, checked and healed at a start.

A rotation makes the next file ready as NAME.next, durably; gives the active file its number; and gives the next one
the trail's name. Each step is on the disk before the next, so a crash leaves one of these:

| NAME | NAME.next | what happened, and what a start does |
|---|---|---|
| there | there | not begun: NAME.next holds nothing but its mark and is dropped |
| gone | there | begun: NAME.next continues the newest rotated file and gets the trail's name |
| there | gone | all was done |

A missing NAME without a NAME.next is nobody's crash. It is refused while rotated files tell of a trail, as whoever
removes the newest records wants them forgotten.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kmsd.audit.chain import GENESIS, Head, Line, MalformedLineError, digest_of, parse, seq_of
from kmsd.audit.files import (
    REDUCED,
    RotatedFile,
    next_path,
    open_for_writing,
    open_part,
    open_regular,
    rotated_files,
)
from kmsd.audit.reading import Part, last_line_end, lines_between
from kmsd.audit.reduced import HEADER_BYTES, Reduced, parse_head_line
from kmsd.audit.system import System
from kmsd.audit.verify import MARK, begins_anew

# How every line begins.
_LINE_START = b'{"seq":'


class AuditBrokenError(RuntimeError):
    """The file is not a trail, or was changed; it must not be continued until an administrator has looked at it."""


def finish_rotation(trail: Path, system: System) -> None:
    """Give the next file the trail's name if a crash came before that; see that a new trail may begin if none is there.

    Raises AuditBrokenError when the active file is missing for another reason.
    """
    if os.path.lexists(trail):
        return
    rotated, path = rotated_files(trail), next_path(trail)
    if not os.path.lexists(path):
        if rotated:
            raise broken(trail, f"the file is missing, and {rotated[-1].path.name} is not all of the trail")
        return
    with contextlib.ExitStack() as stack:
        # The lock: a daemon that is between two steps of its rotation is not to be helped.
        fd = open_for_writing(path, 0, system, stack).fd
        first = first_line(path, Part(fd, 0, system.fstat(fd).st_size))
        if not rotated or rotated[-1].last != first.seq - 1:
            raise broken(trail, f"the file is missing, and {path.name} continues no rotated file")
        check_start(trail, first, system)
        system.rename(path, trail)
        system.sync_directory(trail.parent)


def drop_unused_next(trail: Path, system: System) -> None:
    """Remove a next file that did not become the active one; whoever calls holds the lock of the active one."""
    path = next_path(trail)
    if not os.path.lexists(path):
        return
    with contextlib.ExitStack() as stack:
        fd = open_regular(path, os.O_RDONLY, system, stack)
        size = system.fstat(fd).st_size
        line = next(lines_between(fd, 0, size), b"")
    start = line.strip(b"\0")[: len(_LINE_START)]
    if len(line) < size or not _LINE_START.startswith(start):
        raise broken(path, "the file is in the way, and holds more than a rotation that was not finished leaves")
    system.unlink(path)


def first_line(path: Path, part: Part) -> Line:
    """Return the first line of a file; raises AuditBrokenError."""
    try:
        return parse(next(lines_between(*part), b""))
    except MalformedLineError as exc:
        raise broken(path, f"line 1: {exc}") from None


def check_start(trail: Path, first: Line, system: System) -> None:
    """Check that the active file, of which this is the first line, continues the file before it.

    A file made by rotation names that one. It has to be there, whole or reduced, unless no older file is there at all:
    then they were all put elsewhere, and the anchors vouch for what this file continues.
    """
    rotated = rotated_files(trail)
    for other in rotated:
        if other.last >= first.seq:
            raise broken(trail, f"begins with record {first.seq}, and {other.path.name} beside it has that too")
    begins_chain = begins_anew(first) or (first.seq, first.prev) == (1, GENESIS.digest)
    if begins_chain or not rotated:
        return
    name = (first.additional_event_data or {}).get("previousFile") if first.event_name == MARK else None
    previous = rotated[-1]
    # The name is whatever somebody wrote there: compared, and told with nothing that a terminal obeys.
    if not isinstance(name, str) or previous.path.name not in {name, f"{name}{REDUCED}"}:
        told = repr(name)[1:-1] if isinstance(name, str) else ""
        raise broken(trail, f"{told or 'the file before it'}, which it continues, is missing")
    if end_of(previous, system) != (first.seq - 1, first.prev):
        raise broken(trail, f"does not continue {previous.path.name}: one of the two was changed")


def prev_of(rotated: RotatedFile, system: System) -> str:
    """Return the hash of what the first record of a rotated file continues."""
    try:
        with open_part(rotated, system) as part:
            if rotated.is_reduced:
                return _head_line(part, system).prev
            return first_line(rotated.path, part).prev
    except MalformedLineError as exc:
        raise broken(rotated.path, str(exc)) from None


def end_of(rotated: RotatedFile, system: System) -> Head:
    """Return where the chain of a rotated file ends, by its last line or, if it was reduced, by its head line."""
    try:
        with open_part(rotated, system) as part:
            if rotated.is_reduced:
                reduced = _head_line(part, system)
                return Head(reduced.last_seq, reduced.last_hash)
            start = last_line_end(part.fd, part.stop - 1, system.pread)
            line = b"".join(lines_between(part.fd, start, part.stop))
    except MalformedLineError as exc:
        raise broken(rotated.path, str(exc)) from None
    seq = seq_of(line)
    if seq is None or not line.endswith(b"\n"):
        raise broken(rotated.path, "the last line is no whole record")
    return Head(seq, digest_of(line))


def _head_line(part: Part, system: System) -> Reduced:
    return parse_head_line(system.pread(part.fd, part.start or HEADER_BYTES, 0))


def broken(path: Path, what: str) -> AuditBrokenError:
    """Return the error that names the file and says what is wrong with it."""
    return AuditBrokenError(f"audit trail {path}: {what}")
