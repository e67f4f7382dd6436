"""All keys as a table: what they are called, how they are, and what becomes of them."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt

from kmsd.api.deletion import GET_KEY_LAST_USAGE, GetKeyLastUsageRequest, GetKeyLastUsageResponse
from kmsd.api.errors import AccessDeniedError, NotFoundError
from kmsd.api.keys import DESCRIBE_KEY, DescribeKeyRequest
from kmsd.api.rotation import GET_KEY_ROTATION_STATUS, GetKeyRotationStatusRequest, GetKeyRotationStatusResponse
from kmsd.api.shapes import KeyListEntry, KeyManager, KeyMetadata, Structure
from kmsd_client import Client
from kmsd_client.cli.keys import all_aliases, all_keys
from kmsd_client.cli.moments import ago, day, now, span
from kmsd_client.cli.terminal import print_json, print_table

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


def run_list(options: argparse.Namespace) -> None:
    """List all keys."""
    with Client(options.socket) as client:
        names: dict[str, list[str]] = {}
        for alias in all_aliases(client, None):
            names.setdefault(alias.target_key_id, []).append(alias.alias_name)
        keys = sorted((_looked_at(client, key, names.get(key.key_id, [])) for key in all_keys(client)), key=_place)
    if options.json:
        print_json(keys)
        return
    until = now()
    print_table(
        ("KEY ID", "STATE", "AGE", "NEXT ROTATION", "EXPIRES", "LAST USE", "ALIASES"),
        [_row(key, until) for key in keys],
    )


def _looked_at(client: Client, key: KeyListEntry, aliases: list[str]) -> ListedKey:
    """Return what the caller may know of a key.

    Each question that is refused becomes a record of the audit trail, so after the first nothing more is asked.
    """
    metadata = rotation = usage = None
    with contextlib.suppress(AccessDeniedError, NotFoundError):  # it may have been destroyed a moment ago
        metadata = client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=key.key_id)).key_metadata
        # Of a key that kmsd looks after it is known, and administrators may not ask.
        if metadata.key_manager is not KeyManager.AWS:
            rotation = client.call(GET_KEY_ROTATION_STATUS, GetKeyRotationStatusRequest(key_id=key.key_id))
        usage = client.call(GET_KEY_LAST_USAGE, GetKeyLastUsageRequest(key_id=key.key_id))
    return ListedKey(
        key_id=key.key_id,
        key_arn=key.key_arn,
        aliases=aliases,
        key_metadata=metadata,
        rotation=rotation,
        last_usage=usage,
    )


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
