"""A store made of a backup, without a daemon.

1. Unwrap the header's domain keys, by the token that the backup was made with or by the recovery key.
2. Unwrap the data key; with it the header is shown to be the backup's own.
3. Write the records into a store of their own, and verify every row, and that the state row tells of exactly these.

A store that is to be used takes two more steps (`adopt`):

4. With a new token, wrap the domain keys by its root key, and see that it unwraps them.
5. Forget the anchor of the audit trail, which is of the trail that the backup was made with, and count the commits on
   from the highest number that anybody has seen: what stands there now is no older store put back.

Whoever does this then has the trail tell of it, and puts the store into its place last.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from kmsd.api.errors import IntegrityError, RecoverySharesError
from kmsd.backup.header import DATA_KEY_BYTES, BackupError
from kmsd.backup.reading import BackupReader
from kmsd.hsm.root import DOMAIN_KEY_BYTES, PinSource, Root, WrappedDomainKey, WrappedKeyInvalidError
from kmsd.material.hierarchy import Hierarchy, RecoveryWrapped
from kmsd.memory.arena import Arena, Slot
from kmsd.service.backups import backup_place
from kmsd.service.row_keys import ROW_MAC, ROW_MAC_PLACE, derive_set_key
from kmsd.store.base import Change, Delete, Insert, Replace, StoreFormatError
from kmsd.store.rows import BackupRow, DomainKeyRow
from kmsd.store.sql import SqlStore
from kmsd.store.transfer import restore_into


class Restoration:
    """One backup that is opened; `name` is its file's, for messages. Its keys are in `arena`, whose owner wipes it."""

    def __init__(self, reader: BackupReader, name: str, *, root: Root, hierarchy: Hierarchy, arena: Arena) -> None:
        self._reader = reader
        self._name = name
        self._root = root
        self._hierarchy = hierarchy
        self._arena = arena
        self._body_key: Slot | None = None

    async def unlock(self, recovery_key: memoryview | None, pin: PinSource | None = None) -> int | None:
        """Get at the keys; without `recovery_key` by the token. Return the sequence that the token has seen, if any.

        Raises BackupError, RecoverySharesError, and what the token raises.
        """
        header = self._reader.header
        seen = None
        try:
            if recovery_key is None:
                wrapped = [
                    WrappedDomainKey(one.domain_key_id, one.generation, one.wrapped) for one in header.domain_keys
                ]
                seen = await self._hierarchy.unseal(wrapped, pin, anchor=header.store_id)
            else:
                self._hierarchy.unseal_by_recovery(
                    [
                        RecoveryWrapped(one.domain_key_id, one.generation, one.recovery_wrapped)
                        for one in header.domain_keys
                    ],
                    recovery_key,
                )
            place = backup_place(header.data_key.backup_id)
            data_key = self._hierarchy.unwrap(place, header.data_key.domain_key_id, header.data_key.wrapped)
        except WrappedKeyInvalidError as error:
            raise BackupError(
                f"{self._name}: this token does not open it: the backup was made with another, or its header was "
                f"changed ({error})"
            ) from None
        except RecoverySharesError as error:
            raise RecoverySharesError(f"{self._name}: {error.message}") from None
        except IntegrityError:
            raise BackupError(f"{self._name}: the backup's header was changed: its data key does not open") from None
        with data_key:
            self._body_key = self._arena.lease(DATA_KEY_BYTES)
            self._reader.unlock(data_key.view, self._body_key.view)
        return seen

    async def build(self, path: Path) -> SqlStore:
        """Make a store at `path`, where there is none, and return it open, unsealed, and verified row by row.

        Raises BackupError, and StoreUnavailableError when it cannot be written.
        """
        if self._body_key is None:
            raise ValueError("the backup is locked")
        try:
            await restore_into(path, self._reader.pieces(self._body_key.view))
        except StoreFormatError as error:
            raise BackupError(f"{self._name}: it holds what no kmsd left: {error}") from None
        store = await SqlStore.open(path)
        try:
            await self._verify(store)
        except IntegrityError as error:
            await store.close()
            raise BackupError(f"{self._name}: it holds what no kmsd left: {error.message}") from None
        except BaseException:
            await store.close()
            raise
        return store

    async def _verify(self, store: SqlStore) -> None:
        secret, header = await store.secret(ROW_MAC), self._reader.header
        if secret is None:
            raise IntegrityError("there is no row-MAC key")
        mac_key = self._hierarchy.unwrap(ROW_MAC_PLACE, secret.domain_key_id, secret.wrapped)
        store.unseal(mac_key.view, derive_set_key(mac_key, self._arena).view)
        await store.verify_early_rows()
        await store.verify_all()
        report = await store.check_state()
        if report.findings or report.adopted:
            raise IntegrityError("; ".join(report.findings) or "the state row is missing")
        if (report.store_id, report.sequence) != (header.store_id, header.store_sequence):
            raise IntegrityError(f"the rows are of commit {report.sequence}, not of {header.store_sequence}")
        settings = await store.settings()
        if settings is None or (settings.account, settings.region) != (header.account, header.region):
            raise IntegrityError("the rows are of another account or region than the header tells")

    async def adopt(self, store: SqlStore, *, made: BackupRow, seen: int, to_new_token: bool) -> None:
        """Make the verified store one that can be used; `made` is this backup, which is its last one from now on.

        `seen` is the highest sequence that is known from elsewhere. With `to_new_token` the domain keys are wrapped
        by the root key of the token that is there now.
        """
        changes: list[Change] = []
        if to_new_token:
            for row in await store.domain_keys():
                record = await self._hierarchy.wrap_for_root(row.domain_key_id, row.generation)
                changes.append(Replace(replace(row, wrapped=record.wrapped, version=row.version + 1)))
            seen = max(seen, await self._try_token(changes))
        if (anchor := await store.anchor()) is not None:
            changes.append(Delete(anchor))
        before = await store.last_backup()
        changes.append(Insert(made) if before is None else Replace(replace(made, version=before.version + 1)))
        await store.commit(str(uuid.uuid4()), changes)
        # Above everything known, so that neither the trail nor the token takes it for an older store put back.
        await store.accept_state(seen)

    async def _try_token(self, changes: list[Change]) -> int:
        """See that the new token opens what it wrapped, before anything depends on it; return what it has seen."""
        records = [
            WrappedDomainKey(change.row.domain_key_id, change.row.generation, change.row.wrapped)
            for change in changes
            if isinstance(change.row, DomainKeyRow)
        ]
        with ExitStack() as stack:
            keys = [stack.enter_context(self._arena.lease(DOMAIN_KEY_BYTES)) for _ in records]
            views = [key.view for key in keys]
            return await self._root.unwrap(records, views, anchor=self._reader.header.store_id) or 0
