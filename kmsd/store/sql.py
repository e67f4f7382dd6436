"""The store in a SQL database.

All database calls run on one thread of the store's own. MACs are made and verified on the event loop's thread, which
is also the one that seals: so no other thread can be reading the MAC key while it is wiped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from kmsd.api.errors import IntegrityError, SealedError
from kmsd.store.base import Change, StateReport, StoreUnavailableError
from kmsd.store.database import Database
from kmsd.store.inspection import Inspection
from kmsd.store.kinds import (
    ALIASES,
    ANCHORS,
    BACKUPS,
    CREDENTIALS,
    DEFAULT_KEYS,
    DOMAIN_KEYS,
    GRANTS,
    HOUSEKEEPING,
    KEYS,
    MATERIAL,
    MUTATIONS,
    SECRETS,
    SETTINGS,
    STATE,
    TOMBSTONES,
    USAGE,
    Kind,
    RowT,
    written,
)
from kmsd.store.multiset import MultisetHasher
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
    SecretRow,
    SettingsRow,
    TombstoneRow,
    UsageRow,
)
from kmsd.store.schema import (
    ALIASES_AFTER,
    ALIASES_OF_KEY_AFTER,
    COUNT_GRANTS,
    COUNT_KEYS,
    CREDENTIALS_AFTER,
    CREDENTIALS_OF_UNIT_AFTER,
    DEFAULT_KEYS_AFTER,
    GRANTS_FOR,
    GRANTS_NAMED,
    GRANTS_OF_GRANTEE_AFTER,
    GRANTS_OF_KEY_AFTER,
    KEYS_AFTER,
    KEYS_DUE,
    MATERIALS_AFTER,
    NEXT_DUE,
    RETIRABLE_GRANTS_AFTER,
    STATE_ROWS,
    STATEMENTS,
    TOMBSTONES_AFTER,
)
from kmsd.store.sealing import Record, Sealer, unverified_row
from kmsd.store.transfer import SNAPSHOT_NAME, Snapshot
from kmsd.store.writing import Writer

_T = TypeVar("_T")

# Verifying a row takes some 8 us, so the event loop serves others at least every half millisecond.
_ROWS_AT_ONCE = 64


def _open(path: Path) -> Database:
    database = Database(path)
    # Behind the lock: what is there was left by a daemon that was killed while it made a snapshot.
    with contextlib.suppress(OSError):
        path.with_name(SNAPSHOT_NAME).unlink(missing_ok=True)
    return database


def _close_if_open(opening: Future[Database]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class SqlStore:
    """A `kmsd.store.base.Store` in an SQLite file."""

    def __init__(self, database: Database, executor: ThreadPoolExecutor, random: Callable[[int], bytes]) -> None:
        self._database = database
        self._executor = executor
        self._sealer = Sealer()
        self._hasher = MultisetHasher()
        self._inspection = Inspection(database, self._run, self._sealer, self._hasher)
        self._writer = Writer(database, self._run, self._sealer, self._hasher, self._inspection, random)
        # Records that were handed out unverified, in the order they were read.
        self._early: dict[Record[Any], None] = {}
        self._closing: asyncio.Future[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, random: Callable[[int], bytes] = os.urandom) -> SqlStore:
        """Open the store at `path`, sealed; creates the file (mode 0600) and its tables if there is none.

        `random` returns as many random bytes as it is asked for.
        Raises StoreUnavailableError, also while another process has it open, and StoreFormatError.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kmsd-store")
        opening = executor.submit(_open, path)
        try:
            return cls(await asyncio.wrap_future(opening), executor, random)
        except BaseException:
            # Not cancelled by the cancellation of this task, if its thread had begun.
            executor.submit(_close_if_open, opening)
            executor.shutdown(wait=False)
            raise

    async def key(self, key_id: str) -> KeyRow | None:
        """Return a key."""
        return await self._one(KEYS, key_id)

    async def keys(self, *, after: str | None, limit: int) -> list[KeyRow]:
        """Return keys by ascending key id, those behind `after`."""
        return await self._many(KEYS, KEYS_AFTER, {"after": after or "", "limit": limit})

    async def keys_due(self, until_ms: int, *, limit: int) -> list[KeyRow]:
        """Return the first keys of which something is due at `until_ms`, by when it fell due and by key id."""
        return await self._many(KEYS, KEYS_DUE, {"until_ms": until_ms, "limit": limit})

    async def next_due_ms(self) -> int | None:
        """Return when the next thing of any key falls due, None if nothing does."""
        self._require_key()
        [(due_ms,)] = await self._run(self._database.rows, NEXT_DUE, {})
        return None if due_ms is None else int(due_ms)

    async def count_keys(self, creator_uid: int) -> int:
        """Return how many keys a uid has made."""
        self._require_key()
        [(count,)] = await self._run(self._database.rows, COUNT_KEYS, {"creator_uid": creator_uid})
        return int(count)

    async def material(self, key_id: str, number: int) -> MaterialRow | None:
        """Return one version of a key's material."""
        return await self._one(MATERIAL, key_id, number)

    async def materials(self, key_id: str, *, after: int, limit: int) -> list[MaterialRow]:
        """Return versions of a key's material by ascending number, those behind `after`."""
        return await self._many(MATERIAL, MATERIALS_AFTER, {"key_id": key_id, "after": after, "limit": limit})

    async def usage(self, key_id: str) -> UsageRow | None:
        """Return what was done with a key, as it was counted last."""
        return await self._one(USAGE, key_id)

    async def tombstone(self, key_id: str) -> TombstoneRow | None:
        """Return what is left of a key that was destroyed."""
        return await self._one(TOMBSTONES, key_id)

    async def tombstones(self, *, after: str | None, limit: int) -> list[TombstoneRow]:
        """Return tombstones by ascending key id, those behind `after`."""
        return await self._many(TOMBSTONES, TOMBSTONES_AFTER, {"after": after or "", "limit": limit})

    async def housekeeping(self) -> HousekeepingRow | None:
        """Return how far housekeeping has come."""
        return await self._one(HOUSEKEEPING, "housekeeping")

    async def alias(self, name: str) -> AliasRow | None:
        """Return an alias."""
        return await self._one(ALIASES, name)

    async def aliases(self, *, key_id: str | None, after: str | None, limit: int) -> list[AliasRow]:
        """Return aliases by ascending name, those behind `after`; with `key_id` only that key's."""
        bounds = {"after": after or "", "limit": limit}
        if key_id is None:
            return await self._many(ALIASES, ALIASES_AFTER, bounds)
        return await self._many(ALIASES, ALIASES_OF_KEY_AFTER, {**bounds, "key_id": key_id})

    async def grant(self, grant_id: str) -> GrantRow | None:
        """Return a grant."""
        return await self._one(GRANTS, grant_id)

    async def grants(self, key_id: str, *, grantee: str | None, after: str | None, limit: int) -> list[GrantRow]:
        """Return grants of a key by ascending grant id, those behind `after`; with `grantee` only his."""
        bounds = {"key_id": key_id, "after": after or "", "limit": limit}
        if grantee is None:
            return await self._many(GRANTS, GRANTS_OF_KEY_AFTER, bounds)
        return await self._many(GRANTS, GRANTS_OF_GRANTEE_AFTER, {**bounds, "grantee": grantee})

    async def grants_for(self, key_id: str, grantees: Collection[str]) -> list[GrantRow]:
        """Return all grants of a key for one of these grantees."""
        return await self._many(GRANTS, GRANTS_FOR, {"key_id": key_id, "grantees": sorted(grantees)})

    async def grants_named(self, key_id: str, name: str) -> list[GrantRow]:
        """Return the grants of a key with this name."""
        return await self._many(GRANTS, GRANTS_NAMED, {"key_id": key_id, "name": name})

    async def retirable_grants(self, retiring: str, *, after: str | None, limit: int) -> list[GrantRow]:
        """Return the grants that this principal may retire, by ascending grant id, those behind `after`."""
        bounds = {"retiring": retiring, "after": after or "", "limit": limit}
        return await self._many(GRANTS, RETIRABLE_GRANTS_AFTER, bounds)

    async def count_grants(self, key_id: str) -> int:
        """Return how many grants a key has."""
        self._require_key()
        [(count,)] = await self._run(self._database.rows, COUNT_GRANTS, {"key_id": key_id})
        return int(count)

    async def default_key(self, owner: str) -> DefaultKeyRow | None:
        """Return which key is the default key of `owner`."""
        return await self._one(DEFAULT_KEYS, owner)

    async def default_keys(self, *, after: str | None, limit: int) -> list[DefaultKeyRow]:
        """Return default keys by ascending owner, those behind `after`."""
        return await self._many(DEFAULT_KEYS, DEFAULT_KEYS_AFTER, {"after": after or "", "limit": limit})

    async def credential(self, unit: str, name: str) -> CredentialRow | None:
        """Return a credential."""
        return await self._one(CREDENTIALS, unit, name)

    async def credentials(self, *, unit: str | None, after: tuple[str, str] | None, limit: int) -> list[CredentialRow]:
        """Return credentials by ascending unit and name, those behind `after`; with `unit` only that unit's."""
        after_unit, after_name = after or ("", "")
        bounds = {"after_unit": after_unit, "after": after_name, "limit": limit}
        if unit is None:
            return await self._many(CREDENTIALS, CREDENTIALS_AFTER, bounds)
        return await self._many(CREDENTIALS, CREDENTIALS_OF_UNIT_AFTER, {**bounds, "unit": unit})

    async def domain_keys(self) -> list[DomainKeyRow]:
        """Return all domain keys; an early row: readable before `unseal`."""
        return await self._many(DOMAIN_KEYS, STATEMENTS[DOMAIN_KEYS.table].all, {}, early=True)

    async def secret(self, name: str) -> SecretRow | None:
        """Return a secret of the service; an early row."""
        return await self._one(SECRETS, name, early=True)

    async def settings(self) -> SettingsRow | None:
        """Return the settings; an early row."""
        return await self._one(SETTINGS, "settings", early=True)

    async def store_id(self) -> str | None:
        """Return the store's name; an early row, and not certain before `check_state` has found nothing."""
        found = await self._run(self._database.rows, *STATE_ROWS)
        try:
            # Not remembered as an early row: `check_state` verifies it, and tells if it is damaged.
            return next((unverified_row(Record.from_columns(STATE, columns)).store_id for columns in found), None)
        except IntegrityError:
            return None

    async def anchor(self) -> AnchorRow | None:
        """Return the anchor of the audit trail."""
        return await self._one(ANCHORS, "audit")

    async def last_backup(self) -> BackupRow | None:
        """Return what is known of the last backup."""
        return await self._one(BACKUPS, "last")

    async def commit(self, mutation_id: str | None, changes: Sequence[Change]) -> None:
        """Make all changes in one transaction that is durable on return; remember `mutation_id`."""
        await self._writer.commit(mutation_id, changes)

    async def purge(self) -> None:
        """Leave nothing of material that was deleted in the file, its write-ahead log and pages that are free."""
        await self._run(self._database.purge)

    async def committed(self, mutation_ids: Sequence[str]) -> set[str]:
        """Return those of the mutation ids whose commits happened, among the newest 10,000 mutations."""
        self._require_key()
        mutations = STATEMENTS[MUTATIONS.table]
        each = [mutations.this(mutation_id) for mutation_id in mutation_ids]
        found = await self._run(self._database.rows_of_each, [(mutations.one, this) for this in each])
        rows = await self._rows([Record.from_columns(MUTATIONS, columns) for [columns] in filter(None, found)])
        return {row.mutation_id for row in rows}

    async def forget(self, mutation_ids: Sequence[str]) -> None:
        """Remember these mutations no longer; unknown ones are ignored."""
        await self._writer.forget(mutation_ids)

    async def ping(self) -> None:
        """Return when the store's thread has answered a query that reads nothing; raises a StoreError."""
        await self._run(self._database.rows, sa.select(sa.literal(1)), {})

    def unseal(self, mac_key: memoryview, set_key: memoryview) -> None:
        """Verify and write rows with these keys (32 bytes each, borrowed) from now on: MACs, and multiset hashes."""
        self._sealer.unseal(mac_key)
        self._hasher.unseal(set_key)
        self._writer.seal()

    async def verify_early_rows(self) -> None:
        """Verify the MACs of the early rows; raises IntegrityError."""
        for record in self._early:
            self._sealer.verify(record)
        # Only now: while one of them fails, each attempt to unseal has to fail.
        self._early.clear()

    async def snapshot(self, path: Path) -> Snapshot:
        """Return a copy of all rows as the last commit left them; `path`, in a folder of the store's own, is for it.

        Raises StoreUnavailableError, for lack of space for example, and IntegrityError.
        """
        return await self._writer.snapshot(path)

    @property
    def sequence(self) -> int:
        """The number of the last commit that is known; 0 before any is."""
        return self._writer.sequence

    async def check_state(self) -> StateReport:
        """Compare all rows' places, versions and MACs with the state row; only if nothing is found, commits may follow.

        What rows hold is not read: each row's MAC vouches for that when it is.
        """
        return await self._writer.check()

    async def accept_state(self, minimum_sequence: int) -> None:
        """Make the state row anew from the rows as they are, but for the anchor; commits may follow."""
        await self._writer.accept(minimum_sequence)

    async def verify_all(self) -> int:
        """Verify every row there is and the file that they are in, and return how many there are."""
        return await self._inspection.verify_all()

    def seal(self) -> None:
        """Forget the keys."""
        self._sealer.seal()
        self._hasher.seal()
        self._writer.seal()

    async def close(self) -> None:
        """Finish what was begun and close the store; a second call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        async with self._writer.idle():
            self._closed = True
        closing = asyncio.get_running_loop().run_in_executor(self._executor, self._database.close)
        self._executor.shutdown(wait=False)
        await closing

    async def _one(self, kind: Kind[RowT], *key: str | int, early: bool = False) -> RowT | None:
        if not early:
            self._require_key()
        statements = STATEMENTS[kind.table]
        found = await self._run(self._database.rows, statements.one, statements.this(*key))
        records = [Record.from_columns(kind, columns) for columns in found]
        for record in records:
            # An edited index leads to other rows than the one asked for, and those may well authenticate.
            if record.key != key:
                raise record.refusal(f"was found in the place of {written(key)!r}")
        rows = await self._rows(records, early=early)
        return rows[0] if rows else None

    async def _many(
        self, kind: Kind[RowT], statement: sa.Select[Any], parameters: Mapping[str, Any], *, early: bool = False
    ) -> list[RowT]:
        if not early:
            self._require_key()
        found = await self._run(self._database.rows, statement, parameters)
        return await self._rows((Record.from_columns(kind, columns) for columns in found), early=early)

    async def _rows(self, records: Iterable[Record[RowT]], *, early: bool = False) -> list[RowT]:
        rows = []
        for number, record in enumerate(records, 1):
            if early and self._sealer.sealed:
                rows.append(unverified_row(record))
                self._early[record] = None
            else:
                rows.append(self._sealer.row(record))
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return rows

    def _require_key(self) -> None:
        if self._sealer.sealed:
            raise SealedError("the store is sealed; an administrator has to unseal it")

    def _run(self, function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
        if self._closed:
            raise StoreUnavailableError(f"{self._database.name} is closed")
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
