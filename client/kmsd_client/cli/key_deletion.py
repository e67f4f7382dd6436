"""Take keys out of use, for good or for a while, and tell what still uses them."""

from __future__ import annotations

import argparse
import shlex

from kmsd.api.deletion import (
    CANCEL_KEY_DELETION,
    GET_KEY_LAST_USAGE,
    LONGEST_WINDOW_DAYS,
    SCHEDULE_KEY_DELETION,
    SHORTEST_WINDOW_DAYS,
    CancelKeyDeletionRequest,
    GetKeyLastUsageRequest,
    ScheduleKeyDeletionRequest,
)
from kmsd.api.keys import DISABLE_KEY, EnableKeyRequest
from kmsd_client import Client
from kmsd_client.cli.dependents import agree, usage_facts
from kmsd_client.cli.keys import key_id_of
from kmsd_client.cli.moments import counted, now, second
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, print_facts, print_json, printable


def run_delete(options: argparse.Namespace) -> None:
    """Have a key destroyed after some days, if that is wanted."""
    if not (options.yes or SHORTEST_WINDOW_DAYS <= options.days <= LONGEST_WINDOW_DAYS):
        window = f"{SHORTEST_WINDOW_DAYS} to {LONGEST_WINDOW_DAYS}"
        raise CommandError(f"--days is {options.days}: it may be {window}", code=EXIT_USAGE)
    with Client(options.socket) as client:
        key_id = key_id_of(client, options.key)
        if not options.yes:
            days = counted(options.days, "day")
            agree(
                client,
                options.key,
                key_id,
                [
                    f"nobody can use it any more; in {days} it is destroyed, and what was encrypted under it is lost",
                    "until then it can be kept: kms key cancel-deletion; to only stop its use: kms key disable",
                ],
            )
        done = client.call(
            SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest(key_id=key_id, pending_window_in_days=options.days)
        )
    print(printable(f"{options.key} can no longer be used, and is destroyed on {second(done.deletion_date)}"))
    print(printable(f"to keep it: {_command('cancel-deletion', options.key)}"))


def run_cancel(options: argparse.Namespace) -> None:
    """Keep a key that was to be destroyed."""
    with Client(options.socket) as client:
        key_id = key_id_of(client, options.key)
        client.call(CANCEL_KEY_DELETION, CancelKeyDeletionRequest(key_id=key_id))
    print(printable(f"{options.key} is kept, and disabled now"))
    print(printable(f"to use it again: {_command('enable', options.key)}"))


def run_disable(options: argparse.Namespace) -> None:
    """Let a key not be used until it is enabled again, if that is wanted."""
    with Client(options.socket) as client:
        key_id = key_id_of(client, options.key)
        if not options.yes:
            agree(client, options.key, key_id, ["until it is enabled again, nobody can encrypt or decrypt with it"])
        client.call(DISABLE_KEY, EnableKeyRequest(key_id=key_id))


def run_last_use(options: argparse.Namespace) -> None:
    """Tell when a key was used last, and how often."""
    with Client(options.socket) as client:
        key_id = key_id_of(client, options.key)
        usage = client.call(GET_KEY_LAST_USAGE, GetKeyLastUsageRequest(key_id=key_id))
    if options.json:
        print_json(usage)
        return
    uses = ", ".join(f"{operation} {count}" for operation, count in sorted(usage.uses.items()))
    print_facts([*usage_facts(usage, now()), *([("uses", uses)] if uses else [])])


def _command(verb: str, key: str) -> str:
    return shlex.join(["kms", "key", verb, key])
