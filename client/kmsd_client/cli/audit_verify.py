"""Verify the trail: `kms audit verify`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kmsd.api.administration import GET_AUDIT_ANCHOR, GET_AUDIT_RECORDS, GetAuditAnchorRequest, GetAuditRecordsRequest
from kmsd.audit.anchors import Anchor, AnchorForgedError, read_anchors
from kmsd.audit.public_key import from_text
from kmsd.audit.trail_check import TrailReport, check_trail
from kmsd.audit.trail_files import TrailBrokenError, TrailFile
from kmsd.audit.verify import Fault, read_lines
from kmsd_client import Client
from kmsd_client.cli.audit_records import records_from, trail_file
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, print_json, printable

_OWN_WORD = "the key is the daemon's own word, and a daemon that vouches for itself proves little: see --public-key"


def run_verify(options: argparse.Namespace) -> None:
    """Verify the daemon's trail, or files of one off-line; exit code 1 and the place when it was changed."""
    key = None if options.public_key is None else _public_key(options.public_key)
    try:
        report = _verify(options, key) if options.files else _verify_daemon(options, key)
    except (TrailBrokenError, AnchorForgedError) as error:
        if options.json:
            print_json({"is_whole": False, **vars(error)})
        raise CommandError(f"the audit trail was changed: {error}", _hint(error)) from None
    if options.json:
        print_json(report)
    else:
        _tell(report)


def _public_key(text: str) -> bytes:
    """Return the key that an option names or is."""
    path = Path(text)
    try:
        return from_text(path.read_text(encoding="ascii", errors="replace") if path.exists() else text)
    except ValueError as error:
        hint = "kms audit public-key prints the daemon's; keep it where the trail is verified"
        raise CommandError(f"{text}: {error}", hint, code=EXIT_USAGE) from None


def _verify_daemon(options: argparse.Namespace, key: bytes | None) -> TrailReport:
    with Client(options.socket) as client:
        if key is not None:
            return _verify(options, key, _daemons_trail(client))
        key = client.call(GET_AUDIT_ANCHOR, GetAuditAnchorRequest()).public_key
        report = _verify(options, key, _daemons_trail(client))
        return report if key is None else replace(report, notes=(*report.notes, _OWN_WORD))


def _daemons_trail(client: Client) -> TrailFile:
    start = client.call(GET_AUDIT_RECORDS, GetAuditRecordsRequest(after_sequence=0, limit=1))
    return TrailFile(
        "the daemon's trail",
        lambda: (line + b"\n" for line in records_from(client, None)),
        sparse_until=start.dropped_until,
        omits_broken=True,
    )


def _verify(options: argparse.Namespace, key: bytes | None, *files: TrailFile) -> TrailReport:
    return check_trail(
        files or [trail_file(path) for path in options.files],
        public_key=key,
        anchors=_anchors(options.anchors, key),
        is_part=options.part,
    )


def _anchors(paths: Sequence[Path], key: bytes | None) -> Iterator[Anchor]:
    if paths and key is None:
        raise CommandError("anchors are verified with the audit key", "name it: --public-key K", code=EXIT_USAGE)
    for path in paths:
        with path.open("rb") as stream:
            found = 0
            for anchor in read_anchors(str(path), read_lines(stream), key or b""):
                found += 1
                yield anchor
        if not found:
            # An empty file, or another one, vouches for nothing: whoever names it believes that it does.
            raise CommandError(
                f"{path}: there is no anchor in it, so nothing was compared",
                "take the lines audit_checkpoint of the service log, or what kms audit anchors printed",
            )


def _hint(error: TrailBrokenError | AnchorForgedError) -> str:
    if isinstance(error, TrailBrokenError) and error.fault is Fault.REMOVED and error.seq == 1:
        return "give all files of the trail, or --part if those before the first one are elsewhere"
    return "keep the file as it is; it is evidence, and so is its backup"


def _tell(report: TrailReport) -> None:
    print(f"{report.lines} records, {report.first_seq} to {report.last_seq}: the chain is whole")
    print(f"head: {report.last_hash}")
    if report.files > 1:
        print(f"files: {report.files}")
    if report.dropped:
        print(f"dropped: {report.dropped} records, by retention")
    if report.signed is not None:
        print(printable(f"signed: to record {report.signed.seq} ({report.signed.event_time})"))
        print(f"checkpoints: {report.checkpoints} verified")
        print(f"not signed yet: {report.unsigned} records behind the last checkpoint")
    elif report.unchecked:
        print(f"signed: not checked: {report.unchecked} checkpoints, and no --public-key to verify them")
    else:
        print("signed: no")
    if report.anchors:
        print(f"anchors: {report.anchors} agree")
    for intent in report.open_intents:
        print(printable(f"open: #{intent.seq} {intent.event_name} has no outcome (under way, or cut off)"))
    for note in report.notes:
        print(printable(f"note: {note}"))
