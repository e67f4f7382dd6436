"""What kmsd does by itself, by a time it can believe: one scheduler for all of it.

Once when the daemon is unsealed, and every minute from then on:

1. The calendar goes on, and doubt in the host's clock is told. Nothing is done without that.
2. What is done each minute is done.
3. What is due of keys is done in the order in which it fell due: one rotation, warning or destruction after the other.
4. What is left of keys that were destroyed is removed, and once a day what is done each day is done.

A key of which something fails is told in the log and has another turn a minute later, then two, and at last an hour; it
keeps no other key waiting. When many fail in a row, it is not for their own sake, and the others wait for the next
minute: thousands of keys on a full disk must not fill another one with what is told of them. Sealing ends all of this,
but for a change that has begun: that goes on to its end.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from kmsd.api.errors import ConflictError, KmsError, SealedError
from kmsd.api.operation import KeyState
from kmsd.logs import Logger
from kmsd.service.calendar import Calendar
from kmsd.service.destruction import Destruction
from kmsd.service.gate import Gate
from kmsd.service.key_dates import DAY_MS
from kmsd.service.loops import Loop
from kmsd.service.rotation import Rotation
from kmsd.service.telling import told
from kmsd.service.timekeeping import Timekeeping, keep
from kmsd.store.base import Store
from kmsd.store.rows import KeyRow

_SECONDS = 60.0
# Keys that are read at a time: some milliseconds, in which others are served.
_PAGE = 100
# How often a key is looked at in a row that others change all the time.
_TRIES = 3
# How many keys may fail in a row before all the others wait for the next minute.
_MOST_FAILURES = 10
# How long a key that fails waits at most.
_LONGEST_WAIT_MINUTES = 60

Task = Callable[[], Awaitable[None]]


class _Wait(NamedTuple):
    """In which minute a key that failed has another turn, and how many minutes that is since it failed."""

    until: int
    minutes: int


class Housekeeping:
    """Begins whenever the gate opens, and ends when it closes.

    `minutely`, by the names that the log has for them, and `daily` are what else is done; each may raise KmsErrors.
    """

    def __init__(
        self,
        *,
        timekeeping: Timekeeping,
        calendar: Calendar,
        store: Store,
        rotation: Rotation,
        destruction: Destruction,
        minutely: Sequence[tuple[str, Task]],
        daily: Sequence[Task],
        gate: Gate,
        logger: Logger,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._timekeeping = timekeeping
        self._calendar = calendar
        self._store = store
        self._rotation = rotation
        self._destruction = destruction
        self._minutely = tuple(minutely)
        self._daily = tuple(daily)
        self._logger = logger
        self._sleep = sleep
        # Dates go on falling due behind a fault that nobody foresaw.
        self._loop = Loop(self._go_on, event="housekeeping_failed", logger=logger, sleep=sleep, pause_seconds=_SECONDS)
        self._minute = 0
        self._waits: dict[str, _Wait] = {}
        gate.on_open(self._loop.begin)
        gate.on_close(self._loop.end)

    async def close(self) -> None:
        """Do nothing more; a change under way goes on to its end."""
        await self._loop.close()

    async def _go_on(self) -> None:
        while True:
            try:
                await self.look()
            except SealedError:
                return  # the next unseal begins anew
            await self._sleep(_SECONDS)

    async def look(self) -> None:
        """Do everything that is due now; raises SealedError."""
        if not await self._do("calendar", self._timekeeping.tick):
            return
        for name, task in self._minutely:
            await self._do(name, task)
        await self._do("keys", self._attend_keys)
        await self._do("destroyed_keys", self._destruction.clear)
        await self._do("daily", self._attend_daily)

    async def _do(self, name: str, task: Task) -> bool:
        """Do something that may fail, and tell whether it did not."""
        try:
            with told():
                await task()
        except SealedError:
            raise
        except KmsError as error:
            self._logger.warning("housekeeping_failed", what=name, code=error.code, reason=error.message)
            return False
        return True

    async def _attend_daily(self) -> None:
        now_ms = self._calendar.certain_ms()
        row = await self._store.housekeeping()
        # Also when the clock was confirmed to be earlier than it had been.
        if row is not None and 0 <= now_ms - row.daily_ms < DAY_MS:
            return
        for task in self._daily:
            await task()
        await keep(self._store, None, {"daily_ms": now_ms})

    async def _attend_keys(self) -> None:
        until_ms = self._calendar.certain_ms()
        self._minute += 1
        left = {key_id for key_id, wait in self._waits.items() if wait.until > self._minute}
        failures = 0
        while page := await self._read_due(until_ms, left):
            last_ms = page[-1].due_ms
            while page:
                key = page.pop(0)
                try:
                    with told():
                        following = await self._attend(key, until_ms)
                except SealedError:
                    raise
                except KmsError as error:
                    self._logger.warning("key_not_attended", key_id=key.key_id, code=error.code, reason=error.message)
                    self._postpone(key.key_id)
                    left.add(key.key_id)
                    failures += 1
                    if failures == _MOST_FAILURES:
                        return
                    continue
                self._waits.pop(key.key_id, None)
                failures = 0
                # Before what is due later, also where that was read already; all else is read again.
                if following is not None and 0 < following.due_ms <= last_ms:
                    insort(page, following, key=_order)

    async def _read_due(self, until_ms: int, left: set[str]) -> list[KeyRow]:
        rows = await self._store.keys_due(until_ms, limit=_PAGE + len(left))
        return [row for row in rows if row.key_id not in left]

    def _postpone(self, key_id: str) -> None:
        former = self._waits.get(key_id)
        minutes = 1 if former is None else min(2 * former.minutes, _LONGEST_WAIT_MINUTES)
        self._waits[key_id] = _Wait(self._minute + minutes, minutes)

    async def _attend(self, row: KeyRow, until_ms: int) -> KeyRow | None:
        """Do what is due of a key, and return it as it is then; None if it is gone."""
        for _ in range(_TRIES):
            overtaken = False
            try:
                await self._do_due(row)
            except ConflictError:
                overtaken = True
            current = await self._store.key(row.key_id)
            if not overtaken or current is None or not 0 < current.due_ms <= until_ms:
                return current
            row = current
        raise ConflictError("it was changed by somebody else again and again")

    async def _do_due(self, row: KeyRow) -> None:
        if row.key_state == KeyState.ENABLED:
            await self._rotation.rotate(row)
        elif row.key_state == KeyState.PENDING_DELETION and not row.deletion_warned:
            await self._destruction.warn(row)
        else:
            await self._destruction.destroy(row)


def _order(row: KeyRow) -> tuple[int, str]:
    return row.due_ms, row.key_id
