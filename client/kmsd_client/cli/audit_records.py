"""Records of the trail: where they come from, and how they are told to people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from kmsd.api.administration import GET_AUDIT_RECORDS, GetAuditRecordsRequest
from kmsd.audit.chain import seq_of
from kmsd.audit.trail_files import TrailFile, arrange
from kmsd.audit.verify import read_lines
from kmsd_client import Client
from kmsd_client.cli.terminal import printable

# What one request may ask for.
PAGE_RECORDS = 1000

# A line of the trail as JSON has it.
Record: TypeAlias = dict[str, Any]

# What a record that is not a request's only one says of its outcome.
_STAGES = {"ApiCallIntent": "begins", "FileBegin": "begins"}


def decode(line: str | bytes) -> Record:
    """Return a line as JSON has it."""
    record: Record = msgspec.json.decode(line, type=dict[str, Any])
    return record


def is_settled(record: Record) -> bool:
    """Return whether a record tells an outcome, and not only that something begins."""
    return record.get("eventType") not in _STAGES


def told(record: Record) -> str:
    """Return a record as one line for people: when, who, what, on which keys, and what became of it."""
    keys = " ".join(resource["ARN"].rpartition("/")[2] for resource in record.get("resources", ()))
    context = (record.get("requestParameters") or {}).get("encryptionContext") or {}
    pairs = " ".join(f"{name}={value}" for name, value in context.items())
    outcome = record.get("errorCode") or _STAGES.get(record["eventType"], "done")
    parts = (record["eventTime"], f"#{record['seq']}", who(record), record["eventName"], outcome, keys, pairs)
    return printable("  ".join(part for part in parts if part))


def who(record: Record) -> str:
    """Return who it was, as briefly as can be."""
    identity = record.get("userIdentity") or {}
    return identity.get("userName") or (f"uid {identity['uid']}" if "uid" in identity else "kmsd")


def trail_file(path: Path) -> TrailFile:
    """Return a file that is read line by line."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as stream:
            yield from read_lines(stream)

    return TrailFile(str(path), read)


def records_of(paths: Sequence[Path]) -> Iterator[bytes]:
    """Yield the lines of a trail's files that are records, oldest first; nothing is verified."""
    placed, _ = arrange([trail_file(path) for path in paths])
    for one in placed:
        for line in one.file.read():
            if seq_of(line) is not None and line.endswith(b"\n"):
                yield line[:-1]


def records_from(client: Client, since: dt.datetime | None) -> Iterator[bytes]:
    """Yield the daemon's lines, oldest first, from the beginning or from shortly before a time."""
    after = None if since else 0  # a number counts for more than a time
    while True:
        request = GetAuditRecordsRequest(after_sequence=after, since=since, limit=PAGE_RECORDS)
        page = client.call(GET_AUDIT_RECORDS, request)
        for line in page.records:
            raw = line.encode()
            after = seq_of(raw) or after
            yield raw
        if not page.truncated:
            return
