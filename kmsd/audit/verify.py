"""Check a chain of lines: every line continues the one before, or the first that does not is named (pure).

What a chain alone cannot show: that its last lines were cut off or its last line was edited (nothing comes behind it),
and that somebody wrote the whole rest anew. For those there are checkpoints and anchors; `kmsd.audit.trail_check` looks
at them, and at a trail of several files.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import msgspec

from kmsd.audit.chain import GENESIS, MAX_READ_LINE_BYTES, Head, Line, MalformedLineError, digest_of, parse
from kmsd.audit.record import SETTLES, Intent, Kind

# The name of the record that repeats the open intents, so that a start need not read the file from its beginning.
MARK = "MarkAuditTrail"

# The name of the record that begins a new chain where an old one was broken.
REPAIR = "RepairAuditTrail"

# No trail and no store comes near; a number beyond was made up, and counting on from it could exhaust what a number may
# be. The largest that every reader of JSON takes (RFC 8259, section 6).
MAX_NUMBER = 2**53 - 1

# How many lines behind a break are looked at to tell a moved record from a removed one. Those who shuffle lines by
# accident or to hide one rarely move them far; a record that was moved farther is reported as removed.
LOOKAHEAD_LINES = 64


class Fault(enum.StrEnum):
    """What was most likely done to the trail."""

    EDITED = "edited"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    TORN = "torn"
    FORGED = "forged"
    CUT = "cut off"


class ChainBrokenError(Exception):
    """The trail is not as it was written.

    `line` counts from 1 and is where it shows, `seq` is the number of the record concerned, `what` says it in words.
    """

    def __init__(self, line: int, seq: int, fault: Fault, what: str) -> None:
        super().__init__(f"line {line}, seq {seq}: {fault}: {what}")
        self.line = line
        self.seq = seq
        self.fault = fault
        self.what = what


@dataclass(frozen=True)
class Report:
    """A whole trail: its length, where it starts (0 if empty) and ends, and the intents that nothing settles.

    `store_sequence` is the highest number of commits of the store that it tells of, 0 if it tells none.
    """

    lines: int
    first_seq: int
    last_seq: int
    last_hash: str
    open_intents: tuple[Intent, ...]
    store_sequence: int


class _Seen(NamedTuple):
    """What is kept of a line behind a break; seq is 0 and prev empty for a line that is no record."""

    seq: int
    prev: str
    digest: str

    def continues(self, head: Head) -> bool:
        return self.seq == head.seq + 1 and self.prev == head.digest


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, holding at most `MAX_READ_LINE_BYTES` and a byte; a longer line comes in pieces."""
    while line := stream.readline(MAX_READ_LINE_BYTES + 1):
        yield line


class Walk:
    """A walk along a chain: how far it came, and which intents are open there.

    `head` is what the next line has to continue; None takes the first line's own word for it (a part of a trail).
    """

    def __init__(self, head: Head | None) -> None:
        self.head = head
        self.records = 0
        self.first_seq = 0
        self.store_sequence = 0
        self._intents: dict[tuple[str, str], Intent] = {}
        # Whether intents may be open that were not met on the way: then the next mark tells them.
        self._heeds_mark = True

    @property
    def open_intents(self) -> tuple[Intent, ...]:
        """The intents and begins that nothing has settled so far, oldest first."""
        return tuple(self._intents.values())

    def follow(
        self, lines: Iterable[bytes], resume: Callable[[int, Line], Head | None] = lambda *_: None
    ) -> Iterator[tuple[int, Line]]:
        """Go on along the lines of a file, each with its line feed, and yield its service events with their places.

        `resume` is asked about a place and line that do not fit, and may return what it continues instead. Raises
        ChainBrokenError at the first line that does not fit; `head` is then what it should have continued.
        """
        rest = iter(lines)
        for number, raw in enumerate(rest, 1):
            try:
                line = parse(raw)
            except MalformedLineError as exc:
                raise _not_a_record(number, raw, str(exc), self.head or GENESIS, _look_ahead(rest)) from None
            if self.head is None or (self.head == GENESIS and begins_anew(line)):
                self.head = Head(line.seq - 1, line.prev)
            if line.seq != self.head.seq + 1 or line.prev != self.head.digest:
                self.head = resume(number, line) or self.head
            if line.seq != self.head.seq + 1 or line.prev != self.head.digest:
                raise _out_of_place(number, _Seen(line.seq, line.prev, digest_of(raw)), self.head, _look_ahead(rest))
            self.head = Head(line.seq, digest_of(raw))
            if line.event_type != Kind.REQUEST:
                self.heed(number, line)
                if line.event_type == Kind.SYSTEM:
                    yield number, line
            self.records += 1
            self.first_seq = self.first_seq or line.seq

    def heed(self, number: int, line: Line) -> None:
        """Take account of what a line opens, settles or repeats; `number` is its place."""
        self.store_sequence = max(self.store_sequence, told_sequence(line.additional_event_data))
        if line.event_type in SETTLES:
            self._intents.pop((SETTLES[Kind(line.event_type)], line.request_id), None)
        elif line.event_type in SETTLES.values():
            self._intents[line.event_type, line.request_id] = _intent(line)
        elif self._heeds_mark and line.event_name == MARK:
            self._intents.update(_marked(number, line))
            self._heeds_mark = False

    def jump(self, head: Head, *, forget: bool) -> None:
        """Go on behind `head`, which was reached another way; `forget` what is open, as only the next mark tells it."""
        self.head = head
        if forget:
            self._intents.clear()
            self._heeds_mark = True


