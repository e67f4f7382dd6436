"""Trouble of the audit trail, told at once to whom it can be, and to everybody once it is over.

While the trail cannot be written no record can say so: the service log does, and those who follow the events are told.
Every second it is tried again; the record that this writes at last is the event for everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.chain import format_time
from kmsd.audit.writer import Trail
from kmsd.logs import Logger
from kmsd.service.unsealing import system_record

_AGAIN_SECONDS = 1.0


class AuditTrouble:
    """Watches `trail` from `start` on.

    `tell` is called with the reason and the time since when, as the trail writes it, and `is_over` when it is over.
    `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        *,
        trail: Trail,
        tell: Callable[[str, str], None],
        is_over: Callable[[], None],
        logger: Logger,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._trail = trail
        self._tell = tell
        self._is_over = is_over
        self._logger = logger
        self._clock = clock
        self._sleep = sleep
        self._ending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Have the trail tell when it refuses."""
        self._trail.on_refusal = self._begin

    async def close(self) -> None:
        """Wait for the end no longer."""
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.wait({self._ending})

    def _begin(self, reason: str) -> None:
        if self._ending is not None:
            return
        since = format_time(self._clock())
        self._logger.warning("audit_trouble", reason=reason)
        self._ending = asyncio.ensure_future(self._end(reason, since))
        self._ending.add_done_callback(self._ended)
        self._tell(reason, since)

    async def _end(self, reason: str, since: str) -> None:
        while True:
            await self._sleep(_AGAIN_SECONDS)
            until = format_time(self._clock())
            try:
                self._trail.append([system_record("AuditTrouble", since=since, until=until, reason=reason)])
            except AuditUnavailableError:
                continue
            return

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending = None
        if task.cancelled():
            return
        if (fault := task.exception()) is not None:
            self._logger.fault("audit_trouble_failed", fault)
        else:
            self._logger.info("audit_well_again")
        self._is_over()
