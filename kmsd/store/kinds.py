"""The kinds of rows: the table, the primary key and the lookup columns of each.

All other members of a row exist only inside its sealed content, so that the schema hardly ever changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from kmsd.store.rows import (
    AliasRow,
    AnchorRow,
    BackupRow,
    CredentialRow,
    DefaultKeyRow,
    DomainKeyRow,
    GrantRow,
    HousekeepingRow,
    KeyRow,
    MaterialRow,
    Row,
    SecretRow,
    SettingsRow,
    StateRow,
    TombstoneRow,
    UsageRow,
)

RowT = TypeVar("RowT", bound=Row)

KeyValues: TypeAlias = tuple[str | int, ...]


class MutationRow(Row, frozen=True, kw_only=True):
    """The trace of a commit, written with it: whoever finds it knows that the commit happened."""

    mutation_id: str


@dataclass(frozen=True, eq=False)
class Kind(Generic[RowT]):
    """One kind of row. `key` and `lookup` name the members that have columns: those it is found by.

    `indexes` are the groups of columns by which rows are looked up: each lookup column alone, unless said otherwise.
    `numbered`: its table counts the rows in the order they came; the number is no part of the row.
    `later` are the lookup columns that the table has not had from its first schema on. Their members have defaults,
    and rows from before hold these.
    """

    table: str
    row_type: type[RowT]
    key: tuple[str, ...]
    lookup: tuple[str, ...] = ()
    indexes: tuple[tuple[str, ...], ...] | None = None
    numbered: bool = False
    later: tuple[str, ...] = ()

    def key_of(self, row: RowT) -> KeyValues:
        """Return the row's primary key."""
        return tuple(getattr(row, name) for name in self.key)

    def lookup_of(self, row: RowT) -> KeyValues:
        """Return what the row's lookup columns hold."""
        return tuple(getattr(row, name) for name in self.lookup)

    def earlier(self) -> dict[str, int]:
        """Return what the later columns hold in rows from before them; only numbers have come later yet."""
        return {
            field.name: field.default for field in msgspec.structs.fields(self.row_type) if field.name in self.later
        }


KEYS = Kind("keys", KeyRow, ("key_id",), ("creator_uid", "due_ms"), later=("due_ms",))
MATERIAL = Kind("material", MaterialRow, ("key_id", "number"))
ALIASES = Kind("aliases", AliasRow, ("name",), ("key_id",))
GRANTS = Kind(
    "grants",
    GrantRow,
    ("grant_id",),
    ("key_id", "grantee", "retiring", "name"),
    # A key may have 50,000 grants: who asks for those of somebody, or for a page of them, must not go through all.
    indexes=(
        ("key_id", "grant_id"),
        ("key_id", "grantee", "grant_id"),
        ("key_id", "name"),
        ("retiring", "grant_id"),
    ),
)
DEFAULT_KEYS = Kind("default_keys", DefaultKeyRow, ("owner",))
CREDENTIALS = Kind("credentials", CredentialRow, ("unit", "name"))
USAGE = Kind("usage", UsageRow, ("key_id",))
TOMBSTONES = Kind("tombstones", TombstoneRow, ("key_id",))
HOUSEKEEPING = Kind("housekeeping", HousekeepingRow, ("name",))
DOMAIN_KEYS = Kind("domain_keys", DomainKeyRow, ("domain_key_id",))
SECRETS = Kind("secrets", SecretRow, ("name",))
SETTINGS = Kind("settings", SettingsRow, ("name",))
ANCHORS = Kind("anchors", AnchorRow, ("name",))
BACKUPS = Kind("backups", BackupRow, ("name",))
# Numbered, as mutations are forgotten oldest first.
MUTATIONS = Kind("mutations", MutationRow, ("mutation_id",), numbered=True)
STATE = Kind("state", StateRow, ("name",))

# What the state row tells of: every kind but itself.
COUNTED: tuple[Kind[Any], ...] = (
    KEYS,
    MATERIAL,
    ALIASES,
    GRANTS,
    DEFAULT_KEYS,
    CREDENTIALS,
    USAGE,
    TOMBSTONES,
    HOUSEKEEPING,
    DOMAIN_KEYS,
    SECRETS,
    SETTINGS,
    ANCHORS,
    BACKUPS,
    MUTATIONS,
)
KINDS: tuple[Kind[Any], ...] = (*COUNTED, STATE)

_KIND_OF = {kind.row_type: kind for kind in KINDS}


def kind_of(row: RowT) -> Kind[RowT]:
    """Return the kind of a row."""
    return _KIND_OF[type(row)]


def written(key: KeyValues) -> str:
    """Return a primary key as people read it in messages."""
    return "/".join(map(str, key))
