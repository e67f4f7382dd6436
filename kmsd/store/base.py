"""Changes to rows, what may go wrong, and the interface of every store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

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
    TombstoneRow,
    UsageRow,
)


class Insert(msgspec.Struct, frozen=True):
    """Make a row that does not exist."""

    row: Row


class Replace(msgspec.Struct, frozen=True):
    """Change a row whose stored version is one less than the new one's."""

    row: Row


class Delete(msgspec.Struct, frozen=True):
    """Remove a row whose stored version is this one's."""

    row: Row


class Expect(msgspec.Struct, frozen=True):
    """Leave a row as it is, whose stored version has to be this one's for the other changes to be made."""

    row: Row


Change = Insert | Replace | Delete | Expect


@dataclass(frozen=True)
class StateReport:
    """Whether the rows are those that the last commit left.

    `findings` say in words what differs, without what rows hold; none: all is well. `adopted`: the rows were brought
    here by an upgrade from a kmsd that kept no state row, so that nothing is known of them yet. `store_id` and
    `sequence` are those of a state row that authenticates, else None and 0; so they are for a new store.
    """

    findings: tuple[str, ...]
    store_id: str | None
    sequence: int
    adopted: bool


class StoreError(RuntimeError):
    """Base of what a store says of itself."""


class RowExistsError(StoreError):
    """A row with this primary key exists; nothing was written."""

    def __init__(self, table: str, primary_key: str) -> None:
        super().__init__(f"{table} {primary_key} exists")
        self.table = table
        self.primary_key = primary_key


class RowChangedError(StoreError):
    """The row is gone, or has another version than expected; nothing was written."""

    def __init__(self, table: str, primary_key: str) -> None:
        super().__init__(f"{table} {primary_key} was changed by somebody else")
        self.table = table
        self.primary_key = primary_key


class StoreUnavailableError(StoreError):
    """The store cannot be read or written now: no space, no permission, another daemon has it; the text says which."""


class StoreFormatError(StoreError):
    """The file is not a store of kmsd, is damaged, or was written by a newer kmsd."""


