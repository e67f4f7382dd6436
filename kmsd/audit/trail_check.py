"""Check a whole trail off-line: its files, their signed checkpoints, and anchors that were noted outside it (pure).

The chain shows every change before its last line. A checkpoint shows that nothing before it was written anew by
somebody who does not have the audit key. An anchor shows that the trail once reached as far as itself. What is behind
the last of them is as trustworthy as the disk that it lies on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from kmsd.audit.anchors import Anchor
from kmsd.audit.chain import GENESIS, Head, Line
from kmsd.audit.checkpoint import Checkpoint
from kmsd.audit.record import Intent
from kmsd.audit.reduced_check import check_reduced
from kmsd.audit.repair import Repair, read_repair, survey
from kmsd.audit.signatures import Checkpoints, Extent, Gap, Span, compare
from kmsd.audit.trail_files import Form, Placed, TrailBrokenError, TrailFile, arrange
from kmsd.audit.verify import ChainBrokenError, Fault, Walk, begins_anew

# Behind all numbers that a record can have.
_NO_END = 1 << 63


@dataclass(frozen=True)
class TrailReport:
    """A trail that is as it was written, as far as the files, the key and the anchors show.

    `lines` are the records that were read, `dropped` those that retention had dropped. `signed` is the last checkpoint
    that was verified, `unsigned` the number of records behind it. Without a public key checkpoints were `unchecked`.
    `anchors` counts those that the trail agrees with.
    """

    files: int
    lines: int
    dropped: int
    first_seq: int
    last_seq: int
    last_hash: str
    checkpoints: int
    unchecked: int
    signed: Checkpoint | None
    unsigned: int
    anchors: int
    open_intents: tuple[Intent, ...]
    notes: tuple[str, ...]


def check_trail(
    files: Sequence[TrailFile],
    *,
    public_key: bytes | None = None,
    anchors: Iterable[Anchor] = (),
    is_part: bool = False,
    trusts_repairs: bool = False,
) -> TrailReport:
    """Check the files of a trail, in whatever order they come, and return what it is.

    `public_key` is the audit key's (32 bytes), with which the `anchors` were verified. `is_part` says that the files
    before the first one are missing on purpose, `trusts_repairs` that a repair need not be signed or explained. Raises
    TrailBrokenError.
    """
    arranged, notes = arrange(files)
    course = _Course(public_key, notes, is_part=is_part)
    for placed in arranged:
        course.take(placed)
    if not trusts_repairs:
        course.judge_repairs()
    return course.end(anchors)


@dataclass
class _NewChain:
    """A chain that a repair began; it counts once somebody accepted it, which its first checkpoint shows."""

    file: str
    line: int
    first: Line
    repair: Repair
    is_explained: bool  # the broken file is there
    is_signed: bool = False


class _Course:
    """The way through the files, and what was met on it."""

    def __init__(self, public_key: bytes | None, notes: list[str], *, is_part: bool) -> None:
        self._has_key = public_key is not None
        self._public_key = public_key
        self._notes = notes
        self._is_part = is_part
        self._walk = Walk(None)
        self._checkpoints = Checkpoints(public_key)
        self._previous = ""  # the file before
        self._is_ragged = False  # whether that one was broken, so that nothing need continue it
        self._broken: set[str] = set()  # the files of that kind that were met
        self._chains: list[_NewChain] = []
        self._files = self._dropped = 0
        self._start = 0  # the first record that the files can have
        self._spans: list[Span] = []
        self._gaps: list[Gap] = []

    def take(self, placed: Placed) -> None:
        """Go through the next file."""
        name = placed.file.name
        try:
            if placed.repair is not None:
                self._pass_broken(placed, placed.repair)
            elif placed.form is Form.REDUCED:
                self._take_reduced(placed)
            else:
                self._take_whole(placed)
        except ChainBrokenError as exc:
            raise TrailBrokenError(name, exc.line, exc.seq, exc.fault, exc.what) from None
        self._previous = name
        self._files += 1

    def judge_repairs(self) -> None:
        """Refuse a new chain that nothing speaks for; whoever can write the files can claim a repair."""
        for chain in self._chains:
            repair = chain.repair
            if self._has_key and not chain.is_signed:
                what = "a repair began a new chain here, and nothing behind it is signed: nobody accepted it so far"
                raise TrailBrokenError(chain.file, chain.line, chain.first.seq, Fault.FORGED, what)
            if not self._has_key and not chain.is_explained:
                what = f"a repair began a new chain here, and {repair.broken_file} is not among the files to show why"
                raise TrailBrokenError(chain.file, chain.line, chain.first.seq, Fault.FORGED, what)
            # The numbers behind were given again, as the repair found no record that had them.
            why = f"what was behind record {repair.last_seq} was cut off before the repair of {chain.first.event_time}"
            self._gaps.append(Gap(chain.first.seq, _NO_END, why, until=chain.first.event_time))

    def end(self, anchors: Iterable[Anchor]) -> TrailReport:
        """Look at what only shows once all files were seen, and return what was found."""
        seq, digest = self._walk.head or GENESIS
        signed = self._checkpoints.signed
        if self._has_key and signed is None and seq:
            what = "no record is signed by this key: the checkpoints were removed, or kmsd was never unsealed"
            raise TrailBrokenError(self._previous, 1, self._start, Fault.FORGED, what)
        extent = Extent(self._start, seq, tuple(self._spans), tuple(self._gaps))
        met = 0
        for anchor in anchors:
            why = compare(anchor, self._checkpoints, extent)
            if why is None:
                met += 1
            else:
                self._notes.append(why)
        return TrailReport(
            files=self._files,
            lines=self._walk.records,
            dropped=self._dropped,
            first_seq=self._start,
            last_seq=seq,
            last_hash=digest,
            checkpoints=self._checkpoints.verified,
            unchecked=self._checkpoints.unchecked,
            signed=signed,
            unsigned=seq - max(signed.seq if signed else 0, self._start - 1, 0),
            anchors=met,
            open_intents=self._walk.open_intents,
            notes=tuple(self._notes),
        )

    def _take_whole(self, placed: Placed) -> None:
        name, named = placed.file.name, placed.file.range
        if placed.first is not None:
            self._check_name(placed.file, placed.first.seq)
            if begins_anew(placed.first):
                self._begin_anew(placed.file, 1, placed.first)
            else:
                self._join(placed.file, placed.first.seq, placed.first.prev)
        before, _ = self._walk.head = self._walk.head or GENESIS
        try:
            for number, line in self._walk.follow(placed.file.read(), partial(self._resume, placed.file)):
                self._meet(number, line)
        finally:
            last, _ = self._walk.head
            self._spans.append(Span(name, before + 1, last, 0 if placed.file.sparse_until else 1))
        if named is not None and last != named[1]:
            what = f"its name tells of records to {named[1]}, and it ends with record {last}"
            fault = Fault.CUT if last < named[1] else Fault.INSERTED
            raise ChainBrokenError(last - before + 1, last + 1, fault, what)

    def _take_reduced(self, placed: Placed) -> None:
        name = placed.file.name
        part, records = check_reduced(placed.file.read(), self._public_key)
        self._check_name(placed.file, part.first_seq)
        self._join(placed.file, part.first_seq, part.prev)
        for number, line in records:
            self._walk.heed(number, line)
            self._meet(number, line)
        if not self._has_key:
            self._notes.append(f"{name}: retention dropped {part.dropped} records, and no key is given to verify that")
        self._walk.records += len(records)
        self._dropped += part.dropped
        self._walk.jump(Head(part.last_seq, part.last_hash), forget=False)
        self._spans.append(Span(name, part.first_seq, part.last_seq, 0))

    def _pass_broken(self, placed: Placed, repair: Repair) -> None:
        """Go through a file that a repair set aside: it has to be that file, and its faults are known."""
        found = survey(placed.file.read())
        if (found.size, found.sha256) != (repair.bytes, repair.sha256):
            what = f"it is not the file that the repair behind record {repair.last_seq} set aside: its SHA-256 differs"
            raise ChainBrokenError(1, placed.first_seq, Fault.EDITED, what)
        try:
            self._take_whole(placed)
        except ChainBrokenError as exc:
            told = TrailBrokenError(placed.file.name, exc.line, exc.seq, exc.fault, exc.what)
            self._notes.append(f"set aside by a repair: {told}")
            held = self._walk.head or GENESIS
            end = max(held, found.last or held)
            self._gaps.append(Gap(held.seq + 1, end.seq, f"{placed.file.name} is broken before it"))
            self._walk.jump(end, forget=True)
        self._broken.add(placed.file.basename)
        self._is_ragged = True

    @staticmethod
    def _check_name(file: TrailFile, first_seq: int) -> None:
        named = file.range
        if named is not None and first_seq != named[0]:
            what = f"its name tells of records {named[0]} to {named[1]}, and it begins with record {first_seq}"
            raise ChainBrokenError(1, named[0], Fault.REMOVED if first_seq > named[0] else Fault.EDITED, what)

    def _join(self, file: TrailFile, first_seq: int, prev: str) -> None:
        """See how a file follows the one before it."""
        name, head, own_word = file.name, self._walk.head, Head(first_seq - 1, prev)
        if head is None:
            self._start = first_seq
            if first_seq - 1 > file.sparse_until and not self._is_part:
                raise ChainBrokenError(1, 1, Fault.REMOVED, _before(name, first_seq - 1))
            self._walk.head = own_word if first_seq > 1 else GENESIS
        elif self._is_ragged and own_word != head and own_word.seq >= head.seq:
            if own_word.seq > head.seq:
                missing = f"{_numbers(head.seq + 1, own_word.seq)} missing between {self._previous} and {name}"
                self._notes.append(missing)
                self._gaps.append(Gap(head.seq + 1, own_word.seq, missing))
            self._walk.jump(own_word, forget=True)
        elif own_word.seq > head.seq:
            what = f"{_numbers(head.seq + 1, own_word.seq)} missing between {self._previous} and {name}"
            raise ChainBrokenError(1, head.seq + 1, Fault.REMOVED, what)
        elif own_word.seq < head.seq:
            what = f"it begins with record {first_seq}, and {self._previous} goes to record {head.seq} already"
            raise ChainBrokenError(1, first_seq, Fault.INSERTED, what)
        elif own_word != head:
            what = (
                f"its prev is not the hash of record {head.seq}, the last of {self._previous}: one of them was changed"
            )
            raise ChainBrokenError(1, first_seq, Fault.EDITED, what)
        self._is_ragged = False

    def _resume(self, file: TrailFile, number: int, line: Line) -> Head | None:
        """Return what a line in the middle of a file continues that does not continue the one before it."""
        if begins_anew(line):
            self._begin_anew(file, number, line)  # the daemon gives its files as one
            return self._walk.head
        before, _ = self._walk.head or GENESIS
        if before < line.seq - 1 <= file.sparse_until:
            self._dropped += line.seq - 1 - before
            self._gaps.append(Gap(before + 1, line.seq - 1, f"{file.name} does not have it any more"))
            note = (
                f"{file.name}: whether retention dropped what is missing, only its signed files show: verify those too"
            )
            self._notes.extend({note}.difference(self._notes))
            return Head(line.seq - 1, line.prev)
        return None

    def _begin_anew(self, file: TrailFile, number: int, first: Line) -> None:
        """Take the first record of a new chain at its word, as far as the files do not contradict it."""
        name = file.name
        try:
            repair = read_repair(first)
        except msgspec.ValidationError as exc:
            raise ChainBrokenError(number, first.seq, Fault.EDITED, f"a repair that says too little: {exc}") from None
        if self._walk.head is None and repair.last_seq and not (self._is_part or file.omits_broken):
            raise ChainBrokenError(number, 1, Fault.REMOVED, _before(name, repair.last_seq))
        head = self._walk.head or GENESIS
        last = Head(repair.last_seq, repair.last_hash)
        is_explained = repair.broken_file in self._broken
        if last.seq != first.seq - 1 or head.seq > last.seq or (head.seq == last.seq and head != last):
            what = f"a repair behind record {last.seq}, which {self._previous or 'its own number'} shows otherwise"
            raise ChainBrokenError(number, first.seq, Fault.EDITED, what)
        if head.seq < last.seq:
            self._gaps.append(Gap(head.seq + 1, last.seq, f"it may be in {repair.broken_file}, which is not given"))
        self._notes.append(
            f"{name}: a new chain begins with record {first.seq} ({first.event_time}) after a repair; the broken file "
            f"is {repair.broken_file}{'' if is_explained else ' (not given)'}: {repair.fault}"
        )
        self._chains.append(_NewChain(name, number, first, repair, is_explained))
        self._start = self._start or first.seq
        self._walk.jump(Head(last.seq, GENESIS.digest), forget=True)
        self._is_ragged = False

    def _meet(self, number: int, line: Line) -> None:
        if self._checkpoints.meet(number, line) and self._chains:
            for chain in self._chains:
                chain.is_signed = True


def _numbers(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"


def _before(name: str, last: int) -> str:
    return f"{_numbers(1, last)} missing: what was before {name} was removed, or is not given"
