"""Check a file that retention reduced: its signed head line, and the lines that were kept (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from kmsd.audit.chain import Head, Line, MalformedLineError, digest_of, parse
from kmsd.audit.checkpoint import CheckpointForgedError, check_signature
from kmsd.audit.reduced import HEADER_BYTES, HeadLine, Reduced, message, parse_head_line
from kmsd.audit.verify import ChainBrokenError, Fault

# How such a file starts.
START = b'{"reduced":'


def check_reduced(lines: Iterable[bytes], public_key: bytes | None) -> tuple[Reduced, list[tuple[int, Line]]]:
    """Check a reduced file, its head line included; return what it stands for, and the records left with their places.

    Without a public key everything but the signature is checked. Raises ChainBrokenError.
    """
    rest = iter(lines)
    part, sha256 = _head(next(rest, b""), public_key)
    records = []
    content = hashlib.sha256()
    head, number = Head(part.first_seq - 1, part.prev), 1
    for number, raw in enumerate(rest, 2):
        content.update(raw)
        try:
            line = parse(raw)
        except MalformedLineError as exc:
            raise ChainBrokenError(number, head.seq + 1, Fault.EDITED, str(exc)) from None
        if not head.seq < line.seq <= part.last_seq:
            what = f"only records {head.seq + 1} to {part.last_seq} can follow here"
            raise ChainBrokenError(number, line.seq, Fault.REORDERED, what)
        if line.seq == head.seq + 1 and line.prev != head.digest:
            raise ChainBrokenError(number, line.seq, Fault.EDITED, "its prev is not the hash of the line before")
        head = Head(line.seq, digest_of(raw))
        records.append((number, line))
    if len(records) != part.kept:
        fault = Fault.REMOVED if len(records) < part.kept else Fault.INSERTED
        what = f"{len(records)} records are left of it, and its first line vouches for {part.kept}"
        raise ChainBrokenError(number, head.seq, fault, what)
    if content.hexdigest() != sha256:
        raise ChainBrokenError(
            number, head.seq, Fault.EDITED, "its lines are not those that its first line vouches for"
        )
    is_whole = head.seq < part.last_seq or head == Head(part.last_seq, part.last_hash)
    if not is_whole or part.kept + part.dropped != part.last_seq - part.first_seq + 1:
        raise ChainBrokenError(1, part.first_seq, Fault.EDITED, "its first line contradicts the others")
    return part, records


def _head(line: bytes, public_key: bytes | None) -> tuple[Reduced, str]:
    """Return what the head line vouches for, and the SHA-256 of the other lines."""
    if len(line) > HEADER_BYTES or not line.endswith(b"\n"):
        raise ChainBrokenError(1, 0, Fault.EDITED, "not the head line of a reduced file: too long, or cut off")
    try:
        part = parse_head_line(line)
    except MalformedLineError as exc:
        raise ChainBrokenError(1, 0, Fault.EDITED, str(exc)) from None
    told = msgspec.json.decode(line, type=HeadLine)
    if public_key is not None:
        try:
            signed = message(bytes(told.reduced), told.sha256)
            check_signature(signed, told.key_id, told.signature, public_key)
        except (CheckpointForgedError, UnicodeEncodeError) as exc:
            what = f"what retention left of records {part.first_seq} to {part.last_seq} is not signed: {exc}"
            raise ChainBrokenError(1, part.first_seq, Fault.FORGED, what) from None
    return part, told.sha256
