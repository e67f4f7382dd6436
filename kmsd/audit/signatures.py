"""What the audit key vouches for in a trail: the checkpoints that are met, and anchors compared with them (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kmsd.audit.anchors import Anchor
from kmsd.audit.chain import Line
from kmsd.audit.checkpoint import CHECKPOINT, Checkpoint, CheckpointForgedError, check
from kmsd.audit.trail_files import TrailBrokenError
from kmsd.audit.verify import ChainBrokenError, Fault


class Checkpoints:
    """The checkpoints of a trail, each verified when it is met if there is a public key."""

    def __init__(self, public_key: bytes | None) -> None:
        self._public_key = public_key
        self._found: dict[int, Checkpoint] = {}
        self.verified = 0
        self.signed: Checkpoint | None = None  # the last one that was verified

    @property
    def unchecked(self) -> int:
        """How many were met without a key to verify them."""
        return len(self._found) - self.verified

    def at(self, seq: int) -> Checkpoint | None:
        """Return the one that is record `seq`."""
        return self._found.get(seq)

    def meet(self, number: int, line: Line) -> bool:
        """Look at a service event; return whether it is a checkpoint that was verified. Raises ChainBrokenError."""
        if line.event_name != CHECKPOINT:
            return False
        place = {"seq": line.seq, "prev": line.prev, "eventTime": line.event_time}
        try:
            checkpoint = msgspec.convert({**(line.additional_event_data or {}), **place}, Checkpoint)
            if self._public_key is not None:
                check(checkpoint, self._public_key)
        except (CheckpointForgedError, msgspec.ValidationError) as exc:
            raise ChainBrokenError(number, line.seq, Fault.FORGED, f"the checkpoint: {exc}") from None
        self._found[line.seq] = checkpoint
        if self._public_key is None:
            return False
        self.signed = checkpoint
        self.verified += 1
        return True


@dataclass(frozen=True)
class Span:
    """The records that a file has; `first_line` is the line of the first, 0 where lines cannot be counted."""

    file: str
    first: int
    last: int
    first_line: int

    def line_of(self, seq: int) -> int:
        """Return the line that a record is."""
        return seq - self.first + self.first_line if self.first_line else 1


@dataclass(frozen=True)
class Gap:
    """Records that are in no file that could be checked, and why; those written after `until` are not meant."""

    first: int
    last: int
    why: str
    until: str | None = None

    def excuses(self, noted: Checkpoint) -> bool:
        """Return whether a checkpoint may be missing."""
        return self.first <= noted.seq <= self.last and (self.until is None or noted.event_time < self.until)


@dataclass(frozen=True)
class Extent:
    """Where the records of a trail are that was gone through."""

    start: int
    end: int
    spans: tuple[Span, ...]
    gaps: tuple[Gap, ...]


def compare(anchor: Anchor, checkpoints: Checkpoints, extent: Extent) -> str | None:
    """Compare a trail with an anchor; return why that is not possible, None if the trail has its checkpoint.

    Raises TrailBrokenError when the trail should have it.
    """
    noted = anchor.checkpoint
    found = checkpoints.at(noted.seq)
    if found == noted:
        return None
    told = f"the anchor of {noted.event_time} ({anchor.file}, line {anchor.line})"
    if noted.seq < extent.start:
        return f"{told} cannot be checked: it is for record {noted.seq}, and the files begin with {extent.start}"
    for gap in extent.gaps:
        if gap.excuses(noted):
            return f"{told} cannot be checked: it is for record {noted.seq}; {gap.why}"
    last = extent.spans[-1] if extent.spans else Span("the trail", 1, 0, 1)
    if noted.seq > extent.end:
        what = f"the trail ends at seq {extent.end}, but {told} shows that there were at least {noted.seq} records"
        raise TrailBrokenError(
            last.file, last.line_of(extent.end) + 1, extent.end + 1, Fault.CUT, f"{what}: the tail was cut off"
        )
    span = next((span for span in extent.spans if span.first <= noted.seq <= span.last), last)
    has = "another checkpoint" if found else "no checkpoint"
    what = f"{told} shows a checkpoint as record {noted.seq}, and the trail has {has} there: it was written anew"
    raise TrailBrokenError(span.file, span.line_of(noted.seq), noted.seq, Fault.EDITED, what)
