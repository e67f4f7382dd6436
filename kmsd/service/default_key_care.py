"""What kmsd does for default keys by itself: fresh material each year, and the policy of the newest template.

Once when the daemon is unsealed, and every day from then on, all default keys are looked at. A key that cannot be
looked after now is logged and left for the next day; keys that people made are never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from kmsd.access.default_keys import TEMPLATE, default_key_template
from kmsd.api.errors import ConflictError, KmsError, SealedError
from kmsd.logs import Logger
from kmsd.service.gate import Gate
from kmsd.service.key_owners import read_owner
from kmsd.service.own_changes import OwnChange, OwnChanges
from kmsd.service.rotation import Rotation
from kmsd.service.telling import told
from kmsd.store.base import Replace, Store
from kmsd.store.rows import DefaultKeyRow, KeyRow

# AWS rotates the keys that it manages every year.
ROTATION_MS = 365 * 24 * 3600 * 1000
_DAY_SECONDS = 24 * 3600.0
# Rows that are read at a time: some hundred milliseconds of one core, in which others are served.
_PAGE = 100


class DefaultKeyCare:
    """Looks after default keys while the daemon is unsealed; `clock` gives seconds since 1970 UTC."""

    def __init__(
        self,
        *,
        store: Store,
        rotation: Rotation,
        changes: OwnChanges,
        gate: Gate,
        logger: Logger,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._rotation = rotation
        self._changes = changes
        self._logger = logger
        self._clock = clock
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None
        gate.on_open(self._begin)
        gate.on_close(self._end)

    async def close(self) -> None:
        """Look after them no more; a change under way goes on to its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _begin(self) -> None:
        self._end()
        self._task = asyncio.ensure_future(self._go_on())
        self._task.add_done_callback(self._tell_fault)

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _go_on(self) -> None:
        while True:
            try:
                with told():
                    await self.look()
            except SealedError:
                return  # the next unseal begins anew
            except KmsError as error:
                self._logger.warning("default_keys_not_looked_after", code=error.code, reason=error.message)
            await self._sleep(_DAY_SECONDS)

    async def look(self) -> None:
        """Look at all default keys now; raises a KmsError or a StoreError when they cannot be read."""
        after: str | None = None
        while rows := await self._store.default_keys(after=after, limit=_PAGE):
            for row in rows:
                await self._look_at(row)
            after = rows[-1].owner

    async def _look_at(self, row: DefaultKeyRow) -> None:
        key = await self._store.key(row.key_id)
        if key is None:
            self._logger.warning("default_key_missing", owner=row.owner, key_id=row.key_id)
            return
        try:
            if row.template < TEMPLATE:
                key = await self._renew_policy(row, key)
            if await self._is_due(key):
                await self._rotation.rotate(key)
        except SealedError:
            raise
        except ConflictError:
            return  # it was changed meanwhile, and has another turn tomorrow
        except KmsError as error:
            self._logger.warning("default_key_not_changed", owner=row.owner, code=error.code, reason=error.message)

    async def _is_due(self, key: KeyRow) -> bool:
        material = await self._store.material(key.key_id, key.current_material)
        return material is not None and int(self._clock() * 1000) - material.creation_ms >= ROTATION_MS

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

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("default_key_care_failed", fault)
