"""What the token remembers of the store: how many changes it had counted when somebody last told it.

That is at each unseal, and then every hour in which there were changes. With a PIN that somebody typed it is told
during that attempt only, because the PIN is gone afterwards. With the configured one it is told a moment later, so that
nobody waits for a second login.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kmsd.hsm.root import PinSource, Root, RootError
from kmsd.logs import Logger
from kmsd.memory.mapping import SecretMemoryUnavailableError
from kmsd.store.base import Store, StoreError

# What store and trail put back together can take back unseen, against a login, which some tokens count or log.
KEEP_SECONDS = 3600.0


class TokenAnchor:
    """Has the token remember the store's sequence. A token that cannot is no reason to stay sealed, but is logged.

    `sleep` waits for so many seconds.
    """

    def __init__(
        self, root: Root, store: Store, logger: Logger, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._root = root
        self._store = store
        self._logger = logger
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    async def keep(self, pin: PinSource | None) -> None:
        """Have it remember now, by a login with `pin`, or with the configured one."""
        try:
            store_id = await self._store.store_id()
            if store_id is not None and not await self._root.keep_anchor(store_id, self._store.sequence, pin):
                self._logger.warning("token_keeps_no_anchor", reason="the token takes no data objects")
        except (RootError, StoreError, SecretMemoryUnavailableError) as error:
            self._logger.warning("token_anchor_not_kept", reason=str(error))

    def start(self) -> None:
        """Have it remember by logins with the configured PIN, while others are served, until `close`."""
        self._task = asyncio.ensure_future(self._go_on())
        self._task.add_done_callback(self._tell_fault)

    async def close(self) -> None:
        """End a login that is under way; the next unseal has the token remember as much, and more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _go_on(self) -> None:
        while True:
            told = self._store.sequence
            await self.keep(None)
            # Also behind a change that came meanwhile, as one of each unseal does: logins are few.
            await self._sleep(KEEP_SECONDS)
            while self._store.sequence == told:
                await self._sleep(KEEP_SECONDS)

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("token_anchor_failed", fault)
