"""All keys as a table: what they are called, how they are, and what becomes of them."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Sequence

from kmsd.api.deletion import GET_KEY_LAST_USAGE, GetKeyLastUsageResponse
from kmsd.api.errors import AccessDeniedError, KmsError, NotFoundError
from kmsd.api.keys import DESCRIBE_KEY
from kmsd.api.operation import Operation, RequestT, ResponseT
from kmsd.api.rotation import GET_KEY_ROTATION_STATUS, GetKeyRotationStatusResponse
from kmsd.api.shapes import KeyManager, KeyMetadata, Structure
from kmsd_client import Client
from kmsd_client.cli.keys import all_aliases, all_keys
from kmsd_client.cli.moments import ago, day, now, span
from kmsd_client.cli.terminal import EXIT_ERROR, complain, print_json, print_table

# Stands where the caller may not ask.
_UNKNOWN = "-"
# Material that was made by kmsd does not expire, and there is no other.
_EXPIRES = "never"


class ListedKey(Structure, frozen=True, kw_only=True):
    """A key and what the caller may know of it; the rest is left out."""

    key_id: str
    key_arn: str
    aliases: list[str]
    key_metadata: KeyMetadata | None = None
    rotation: GetKeyRotationStatusResponse | None = None
    last_usage: GetKeyLastUsageResponse | None = None


def run_list(options: argparse.Namespace) -> int:
    """List all keys."""
    failures: dict[str, KmsError] = {}
    with Client(options.socket) as client:
        keys = sorted(_all_known(client, failures), key=_place)
    if options.json:
        print_json(keys)
    else:
        until = now()
        print_table(
            ("KEY ID", "STATE", "AGE", "NEXT ROTATION", "EXPIRES", "LAST USE", "ALIASES"),
            [_row(key, until) for key in keys],
        )
    for key_id, error in failures.items():
        complain(f"key {key_id}: {error.code}: {error.message}".removesuffix("."))
    return EXIT_ERROR if failures else 0


def _all_known(client: Client, failures: dict[str, KmsError]) -> list[ListedKey]:
    """Return what the caller may know of each key, and put into `failures` why the daemon cannot tell something.

    Each question that is refused becomes a record of the audit trail, so after the first nothing more is asked about
    that key.
    """
    keys = all_keys(client)
    described = _answers(client, DESCRIBE_KEY, [key.key_id for key in keys], failures)
    metadata = {key_id: answer.key_metadata for key_id, answer in described.items()}
    # Of keys that kmsd looks after it is known when they are rotated, and administrators may not ask.
    managed = {key_id for key_id, one in metadata.items() if one.key_manager is KeyManager.AWS}
    unmanaged = [key_id for key_id in metadata if key_id not in managed]
    rotations = _answers(client, GET_KEY_ROTATION_STATUS, unmanaged, failures)
    usages = _answers(client, GET_KEY_LAST_USAGE, [*managed, *rotations], failures)
    names: dict[str, list[str]] = {}
    for alias in all_aliases(client, None):
        names.setdefault(alias.target_key_id, []).append(alias.alias_name)
    return [
        ListedKey(
            key_id=key.key_id,
            key_arn=key.key_arn,
            aliases=names.get(key.key_id, []),
            key_metadata=metadata.get(key.key_id),
            rotation=rotations.get(key.key_id),
            last_usage=usages.get(key.key_id),
        )
        for key in keys
    ]


def _answers(
    client: Client,
    operation: Operation[RequestT, ResponseT],
    key_ids: Sequence[str],
    failures: dict[str, KmsError],
) -> dict[str, ResponseT]:
    """Return what is answered about keys, but for those that the caller may not ask about or that are gone by now."""
    answers: dict[str, ResponseT] = {}
    outcomes = client.call_many(operation, [operation.request(key_id=key_id) for key_id in key_ids])
    for key_id, outcome in zip(key_ids, outcomes, strict=True):
        if not isinstance(outcome, KmsError):
            answers[key_id] = outcome
        elif not isinstance(outcome, AccessDeniedError | NotFoundError):
            failures[key_id] = outcome  # of one key only: what would meet all of them was raised
    return answers


def _place(key: ListedKey) -> tuple[bool, bool, str, str]:
    """Return what to sort by: keys with names first, those of which nothing may be known last."""
    made = key.key_metadata.creation_date.isoformat() if key.key_metadata else ""
    return key.key_metadata is None, not key.aliases, key.aliases[0] if key.aliases else made, key.key_id


def _row(key: ListedKey, until: dt.datetime) -> tuple[str, ...]:
    metadata = key.key_metadata
    return (
        key.key_id,
        _state(metadata) if metadata else _UNKNOWN,
        span(until - metadata.creation_date) if metadata else _UNKNOWN,
        _next_rotation(metadata, key.rotation),
        _EXPIRES if metadata else _UNKNOWN,
        _last_use(key.last_usage, until) if key.last_usage else _UNKNOWN,
        ", ".join(key.aliases),
    )


def _state(metadata: KeyMetadata) -> str:
    if metadata.deletion_date is None:
        return metadata.key_state
    return f"{metadata.key_state} {day(metadata.deletion_date)}"


def _next_rotation(metadata: KeyMetadata | None, rotation: GetKeyRotationStatusResponse | None) -> str:
    if metadata is not None and metadata.key_manager is KeyManager.AWS:
        return "yearly"
    if rotation is None:
        return _UNKNOWN
    return day(rotation.next_rotation_date) if rotation.next_rotation_date else "off"


def _last_use(usage: GetKeyLastUsageResponse, until: dt.datetime) -> str:
    return ago(usage.key_last_usage.timestamp, until) if usage.key_last_usage else "none"
