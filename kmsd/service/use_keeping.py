"""Stores what was counted each minute, while there are keys to use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kmsd.api.errors import KmsError, SealedError
from kmsd.logs import Logger
from kmsd.service.gate import Gate
from kmsd.service.uses import KeyUses

_SECONDS = 60.0


class UseKeeping:
    """Begins when the daemon is unsealed; what could not be done now is tried again a minute later."""

    def __init__(
        self,
        *,
        uses: KeyUses,
        gate: Gate,
        logger: Logger,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._uses = uses
        self._logger = logger
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None
        gate.on_open(self._begin)
        gate.on_close(self._end)

    async def close(self) -> None:
        """Store nothing more; a flush under way goes on to its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _begin(self) -> None:
        self._end()
        self._uses.begin()
        self._task = asyncio.ensure_future(self._go_on())
        self._task.add_done_callback(self._tell_fault)

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _go_on(self) -> None:
        while True:
            try:
                await self._uses.keep()
            except SealedError:
                return  # the next unseal begins anew
            except KmsError as error:
                self._logger.warning("uses_not_stored", code=error.code, reason=error.message)
            await self._sleep(_SECONDS)

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("storing_uses_failed", fault)
