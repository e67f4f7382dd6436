"""How the lines of the trail hang together: `seq` counts, `prev` is the SHA-256 of the line before (pure).

A line is `{"seq":N,"prev":"...","eventTime":"...",...}` and one line feed. The hash covers the whole line as it lies in
the file, line feed included: `head -n N FILE | tail -n 1 | sha256sum` prints the `prev` of line N+1.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from kmsd.audit.record import Actor, Record, Resource, cut, encode

# Several records fit one reply of GetAuditRecords (`kmsd.api.operation.MAX_FRAME_BYTES`, 1 MiB), so no record can keep
# the trail from being read. Escaping makes at most six bytes of one: an encryption context of 8 KiB stays below 48 KiB
# and a policy of 32 KiB below 192 KiB.
MAX_LINE_BYTES = 256 * 1024

# What readers accept: trails of the first kmsd have lines up to this, six times a frame and the members kmsd adds.
MAX_READ_LINE_BYTES = 8 * 1024 * 1024

_SEQ = re.compile(rb'\{"seq":([0-9]{1,19}),')  # 19 digits: as many as a signed 64-bit number has


class Head(NamedTuple):
    """Where a chain ends: the number of its last line and that line's SHA-256 in hex."""

    seq: int
    digest: str


GENESIS = Head(0, "0" * 64)  # what the first line of a trail continues; no line is known to hash to it


class Line(msgspec.Struct, frozen=True, rename="camel"):
    """The members of a line that the chain and its open intents are checked by; others are left alone."""

    seq: int
    prev: str
    event_time: str
    event_type: str
    event_name: str
    request_id: str = msgspec.field(name="requestID")
    user_identity: Actor | None = None
    resources: tuple[Resource, ...] = ()
    additional_event_data: dict[str, Any] | None = None


class MalformedLineError(ValueError):
    """A line is not a record; the message says in what way."""


_DECODER = msgspec.json.Decoder(Line)


def link(head: Head, records: Iterable[Record], event_time: str) -> tuple[list[bytes], Head]:
    """Return the lines of `records` that continue `head`, and the head they make.

    No line is longer than `MAX_LINE_BYTES`: of a record that would have one, the line has what `record.cut` keeps.
    """
    seq, digest = head
    lines = []
    for record in records:
        seq += 1
        line = encode(record, seq, digest, event_time)
        if len(line) > MAX_LINE_BYTES:
            line = encode(cut(record, line), seq, digest, event_time)
        digest = hashlib.sha256(line).hexdigest()
        lines.append(line)
    return lines, Head(seq, digest)


def fits(record: Record) -> bool:
    """Return whether the record's line would be written uncut, whatever its number."""
    longest = Head(10**18, GENESIS.digest)  # the longest number that a line may have
    return len(encode(record, *longest, format_time(0.0))) <= MAX_LINE_BYTES


def digest_of(line: bytes) -> str:
    """Return the SHA-256 of a whole line in hex: the `prev` of the next one."""
    return hashlib.sha256(line).hexdigest()


def parse(line: bytes) -> Line:
    """Return what the chain needs of a line; raises MalformedLineError when it is not a whole record."""
    if len(line) > MAX_READ_LINE_BYTES:
        raise MalformedLineError(f"longer than {MAX_READ_LINE_BYTES} bytes")
    if not line.endswith(b"\n"):
        raise MalformedLineError("does not end with a line feed")
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedLineError(f"not a record: {exc}") from None


def seq_of(start: bytes) -> int | None:
    """Return the `seq` of the line that starts with `start` (40 bytes suffice), None if it does not start as one."""
    match = _SEQ.match(start)
    return int(match[1]) if match else None


def format_time(seconds: float) -> str:
    """Return seconds since 1970 as CloudTrail writes them (ISO 8601, UTC), with milliseconds."""
    milliseconds = int(seconds * 1000)
    return f"{_format_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


def parse_time(text: str) -> float:
    """Return the seconds since 1970 of an `eventTime`; raises ValueError."""
    return dt.datetime.fromisoformat(text).timestamp()


@functools.lru_cache(maxsize=1)  # strftime costs more than the rest of the line, and a second has many records
def _format_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
