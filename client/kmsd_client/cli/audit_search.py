"""Find records of the trail: `kms audit search` and `kms audit who`."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kmsd.api.keys import DESCRIBE_KEY, DescribeKeyRequest
from kmsd_client import Client
from kmsd_client.cli.audit_filters import Filter, parse_time
from kmsd_client.cli.audit_records import Record, is_settled, records_from, records_of, told
from kmsd_client.cli.keys import all_aliases
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, context_of, print_json, print_table


def run_search(options: argparse.Namespace) -> None:
    """Print the records that match."""
    if options.key and options.named_key:
        raise CommandError("one key can be named, not two", code=EXIT_USAGE)
    if options.count is not None and options.count < 1:
        raise CommandError("-n takes a number from 1", code=EXIT_USAGE)
    now = dt.datetime.now(dt.UTC)
    since, until = parse_time(options.since, now), parse_time(options.until, now)
    context = context_of(options.context)
    with _trail(options, options.key or options.named_key, since) as (lines, key):
        wanted = Filter(
            key=key,
            since=since,
            until=until,
            principal=options.principal,
            operation=options.operation,
            outcome=options.outcome,
            context=context,
        )
        found: Iterable[tuple[bytes, Record]] = wanted.among(lines)
        if options.count is not None:
            found = deque(found, maxlen=options.count)
        for line, record in found:
            print(line.decode() if options.json else told(record))


@dataclass
class Use:
    """What one principal did with a key."""

    principal: str
    operations: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    first: str = ""
    last: str = ""

    def add(self, record: Record) -> None:
        """Count a record."""
        self.operations[record["eventName"]] += 1
        self.refused += "errorCode" in record
        self.first = self.first or record["eventTime"]
        self.last = record["eventTime"]


def run_who(options: argparse.Namespace) -> None:
    """Tell who used a key: each principal with its operations, how many of them failed, and when."""
    since = parse_time(options.since, dt.datetime.now(dt.UTC))
    uses: dict[str, Use] = {}
    with _trail(options, options.key, since) as (lines, key):
        for _, record in Filter(key=key, since=since).among(lines):
            if is_settled(record):
                principal = _principal(record.get("userIdentity") or {})
                uses.setdefault(principal, Use(principal)).add(record)
    if options.json:
        print_json(list(uses.values()))
        return
    if not uses:
        print("nobody")
        return
    print_table(
        ("PRINCIPAL", "OPERATIONS", "FAILED", "FIRST", "LAST"),
        [
            (
                use.principal,
                ", ".join(f"{name} {count}" for name, count in sorted(use.operations.items())),
                str(use.refused),
                use.first,
                use.last,
            )
            for use in uses.values()
        ],
    )


def _principal(identity: dict[str, Any]) -> str:
    """Return who it was, as policies write it, with the unit if there was one."""
    if "uid" not in identity:
        return "kmsd"
    name = f"user:{identity['userName']}" if identity.get("userName") else f"uid:{identity['uid']}"
    return f"{name} unit:{identity['unit']}" if identity.get("unit") else name


@contextlib.contextmanager
def _trail(
    options: argparse.Namespace, key: str | None, since: dt.datetime | None
) -> Iterator[tuple[Iterator[bytes], str | None]]:
    """Give the lines to look at, and the id of the key that is meant."""
    if options.files:
        if key is not None and "alias/" in key:
            raise CommandError(f"files do not tell which key {key} is", "name it by its key id or ARN", code=EXIT_USAGE)
        yield records_of(options.files), _key_id(key)
        return
    with Client(options.socket) as client:
        yield records_from(client, since), _key_behind(client, key) if key and "alias/" in key else _key_id(key)


def _key_behind(client: Client, alias: str) -> str:
    """Return the id of the key that has an alias; everybody may list aliases, and an auditor need not see the key."""
    name = alias[alias.index("alias/") :]
    for one in all_aliases(client, None):
        if one.alias_name == name:
            return one.target_key_id
    return client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=alias)).key_metadata.key_id


def _key_id(key: str | None) -> str | None:
    return key if key is None else key.rpartition("/")[2]
