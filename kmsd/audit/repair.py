"""A new chain where an old one was broken: what its first record says of the broken file (pure).

The broken file is evidence and stays beside the trail. What can still be read of it is carried over: where its numbers
ended, which intents were open, and how far the store had come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from kmsd.audit.chain import GENESIS, Head, Line, MalformedLineError, digest_of, link, parse
from kmsd.audit.record import Intent
from kmsd.audit.standing import Standing, system_record
from kmsd.audit.verify import MAX_NUMBER, REPAIR, ChainBrokenError, Walk, told_sequence


class Repair(msgspec.Struct, frozen=True, rename="camel"):
    """What the first record of a new chain says: which file was set aside, where the numbers ended, what was wrong.

    `former_name` is the one that the file had before.
    """

    broken_file: str
    former_name: str
    bytes: int
    sha256: str
    last_seq: int
    last_hash: str
    fault: str


@dataclass(frozen=True)
class Survey:
    """What a broken file holds.

    `last` is the record with the highest number, None if there is none, and `open_intents` what no record of the file
    settles, as far as its lines are records. `store_sequence` is the highest that was told before the chain broke.
    """

    size: int
    sha256: str
    last: Head | None
    open_intents: tuple[Intent, ...]
    store_sequence: int


def survey(lines: Iterable[bytes]) -> Survey:
    """Read a file that may hold anything."""
    content, size = hashlib.sha256(), 0
    last: Head | None = None
    walk = Walk(None)
    before, whole, store_sequence = None, True, 0
    for number, raw in enumerate(lines, 1):
        content.update(raw)
        size += len(raw)
        try:
            line = parse(raw)
            if line.seq > MAX_NUMBER:
                continue
            walk.heed(number, line)
        except (MalformedLineError, ChainBrokenError):
            whole = False
            continue
        here = Head(line.seq, digest_of(raw))
        whole = whole and (before is None or (line.seq, line.prev) == (before.seq + 1, before.digest))
        if whole:
            store_sequence = max(store_sequence, told_sequence(line.additional_event_data))
        before = here
        if last is None or here.seq > last.seq:
            last = here
    return Survey(size, content.hexdigest(), last, walk.open_intents, store_sequence)


def begin_anew(repair: Repair, found: Survey, event_time: str) -> list[bytes]:
    """Return the first lines of the new chain: the repair, and a mark of what is open unless its line is too long."""
    records = [system_record(REPAIR, msgspec.to_builtins(repair))]
    mark = Standing(found.open_intents, found.store_sequence).mark()
    if mark is not None:
        records.append(mark)
    lines, _ = link(Head(repair.last_seq, GENESIS.digest), records, event_time)
    return lines


def read_repair(line: Line) -> Repair:
    """Return what a repair's record says; raises msgspec.ValidationError."""
    return msgspec.convert(line.additional_event_data, Repair)
