"""Read, search and verify the audit trail."""

from __future__ import annotations

import argparse
from pathlib import Path

from kmsd.api.administration import (
    GET_AUDIT_ANCHOR,
    GET_AUDIT_RECORDS,
    GetAuditAnchorRequest,
    GetAuditAnchorResponse,
    GetAuditRecordsRequest,
)
from kmsd_client import Client
from kmsd_client.cli.audit_records import PAGE_RECORDS, decode, told
from kmsd_client.cli.terminal import CommandError, add_context_option, add_json_option, print_json_line

_VERBS = "tail|search|who|verify|public-key|anchors"
_TIMES = "a time: ISO 8601, 90s, 30m, 2h, 3d, 1w (so long ago), today or yesterday"

# How many records that say nothing to people may stand among the newest: there is one a minute.
_BOOKKEEPING_RECORDS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar=_VERBS)
    tail = verbs.add_parser("tail", help="print the newest records")
    tail.add_argument("-n", type=int, default=20, metavar="N", help="how many (default: 20)", dest="count")
    _add_lines_option(tail)
    tail.set_defaults(run=run_tail)
    _add_search(verbs.add_parser("search", help="print the records that match", epilog=f"T is {_TIMES}"))
    _add_who(verbs.add_parser("who", help="tell who used a key, and for what", epilog=f"T is {_TIMES}"))
    _add_verify(verbs.add_parser("verify", help="check that no record was changed, removed, inserted or moved"))
    key = verbs.add_parser("public-key", help="print the audit key's public part, to verify the trail with elsewhere")
    key.set_defaults(run=run_public_key)
    anchors = verbs.add_parser("anchors", help="print the last checkpoint, to be kept elsewhere")
    anchors.set_defaults(run=run_anchors)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", metavar="KEY", help="only about this key: key id, key ARN, or an alias of it")
    parser.add_argument("--key", dest="named_key", metavar="KEY", help="the same")
    parser.add_argument("--since", metavar="T", help="written then or later")
    parser.add_argument("--until", metavar="T", help="written then or before")
    parser.add_argument("--principal", metavar="P", help="by uid:N, user:NAME, NAME, unit:NAME or exe:PATH")
    parser.add_argument("--operation", metavar="NAME", help="of this operation, or event of kmsd")
    parser.add_argument("--outcome", metavar="ok|error|CODE", help="succeeded, failed, or failed with this code")
    add_context_option(parser)
    parser.add_argument("-n", type=int, metavar="MAX", help="only the newest so many", dest="count")
    _add_files_option(parser)
    _add_lines_option(parser)
    parser.set_defaults(run=_run_search)


def _add_who(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="key id, key ARN, or an alias of it")
    parser.add_argument("--since", metavar="T", help="since then")
    _add_files_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=_run_who)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="all files of a trail; else the daemon's")
    parser.add_argument(
        "--public-key", metavar="K", help="the audit key's: a file (PEM, hex or base64), or 64 hex digits or base64"
    )
    parser.add_argument(
        "--anchors", type=Path, action="append", default=[], metavar="A", help="a file with anchors; may be repeated"
    )
    parser.add_argument("--part", action="store_true", help="the files before these are elsewhere")
    add_json_option(parser)
    parser.set_defaults(run=_run_verify)


def _add_files_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--files", nargs="+", type=Path, default=[], metavar="F", help="read these files and not the daemon's trail"
    )


def _add_lines_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the lines as they stand in the trail")


def run_tail(options: argparse.Namespace) -> None:
    """Print the newest records; for people without those that only keep the trail together."""
    count = min(max(options.count, 1), PAGE_RECORDS)
    asked = count if options.json else min(2 * count + _BOOKKEEPING_RECORDS, PAGE_RECORDS)
    with Client(options.socket) as client:
        lines = client.call(GET_AUDIT_RECORDS, GetAuditRecordsRequest(limit=asked)).records
    if not options.json:
        from kmsd.audit.checkpoint import CHECKPOINT  # noqa: PLC0415 - each verb loads what it needs
        from kmsd.audit.verify import MARK  # noqa: PLC0415

        records = map(decode, lines)
        lines = [told(record) for record in records if record["eventName"] not in {CHECKPOINT, MARK}]
    for line in lines[-count:]:
        print(line)


def run_public_key(options: argparse.Namespace) -> None:
    """Print the audit key's public part as PEM."""
    from kmsd.audit.public_key import to_pem  # noqa: PLC0415 - each verb loads what it needs

    found = _anchor(options).public_key
    if found is None:
        raise CommandError("kmsd does not know its audit key yet", "an administrator has to unseal it: kms unseal")
    print(to_pem(found), end="")


def run_anchors(options: argparse.Namespace) -> None:
    """Print the last checkpoint as a line of JSON, as `kms audit verify --anchors` reads it."""
    from kmsd.audit.checkpoint import Checkpoint  # noqa: PLC0415 - each verb loads what it needs

    found = _anchor(options).anchor
    if found is None:
        raise CommandError("nothing of the trail is signed yet", "an administrator has to unseal kmsd: kms unseal")
    print_json_line(Checkpoint(found.seq, found.prev, found.event_time, found.key_id, found.signature))


def _anchor(options: argparse.Namespace) -> GetAuditAnchorResponse:
    with Client(options.socket) as client:
        return client.call(GET_AUDIT_ANCHOR, GetAuditAnchorRequest())


def _run_search(options: argparse.Namespace) -> None:
    from kmsd_client.cli.audit_search import run_search  # noqa: PLC0415 - each verb loads what it needs

    run_search(options)


def _run_who(options: argparse.Namespace) -> None:
    from kmsd_client.cli.audit_search import run_who  # noqa: PLC0415 - each verb loads what it needs

    run_who(options)


def _run_verify(options: argparse.Namespace) -> None:
    from kmsd_client.cli.audit_verify import run_verify  # noqa: PLC0415 - each verb loads what it needs

    run_verify(options)
