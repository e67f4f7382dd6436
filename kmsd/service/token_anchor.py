"""What the token remembers of the store: how many changes it had counted when the daemon was last unsealed.

With a PIN that somebody typed it is written during that attempt, because the PIN is gone afterwards. With the
configured one it is written a moment later, so that nobody waits for a second login.
"""

from __future__ import annotations

import asyncio

from kmsd.hsm.root import PinSource, Root, RootError
from kmsd.logs import Logger
from kmsd.memory.mapping import SecretMemoryUnavailableError
from kmsd.store.base import Store, StoreError


class TokenAnchor:
    """Has the token remember the store's sequence. A token that cannot is no reason to stay sealed, but is logged."""

    def __init__(self, root: Root, store: Store, logger: Logger) -> None:
        self._root = root
        self._store = store
        self._logger = logger
        self._task: asyncio.Task[None] | None = None

    async def keep(self, pin: PinSource | None) -> None:
        """Have it remember now, by a login with `pin`, or with the configured one."""
        try:
            store_id = await self._store.store_id()
            if store_id is not None and not await self._root.keep_anchor(store_id, self._store.sequence, pin):
                self._logger.warning("token_keeps_no_anchor", reason="the token takes no data objects")
        except (RootError, StoreError, SecretMemoryUnavailableError) as error:
            self._logger.warning("token_anchor_not_kept", reason=str(error))

    def keep_later(self) -> None:
        """Have it remember by a login with the configured PIN, while others are served."""
        self._task = asyncio.ensure_future(self.keep(None))
        self._task.add_done_callback(self._tell_fault)

    async def close(self) -> None:
        """End a login that is under way; the next unseal has the token remember as much, and more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("token_anchor_failed", fault)
