"""Read and verify the audit trail."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from kmsd.api.administration import GET_AUDIT_RECORDS, GetAuditRecordsRequest
from kmsd.audit.verify import ChainBrokenError, read_lines, verify
from kmsd_client import Client
from kmsd_client.cli.terminal import CommandError, print_json, printable

# What one request may ask for.
_REQUEST_RECORDS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="tail|verify")
    tail = verbs.add_parser("tail", help="print the newest records")
    tail.add_argument("-n", type=int, default=20, metavar="N", help="how many (default: 20)", dest="count")
    tail.add_argument("--json", action="store_true", help="print the lines as they stand in the trail")
    tail.set_defaults(run=run_tail)
    check = verbs.add_parser("verify", help="check that no record was changed, removed, inserted or moved")
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the trail's file; otherwise the daemon's")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_verify)


def run_tail(options: argparse.Namespace) -> None:
    """Print the newest records."""
    lines: list[str] = []
    with Client(options.socket) as client:
        request = GetAuditRecordsRequest(limit=min(max(options.count, 1), _REQUEST_RECORDS))
        lines = client.call(GET_AUDIT_RECORDS, request).records
    for line in lines:
        text = line.rstrip("\n")
        print(text if options.json else _told(msgspec.json.decode(text)))


def _told(record: dict[str, Any]) -> str:
    """Return a record as one line for people: when, who, what, on which keys, and what became of it."""
    identity = record.get("userIdentity") or {}
    who = identity.get("userName") or (f"uid {identity['uid']}" if "uid" in identity else "kmsd")
    keys = " ".join(resource["ARN"].rpartition("/")[2] for resource in record.get("resources", ()))
    context = (record.get("requestParameters") or {}).get("encryptionContext") or {}
    pairs = " ".join(f"{name}={value}" for name, value in context.items())
    what = {"ApiCallIntent": "begins", "FileBegin": "begins", "FileEnd": "done"}.get(record["eventType"], "done")
    outcome = record.get("errorCode") or what
    told = (record["eventTime"], f"#{record['seq']}", who, record["eventName"], outcome, keys, pairs)
    return printable("  ".join(part for part in told if part))


def run_verify(options: argparse.Namespace) -> None:
    """Verify the daemon's trail, or files of one off-line; exit code 1 and the place when it was changed."""
    try:
        report = verify(_lines_of(options.files) if options.files else _lines_from(options.socket))
    except ChainBrokenError as error:
        raise CommandError(
            f"the audit trail was changed: {error}", "keep the file as it is; it is evidence, and so is its backup"
        ) from None
    if options.json:
        print_json(report)
        return
    print(f"{report.lines} records, {report.first_seq} to {report.last_seq}: the chain is whole")
    print(f"head: {report.last_hash}")
    for intent in report.open_intents:
        print(printable(f"open: #{intent.seq} {intent.event_name} has no outcome (under way, or cut off)"))


def _lines_of(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as stream:
            yield from read_lines(stream)


def _lines_from(socket: str | os.PathLike[str] | None) -> Iterator[bytes]:
    after = 0
    with Client(socket) as client:
        while True:
            page = client.call(GET_AUDIT_RECORDS, GetAuditRecordsRequest(after_sequence=after, limit=_REQUEST_RECORDS))
            for line in page.records:
                yield line.rstrip("\n").encode() + b"\n"
            after += len(page.records)
            if not page.truncated:
                return