def begins_anew(line: Line) -> bool:
    """Return whether a line is the first of a chain that an administrator began where another was broken."""
    return line.event_type == Kind.SYSTEM and line.event_name == REPAIR and line.prev == GENESIS.digest


def verify(lines: Iterable[bytes], *, start: Head | None = GENESIS) -> Report:
    """Check a chain, each line with its line feed, and return what it is.

    `start` is the head that the first line continues: `GENESIS` for a chain from its beginning (record 1, or a repair),
    None to take the first line's own word for it (a part of a trail). Raises ChainBrokenError at the first line that
    does not fit.
    """
    walk = Walk(start)
    for _ in walk.follow(lines):
        pass
    seq, digest = walk.head or GENESIS
    return Report(walk.records, walk.first_seq, seq, digest, walk.open_intents, walk.store_sequence)


def told_sequence(details: dict[str, Any] | None) -> int:
    """Return the number of commits of the store that a record tells in `additionalEventData`, 0 if it tells none."""
    told = None if details is None else details.get("storeSequence")
    return told if type(told) is int and 0 <= told <= MAX_NUMBER else 0


def _intent(line: Line) -> Intent:
    return Intent(
        line.seq,
        Kind(line.event_type),
        line.event_name,
        line.request_id,
        line.user_identity,
        tuple([resource.arn for resource in line.resources]),
    )


def _marked(number: int, line: Line) -> dict[tuple[str, str], Intent]:
    """Return the open intents that a mark repeats."""
    try:
        found = msgspec.convert((line.additional_event_data or {}).get("openIntents"), list[Intent])
    except msgspec.ValidationError as exc:
        raise ChainBrokenError(number, line.seq, Fault.EDITED, f"openIntents: {exc}") from None
    return {(intent.kind, intent.request_id): intent for intent in found}


def _look_ahead(rest: Iterator[bytes]) -> list[_Seen]:
    seen = []
    for raw in itertools.islice(rest, LOOKAHEAD_LINES):
        try:
            line = parse(raw)
        except MalformedLineError:
            seen.append(_Seen(0, "", digest_of(raw)))
        else:
            seen.append(_Seen(line.seq, line.prev, digest_of(raw)))
    return seen


def _not_a_record(number: int, raw: bytes, why: str, head: Head, ahead: list[_Seen]) -> ChainBrokenError:
    expected = head.seq + 1
    if not ahead and not raw.endswith(b"\n") and len(raw) <= MAX_READ_LINE_BYTES:
        return ChainBrokenError(number, expected, Fault.TORN, "the last line was not written to its end")
    if ahead and ahead[0].continues(head):
        return ChainBrokenError(number, expected, Fault.INSERTED, f"{why}; the next line continues without it")
    return ChainBrokenError(number, expected, Fault.EDITED, why)


def _out_of_place(number: int, seen: _Seen, head: Head, ahead: list[_Seen]) -> ChainBrokenError:
    """Return what most likely happened to a well-formed line that does not continue `head`."""
    expected = head.seq + 1
    following = ahead[0] if ahead else None
    # 1. The line after it, or one soon after, is the one that belongs here.
    if any(other.continues(head) for other in ahead):
        if any(other.digest == seen.prev for other in ahead):
            return ChainBrokenError(number, seen.seq, Fault.REORDERED, f"record {expected} comes later")
        return ChainBrokenError(number, seen.seq, Fault.INSERTED, f"record {expected} comes later, without this one")
    # 2. It follows its predecessor by hash, so its number is what was changed.
    if seen.prev == head.digest:
        return ChainBrokenError(number, expected, Fault.EDITED, f"its seq says {seen.seq}")
    # 3. It has the right number, so either it or its predecessor was changed; its successor knows which.
    if seen.seq == expected:
        if following is not None and following.prev != seen.digest:
            return ChainBrokenError(number, expected, Fault.EDITED, "its prev is not the hash of the line before")
        if number > 1:
            what = "the record behind it has another hash of it"
            return ChainBrokenError(number - 1, head.seq, Fault.EDITED, what)
        return ChainBrokenError(number, expected, Fault.EDITED, "it does not continue the start of the trail")
    # 4. Numbers are missing, or come again.
    if seen.seq > expected:
        missing = f"record {expected} is" if seen.seq == expected + 1 else f"records {expected} to {seen.seq - 1} are"
        return ChainBrokenError(number, expected, Fault.REMOVED, f"{missing} missing before record {seen.seq}")
    return ChainBrokenError(number, seen.seq, Fault.INSERTED, f"record {expected} was expected: a line too many")