class Store(Protocol):
    """Durable rows. Everything but the early rows needs `unseal` first and raises SealedError before.

    Reading a row whose MAC is wrong raises IntegrityError naming table and primary key.
    """

    async def key(self, key_id: str) -> KeyRow | None:
        """Return a key."""

    async def keys(self, *, after: str | None, limit: int) -> list[KeyRow]:
        """Return keys by ascending key id, those behind `after`."""

    async def keys_due(self, until_ms: int, *, limit: int) -> list[KeyRow]:
        """Return the first keys of which something is due at `until_ms`, by when it fell due and by key id."""

    async def next_due_ms(self) -> int | None:
        """Return when the next thing of any key falls due, None if nothing does."""

    async def count_keys(self, creator_uid: int) -> int:
        """Return how many keys a uid has made."""

    async def material(self, key_id: str, number: int) -> MaterialRow | None:
        """Return one version of a key's material."""

    async def materials(self, key_id: str, *, after: int, limit: int) -> list[MaterialRow]:
        """Return versions of a key's material by ascending number, those behind `after`."""

    async def usage(self, key_id: str) -> UsageRow | None:
        """Return what was done with a key, as it was counted last."""

    async def tombstone(self, key_id: str) -> TombstoneRow | None:
        """Return what is left of a key that was destroyed."""

    async def tombstones(self, *, after: str | None, limit: int) -> list[TombstoneRow]:
        """Return tombstones by ascending key id, those behind `after`."""

    async def housekeeping(self) -> HousekeepingRow | None:
        """Return how far housekeeping has come."""

    async def alias(self, name: str) -> AliasRow | None:
        """Return an alias."""

    async def aliases(self, *, key_id: str | None, after: str | None, limit: int) -> list[AliasRow]:
        """Return aliases by ascending name, those behind `after`; with `key_id` only that key's."""

    async def grant(self, grant_id: str) -> GrantRow | None:
        """Return a grant."""

    async def grants(self, key_id: str, *, grantee: str | None, after: str | None, limit: int) -> list[GrantRow]:
        """Return grants of a key by ascending grant id, those behind `after`; with `grantee` only his."""

    async def grants_for(self, key_id: str, grantees: Collection[str]) -> list[GrantRow]:
        """Return all grants of a key for one of these grantees."""

    async def grants_named(self, key_id: str, name: str) -> list[GrantRow]:
        """Return the grants of a key with this name."""

    async def retirable_grants(self, retiring: str, *, after: str | None, limit: int) -> list[GrantRow]:
        """Return the grants that this principal may retire, by ascending grant id, those behind `after`."""

    async def count_grants(self, key_id: str) -> int:
        """Return how many grants a key has."""

    async def default_key(self, owner: str) -> DefaultKeyRow | None:
        """Return which key is the default key of `owner`."""

    async def default_keys(self, *, after: str | None, limit: int) -> list[DefaultKeyRow]:
        """Return default keys by ascending owner, those behind `after`."""

    async def credential(self, unit: str, name: str) -> CredentialRow | None:
        """Return a credential."""

    async def credentials(self, *, unit: str | None, after: tuple[str, str] | None, limit: int) -> list[CredentialRow]:
        """Return credentials by ascending unit and name, those behind `after`; with `unit` only that unit's."""

    async def domain_keys(self) -> list[DomainKeyRow]:
        """Return all domain keys; an early row: readable before `unseal`."""

    async def secret(self, name: str) -> SecretRow | None:
        """Return a secret of the service; an early row."""

    async def settings(self) -> SettingsRow | None:
        """Return the settings; an early row."""

    async def store_id(self) -> str | None:
        """Return the store's name; an early row, and not certain before `check_state` has found nothing."""

    async def anchor(self) -> AnchorRow | None:
        """Return the anchor of the audit trail."""

    async def last_backup(self) -> BackupRow | None:
        """Return what is known of the last backup."""

    async def commit(self, mutation_id: str | None, changes: Sequence[Change]) -> None:
        """Make all changes in one transaction that is durable on return, and remember `mutation_id` with them.

        None: nobody is going to ask whether it happened, and it must not push a mutation out of what is remembered.
        Raises RowExistsError (also for a mutation id used before), RowChangedError or StoreUnavailableError; nothing
        was written then, unless the message says that the disk failed to sync. A task that is cancelled while it waits
        leaves the commit done or not done; `committed` tells which. Raises IntegrityError unless `check_state` found
        nothing since the store was unsealed, or what it found was accepted.
        """

    async def purge(self) -> None:
        """Leave nothing of material that was deleted in the file, its write-ahead log and pages that are free.

        Opening the store does so as well. Raises StoreUnavailableError.
        """

    async def committed(self, mutation_ids: Sequence[str]) -> set[str]:
        """Return those of the mutation ids whose commits happened, among the newest 10,000 mutations."""

    async def forget(self, mutation_ids: Sequence[str]) -> None:
        """Remember these mutations no longer; unknown ones are ignored."""

    def unseal(self, mac_key: memoryview, set_key: memoryview) -> None:
        """Verify and write rows with these keys (32 bytes each, borrowed) from now on: MACs, and multiset hashes."""

    async def verify_early_rows(self) -> None:
        """Verify the MACs of the early rows; raises IntegrityError."""

    @property
    def sequence(self) -> int:
        """The number of the last commit that is known; 0 before any is."""

    async def check_state(self) -> StateReport:
        """Compare all rows' places, versions and MACs with the state row; only if nothing is found, commits may follow.

        What rows hold is not read: each row's MAC vouches for that when it is.
        """

    async def accept_state(self, minimum_sequence: int) -> None:
        """Make the state row anew from the rows as they are; commits may follow. The anchor is forgotten.

        Its sequence is above `minimum_sequence` and every one that the store has told.
        """

    async def verify_all(self) -> int:
        """Verify every row there is and the file that they are in, and return how many there are.

        Raises IntegrityError naming a row that does not verify, or StoreFormatError. Takes 10 us a row.
        """

    def seal(self) -> None:
        """Forget the keys."""

    async def close(self) -> None:
        """Close the store."""
