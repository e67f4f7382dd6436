"""What kmsd goes on doing by itself, also after a fault that nobody foresaw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from kmsd.logs import Logger


class Loop:
    """Runs `run` until that returns or is ended; after a fault, which may pass, anew `pause_seconds` later.

    There has to be a pause, as a fault may come each time: 0 is for what begins with one. The log tells the fault as
    `event`. `sleep` waits for so many seconds.
    """

    def __init__(
        self,
        run: Callable[[], Coroutine[Any, Any, None]],
        *,
        event: str,
        logger: Logger,
        sleep: Callable[[float], Awaitable[None]],
        pause_seconds: float,
    ) -> None:
        self._run = run
        self._event = event
        self._logger = logger
        self._sleep = sleep
        self._pause_seconds = pause_seconds
        self._task: asyncio.Task[None] | None = None
        # Whether it was begun, and not ended since.
        self.begun = False

    def begin(self) -> None:
        """Begin anew; what goes on already is ended."""
        self.end()
        self.begun = True
        self._start(self._run())

    def end(self) -> None:
        """End it, at the next thing that it waits for."""
        self.begun = False
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """End it, and wait until it has ended."""
        self.end()
        if self._task is not None:
            await asyncio.wait({self._task})

    def _start(self, run: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.ensure_future(run)
        self._task.add_done_callback(self._ended)

    async def _run_later(self) -> None:
        if self._pause_seconds:
            await self._sleep(self._pause_seconds)
        await self._run()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault(self._event, fault)
            if self.begun and task is self._task:
                self._start(self._run_later())
