"""Which files make a trail, and in which order: by what they hold, not by what they are called (pure).

A trail is the file being written, `audit.log`, the files before it, `audit.log.FIRST-LAST` (numbers of records), each
perhaps reduced by retention, `audit.log.FIRST-LAST.reduced`, and, where it was repaired, `audit.log.broken-N`. Others
beside them (`audit.log.torn-N`, `audit.log.next`) hold nothing of the chain.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from kmsd.audit.chain import Line, MalformedLineError, parse, seq_of
from kmsd.audit.reduced import parse_head_line
from kmsd.audit.reduced_check import START
from kmsd.audit.repair import Repair, read_repair
from kmsd.audit.verify import Fault, begins_anew

_NO_PART = re.compile(r"\.torn-\d+(-\d+)?$|\.next$|\.reducing$")
_BROKEN = re.compile(r"\.broken-\d+$")
_RANGE = re.compile(r"\.(\d{12,19})-(\d{12,19})(\.reduced)?$")
_REDUCED = ".reduced"
# Behind all numbers: where a file stands whose first line has none. The file being written is the last one.
_LAST = 1 << 63


@dataclass(frozen=True)
class TrailFile:
    """A file of a trail: its name as it was given, and how its lines are read, each with its line feed.

    Up to record `sparse_until` lines may be missing, as retention drops them, without a head line that tells so.
    `omits_broken`: those of files that a repair set aside are not among them, as the daemon does not read these.
    """

    name: str
    read: Callable[[], Iterator[bytes]]
    sparse_until: int = 0
    omits_broken: bool = False

    @property
    def basename(self) -> str:
        """The name without folders."""
        return self.name.rpartition("/")[2]

    @property
    def range(self) -> tuple[int, int] | None:
        """The first and the last record that the name tells, None when it tells none."""
        return _range(self.basename)


class TrailBrokenError(Exception):
    """The trail is not as it was written: where it shows, and what was done."""

    def __init__(self, file: str, line: int, seq: int, fault: Fault, what: str) -> None:
        super().__init__(f"{file}, line {line}, seq {seq}: {fault}: {what}")
        self.file = file
        self.line = line
        self.seq = seq
        self.fault = fault
        self.what = what


def _range(name: str) -> tuple[int, int] | None:
    found = _RANGE.search(name)
    return (int(found[1]), int(found[2])) if found else None


class Form(enum.Enum):
    """What is to be expected of a file."""

    WHOLE = "whole"
    REDUCED = "reduced"
    BROKEN = "broken"


@dataclass(frozen=True)
class Placed:
    """A file and what is known of it before it is checked; `repair` is what set a broken one aside."""

    file: TrailFile
    form: Form
    first_seq: int
    first: Line | None = None
    repair: Repair | None = None


def arrange(files: Sequence[TrailFile]) -> tuple[list[Placed], list[str]]:
    """Return the files in the order of their records, and what is to be said of those that are left out."""
    names = {file.basename for file in files}
    notes: list[str] = []
    placed: list[Placed] = []
    for file in files:
        if _NO_PART.search(file.basename):
            notes.append(f"{file.name}: passed over: it is no part of the chain")
        elif file.basename.endswith(_REDUCED) and file.basename.removesuffix(_REDUCED) in names:
            notes.append(f"{file.name}: passed over: the whole file is there as well")
        else:
            found = _look(file)
            if found is None:
                notes.append(f"{file.name}: empty")
            else:
                placed.append(found)
    repairs = {repair.broken_file: (repair, one.first_seq) for one in placed for repair in _repair_of(one)}
    arranged = []
    for one in placed:
        if one.form is not Form.BROKEN:
            arranged.append(one)
        elif one.file.basename in repairs:
            repair, behind = repairs[one.file.basename]
            place = (_range(repair.former_name) or (one.first_seq, 0))[0]
            # What cannot be told to be elsewhere was the last file before the repair.
            arranged.append(Placed(one.file, one.form, min(place, behind - 1), one.first, repair))
        else:
            notes.append(f"{one.file.name}: passed over: no repair among the files refers to it")
    # A broken file may have come to hold the records of another.
    arranged.sort(key=lambda one: (one.first_seq, one.form is Form.BROKEN))
    return arranged, notes


def _look(file: TrailFile) -> Placed | None:
    """Return what the first line of a file tells, None when there is none."""
    raw = next(file.read(), b"")
    named = file.range
    if _BROKEN.search(file.basename):
        form = Form.BROKEN
    elif raw.startswith(START):
        form = Form.REDUCED
    else:
        form = Form.WHOLE
    if not raw and named is None and form is not Form.BROKEN:
        return None
    place = seq_of(raw) or (named[0] if named else _LAST)
    try:
        if form is Form.REDUCED:
            return Placed(file, form, parse_head_line(raw).first_seq)
        first = parse(raw)
    except MalformedLineError:
        return Placed(file, form, place)
    return Placed(file, form, first.seq, first)


def _repair_of(placed: Placed) -> list[Repair]:
    if placed.first is None or not begins_anew(placed.first):
        return []
    try:
        return [read_repair(placed.first)]
    except msgspec.ValidationError:
        return []  # said when the file is checked
