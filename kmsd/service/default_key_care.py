"""What kmsd does for default keys by itself: fresh material each year, and the policy of the newest template.

Housekeeping has all default keys looked at once a day. A key that cannot be looked after now is logged and left for the
next day; keys that people made are never touched.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kmsd.access.default_keys import TEMPLATE, default_key_template
from kmsd.api.errors import ConflictError, KmsError, SealedError
from kmsd.logs import Logger
from kmsd.service.key_owners import read_owner
from kmsd.service.own_changes import OwnChange, OwnChanges
from kmsd.service.rotation import Rotation
from kmsd.store.base import Replace, Store
from kmsd.store.rows import DefaultKeyRow, KeyRow

# AWS rotates the keys that it manages every year.
ROTATION_MS = 365 * 24 * 3600 * 1000
# Rows that are read at a time: some hundred milliseconds of one core, in which others are served.
_PAGE = 100


class DefaultKeyCare:
    """Looks after default keys; `certain_ms` gives the time that is sure to have passed."""

    def __init__(
        self,
        *,
        store: Store,
        rotation: Rotation,
        changes: OwnChanges,
        logger: Logger,
        certain_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._rotation = rotation
        self._changes = changes
        self._logger = logger
        self._certain_ms = certain_ms

    async def look(self) -> None:
        """Look at all default keys now; raises a KmsError or a StoreError when they cannot be read."""
        after: str | None = None
        while rows := await self._store.default_keys(after=after, limit=_PAGE):
            for row in rows:
                await self._look_at(row)
            after = rows[-1].owner

    async def _look_at(self, row: DefaultKeyRow) -> None:
        try:
            if (key := await self._store.key(row.key_id)) is not None:
                await self._look_after(row, key)
            else:
                self._logger.warning("default_key_missing", owner=row.owner, key_id=row.key_id)
        except SealedError:
            raise
        except ConflictError:
            return  # it was changed meanwhile, and has another turn tomorrow
        except KmsError as error:
            self._logger.warning("default_key_not_changed", owner=row.owner, code=error.code, reason=error.message)

    async def _look_after(self, row: DefaultKeyRow, key: KeyRow) -> None:
        if row.template < TEMPLATE:
            key = await self._renew_policy(row, key)
        if await self._is_due(key):
            await self._rotation.rotate(key)

    async def _is_due(self, key: KeyRow) -> bool:
        material = await self._store.material(key.key_id, key.current_material)
        return material is not None and self._certain_ms() - material.creation_ms >= ROTATION_MS

    async def _renew_policy(self, row: DefaultKeyRow, key: KeyRow) -> KeyRow:
        owner = read_owner(row.owner)
        renewed = msgspec.structs.replace(
            key,
            policy=default_key_template(owner.principal),
            # As it was when the key was made: whoever has that name by now is no owner.
            policy_principals=owner.resolved,
            version=key.version + 1,
        )
        known = msgspec.structs.replace(row, template=TEMPLATE, version=row.version + 1)
        change = OwnChange(
            "UpdateDefaultKeyPolicy",
            key.key_id,
            [Replace(renewed), Replace(known)],
            parameters={"owner": row.owner, "template": TEMPLATE, "replaces": row.template},
        )
        await self._changes.commit(change)
        return renewed
