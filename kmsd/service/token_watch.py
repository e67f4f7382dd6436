"""Looks at the token now and then, and seals the daemon when it is gone, if that is what the configuration wants.

Only a token that is missing counts as lost. One that is slow, or whose module crashed, may be there: that is logged. A
daemon that the loss sealed unseals itself when the token is back, if it has a source of the PIN. One that recovery
shares unsealed stays so: they stand for a token that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from kmsd.api.errors import AuditUnavailableError, TokenError
from kmsd.audit.record import Record
from kmsd.hsm.root import Root, RootError, TokenMissingError
from kmsd.logs import Logger
from kmsd.service.changing import Trail
from kmsd.service.loops import Loop
from kmsd.service.unsealing import Unsealing, system_record

# Of a token that comes and goes while the trail cannot be written, the newest are enough.
_MOST_UNRECORDED = 16


class TokenWatch:
    """Looks every `check_seconds`; `seals` tells whether losing the token seals the daemon."""

    def __init__(
        self,
        *,
        root: Root,
        unsealing: Unsealing,
        trail: Trail,
        logger: Logger,
        check_seconds: float,
        seals: bool,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._root = root
        self._unsealing = unsealing
        self._trail = trail
        self._logger = logger
        self._check_seconds = check_seconds
        self._seals = seals
        self._sleep = sleep
        self._missing = False
        self._watching = Loop(self._watch, event="token_watch_failed", logger=logger, sleep=sleep, pause_seconds=0)
        # What could not be recorded yet.
        self._unrecorded: deque[Record] = deque(maxlen=_MOST_UNRECORDED)

    def start(self) -> None:
        """Begin to watch, if that is configured."""
        if self._check_seconds > 0:
            self._watching.begin()

    async def close(self) -> None:
        """Look no more."""
        await self._watching.close()

    async def _watch(self) -> None:
        while True:
            await self._sleep(self._check_seconds)
            await self._look()

    async def _look(self) -> None:
        if self._unrecorded:
            with contextlib.suppress(AuditUnavailableError):  # the log has it, and it is tried again
                self._write()
        if self._unsealing.sealed and not self._unsealing.lost:
            return  # whoever unseals it learns how the token is
        try:
            await self._root.look()
        except TokenMissingError as error:
            if not self._missing:
                self._missing = True
                await self._lose(error)
        except RootError as error:
            self._logger.warning("token_check_failed", reason=str(error))
        else:
            if self._missing:
                self._missing = False
                await self._regain()

    async def _lose(self, error: TokenMissingError) -> None:
        seals = self._seals and not self._unsealing.by_recovery
        self._logger.warning("token_lost", reason=str(error), seals=seals)
        if seals:
            await self._unsealing.lose(str(error))
        self._record(system_record("TokenLost", TokenError(str(error)), sealed=seals))

    async def _regain(self) -> None:
        self._logger.info("token_back")
        self._record(system_record("TokenBack"))
        if self._unsealing.lost and self._unsealing.configured:
            await self._unsealing.recover()

    def _record(self, record: Record) -> None:
        """Record what happened anyway: a trail that cannot be written does not undo it, and the log has it."""
        self._unrecorded.append(record)
        try:
            self._write()
        except AuditUnavailableError as error:
            self._logger.warning("event_not_recorded", recorded=record.event_name, reason=error.message)

    def _write(self) -> None:
        self._trail.append([*self._unrecorded])
        self._unrecorded.clear()
