"""Anchors: checkpoints that were noted outside the trail, in a file, the service log or the journal (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from kmsd.audit.checkpoint import Checkpoint, CheckpointForgedError, check
from kmsd.audit.verify import Fault

# What every anchor has and hardly another line of a log: a line with both that is no anchor was one.
_TRACES = (b'"keyId"', b'"signature"')

_DECODER = msgspec.json.Decoder(Checkpoint)


class AnchorForgedError(Exception):
    """An anchor was not signed by the audit key; `file` and `line` tell its place."""

    def __init__(self, file: str, line: int, what: str) -> None:
        super().__init__(f"{file}, line {line}: {Fault.FORGED}: {what}")
        self.file = file
        self.line = line
        self.fault = Fault.FORGED
        self.what = what


@dataclass(frozen=True)
class Anchor:
    """A checkpoint and the place it was noted at."""

    file: str
    line: int
    checkpoint: Checkpoint


def read_anchors(file: str, lines: Iterable[bytes], public_key: bytes) -> Iterator[Anchor]:
    """Yield the anchors among the lines of a file called `file`, each checked with the audit key's public part.

    What stands before the first brace (the journal's time and host) and lines that are no anchors are passed over.
    Raises AnchorForgedError.
    """
    for number, raw in enumerate(lines, 1):
        text = raw[max(raw.find(b"{"), 0) :]
        try:
            checkpoint = _DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if all(trace in text for trace in _TRACES):
                raise AnchorForgedError(file, number, "it is not an anchor as kmsd writes them") from None
            continue
        try:
            check(checkpoint, public_key)
        except CheckpointForgedError as exc:
            what = f"the anchor of {checkpoint.event_time} for record {checkpoint.seq}: {exc}"
            raise AnchorForgedError(file, number, what) from None
        yield Anchor(file, number, checkpoint)
