"""The end of a key whose window is over: its material, its names, and all that is kept about it.

1. Some days before, the trail tells once that the key is going to be destroyed.
2. One commit removes the key, all its material, its aliases and the counts of its uses, and leaves a tombstone.
3. Behind it, what was deleted is purged from the store's log (its file is overwritten by the commit itself), and the
   key's grants, of which there may be many, are removed a batch at a time. Both are done again until they are done, by
   this process or the next: opening a store purges it, and the tombstone tells of grants that are left.

So a kill at any moment leaves the key pending deletion, with everything, or destroyed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from kmsd.api.errors import ConflictError, IntegrityError
from kmsd.api.operation import KeyState
from kmsd.logs import Logger
from kmsd.material.versions import Versions
from kmsd.service.calendar import moment
from kmsd.service.key_dates import dated
from kmsd.service.own_changes import OwnChange, OwnChanges
from kmsd.service.records import ALIASES_PER_KEY
from kmsd.service.telling import told
from kmsd.service.uses import KeyUses
from kmsd.store.base import Change, Delete, Insert, Replace, RowChangedError, Store
from kmsd.store.rows import KeyRow, MaterialRow, TombstoneRow

_MATERIALS = 100
_TOMBSTONES = 100
# Grants that are removed in one transaction: some ten milliseconds of the store, in which others wait.
_GRANTS = 200


class Destruction:
    """Warns of destruction and destroys; `certain_ms` gives the time that is sure to have passed."""

    def __init__(
        self,
        *,
        store: Store,
        versions: Versions,
        uses: KeyUses,
        changes: OwnChanges,
        logger: Logger,
        certain_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._versions = versions
        self._uses = uses
        self._changes = changes
        self._logger = logger
        self._certain_ms = certain_ms
        self._to_purge = False
        # Which destroyed keys may have grants; None as long as the tombstones were not looked at.
        self._with_grants: set[str] | None = None

    async def warn(self, row: KeyRow) -> None:
        """Tell that a key is going to be destroyed, unless somebody cancels it.

        Raises ConflictError when the key is no longer as `row` tells, and other KmsErrors.
        """
        warned = msgspec.structs.replace(row, deletion_warned=True, version=row.version + 1)
        await self._changes.commit(
            OwnChange("WarnOfKeyDeletion", row.key_id, [Replace(dated(warned))], parameters=_facts(row))
        )

    async def destroy(self, row: KeyRow) -> None:
        """Destroy a key whose time has come.

        Raises ConflictError when it has not come, or the key is no longer as `row` tells, and other KmsErrors.
        """
        # Looked at once more, where it cannot be taken back: whatever led here, this is what was promised.
        if row.key_state != KeyState.PENDING_DELETION or not 0 < row.deletion_ms <= self._certain_ms():
            raise ConflictError(f"key {row.key_id} is not to be destroyed now")
        with told():
            tombstone, changes = await self._draft(row)
        # Before it is known that it happened, which this may never hear of: sealing does not wait, records can fail.
        self._to_purge = True
        if tombstone.grants_left:
            self._with_grants = None
        try:
            await self._changes.commit(OwnChange("DeleteKey", row.key_id, changes, parameters=_facts(row)))
        finally:
            # Of a key that is still there, they are read again.
            self._versions.forget(row.key_id)
        self._uses.forget(row.key_id)

    async def _draft(self, row: KeyRow) -> tuple[TombstoneRow, list[Change]]:
        materials = [material async for material in self._materials(row.key_id)]
        aliases = await self._store.aliases(key_id=row.key_id, after=None, limit=ALIASES_PER_KEY)
        usage = await self._store.usage(row.key_id)
        tombstone = TombstoneRow(
            key_id=row.key_id,
            destruction_ms=self._certain_ms(),
            creation_ms=row.creation_ms,
            creator_uid=row.creator_uid,
            description=row.description,
            key_spec=row.key_spec,
            material_ids=[material.material_id for material in materials],
            last_used_ms=self._uses.last_used_ms(row.key_id, usage),
            grants_left=await self._store.count_grants(row.key_id) > 0,
            version=1,
        )
        # The key's row comes first, so that a cancellation that was quicker is told as such.
        gone = [row, *materials, *aliases, *([] if usage is None else [usage])]
        return tombstone, [*map(Delete, gone), Insert(tombstone)]

    async def _materials(self, key_id: str) -> AsyncIterator[MaterialRow]:
        after = 0
        while rows := await self._store.materials(key_id, after=after, limit=_MATERIALS):
            for row in rows:
                yield row
            after = rows[-1].number

    async def clear(self) -> None:
        """Leave nothing of destroyed keys behind; done again where it failed, when this is called again.

        Raises a KmsError.
        """
        with told():
            if self._to_purge:
                await self._store.purge()
                self._to_purge = False
            for key_id in await self._find_grants():
                await self._clear_grants(key_id)

    async def _find_grants(self) -> list[str]:
        if self._with_grants is None:
            found: set[str] = set()
            after: str | None = None
            while rows := await self._store.tombstones(after=after, limit=_TOMBSTONES):
                found.update(row.key_id for row in rows if row.grants_left)
                after = rows[-1].key_id
            self._with_grants = found
        return sorted(self._with_grants)

    async def _clear_grants(self, key_id: str) -> None:
        try:
            while grants := await self._store.grants(key_id, grantee=None, after=None, limit=_GRANTS):
                await self._store.commit(None, [*map(Delete, grants)])
            tombstone = await self._store.tombstone(key_id)
            if tombstone is not None:
                cleared = msgspec.structs.replace(tombstone, grants_left=False, version=tombstone.version + 1)
                await self._store.commit(None, [Replace(cleared)])
        except RowChangedError:
            return  # somebody retired one of them at this moment
        except IntegrityError as error:
            # Those of other keys are removed all the same.
            self._logger.warning("grants_not_removed", key_id=key_id, code=error.code, reason=error.message)
            return
        if self._with_grants is not None:
            self._with_grants.discard(key_id)


def _facts(row: KeyRow) -> dict[str, Any]:
    return {
        "deletionDate": msgspec.to_builtins(moment(row.deletion_ms)),
        "pendingWindowInDays": row.pending_window_days,
    }
