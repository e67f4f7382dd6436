"""Keeps the calendar over restarts, tells when the host's clock is in doubt, and lets administrators confirm it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from kmsd.api import calendar as api
from kmsd.api.calendar import ClockState
from kmsd.api.errors import ConflictError, ValidationError
from kmsd.api.operation import Operation
from kmsd.audit.writer import Trail
from kmsd.logs import Logger
from kmsd.service.calendar import TOLERANCE_MS, Calendar, Reckoning, moment
from kmsd.service.call import Call
from kmsd.service.telling import told
from kmsd.service.unsealing import system_record
from kmsd.store.base import Change, Insert, Replace, RowChangedError, RowExistsError, Store
from kmsd.store.rows import HousekeepingRow

# What a kill makes uncertain: within a boot nothing, over a reboot so much of the time that has passed.
_KEPT_MS = 3600 * 1000
# Or so much of what the clock moved it by, which is kept at once.
_MOVED_MS = 1000
# An administrator reads the time, thinks, and confirms it.
_CONFIRMED_WITHIN_MS = 60 * 1000
# What GetClock counts at most.
_COUNTED_KEYS = 1000
# Others change the row once a minute: more than one in a row would be a mistake.
_TRIES = 5


class Timekeeping:
    """Handlers of the clock, and what is done with the calendar once a minute."""

    def __init__(self, calendar: Calendar, *, store: Store, trail: Trail, logger: Logger) -> None:
        self._calendar = calendar
        self._store = store
        self._trail = trail
        self._logger = logger
        # What was kept last, as far as this process knows, with which doubt; and which the trail tells of.
        self._kept: Reckoning | None = None
        self._kept_doubt = self._told_doubt = ""
        # A tick must not keep what it looked at before somebody confirmed the clock.
        self._turn = asyncio.Lock()

    @property
    def state(self) -> ClockState | None:
        """Whether the clock is believed; None as long as it is not known what time was certain before."""
        return self._calendar.look() if self._calendar.begun else None

    async def begin(self) -> None:
        """Go on from what is stored, unless that was done; needs the store's keys."""
        if self._calendar.begun:
            return
        row = await self._store.housekeeping()
        if row is not None and row.boot_id:
            self._kept = Reckoning(row.certain_ms, row.boot_id, row.uptime_ms, row.slack_ms)
            self._kept_doubt = self._told_doubt = row.doubt
        self._calendar.begin(self._kept)

    async def tick(self) -> None:
        """Go on to this moment: tell doubt when it begins and when it ends, and keep the time; raises a KmsError."""
        async with self._turn:
            state = self._calendar.look()
            doubt = "" if state is ClockState.TRUSTED else str(state)
            if doubt != self._told_doubt:
                self._tell(state)
                self._told_doubt = doubt
            reckoning = self._calendar.reckoning()
            if doubt != self._kept_doubt or self._is_old(reckoning):
                await self._keep(None, reckoning, doubt)

    def _is_old(self, now: Reckoning) -> bool:
        kept = self._kept
        if kept is None or kept.boot_id != now.boot_id or now.certain_ms - kept.certain_ms >= _KEPT_MS:
            return True
        moved_ms = now.certain_ms - kept.certain_ms - (now.uptime_ms - kept.uptime_ms)
        return moved_ms >= _MOVED_MS or now.slack_ms <= TOLERANCE_MS < kept.slack_ms

    def _tell(self, state: ClockState) -> None:
        clock, certain = self._calendar.clock_ms(), self._calendar.reckoned_ms()
        facts = {"clock": _written(clock), "certain": _written(certain)}
        if state is ClockState.TRUSTED:
            self._trail.append([system_record("ClockBelieved", **facts)])
            self._logger.info("clock_believed", **facts)
        else:
            self._trail.append([system_record("ClockInDoubt", state=str(state), **facts)])
            self._logger.warning("clock_in_doubt", state=str(state), hint="kms clock", **facts)

    async def _keep(self, mutation_id: str | None, reckoning: Reckoning, doubt: str) -> None:
        members = {**reckoning._asdict(), "doubt": doubt}
        await keep(self._store, mutation_id, members)
        self._kept, self._kept_doubt, self._told_doubt = reckoning, doubt, doubt

    @contextlib.asynccontextmanager
    async def promise(self) -> AsyncIterator[tuple[int, list[Change]]]:
        """Give the time from which a window is counted, and what is to be committed with what promises it.

        Raises a KmsError.
        """
        async with self._turn:
            now_ms, kept = self._calendar.promised_ms(), self._kept
            changes = []
            if self._calendar.begun and (kept is None or kept.slack_ms > TOLERANCE_MS):
                with told():
                    changes = [_change(await self._store.housekeeping(), self._calendar.reckoning()._asdict())]
            yield now_ms, changes

    async def get(self, call: Call, request: api.GetClockRequest) -> api.GetClockResponse:  # noqa: ARG002 - handlers share one form
        """Tell what the clock says, whether it is believed, and how many keys wait for that."""
        state = self._calendar.look()
        clock, certain = self._calendar.clock_ms(), self._calendar.certain_ms()
        due = await self._store.keys_due(clock, limit=_COUNTED_KEYS)
        return api.GetClockResponse(
            state=state,
            clock=moment(clock),
            certain=moment(self._calendar.reckoned_ms()),
            waiting=sum(row.due_ms > certain for row in due),
        )

    async def confirm(self, call: Call, request: api.ConfirmClockRequest) -> api.ConfirmClockResponse:
        """Take the clock's time for certain."""
        async with self._turn:
            before, confirmed = self._calendar.reckoning(), self._calendar.confirmed()
            if abs(request.clock.timestamp() * 1000 - confirmed.certain_ms) > _CONFIRMED_WITHIN_MS:
                says = _written(confirmed.certain_ms)
                raise ValidationError(
                    f"the host's clock says {says}: set it, if that is wrong, and confirm what it says"
                )
            await self._keep(call.request_id, confirmed, "")
            self._calendar.begin(confirmed)
        return api.ConfirmClockResponse(before=moment(before.certain_ms), after=moment(confirmed.certain_ms))


async def keep(store: Store, mutation_id: str | None, members: dict[str, int | str]) -> None:
    """Give members of the row of housekeeping new values; others change other members of it at any time.

    Raises a KmsError.
    """
    with told():
        for _ in range(_TRIES):
            try:
                await store.commit(mutation_id, [_change(await store.housekeeping(), members)])
            except (RowChangedError, RowExistsError):
                continue
            return
    raise ConflictError("how far housekeeping has come was changed by somebody else again and again")


def _change(row: HousekeepingRow | None, members: dict[str, Any]) -> Change:
    if row is None:
        return Insert(HousekeepingRow(version=1, **{**dict.fromkeys(Reckoning._fields, 0), "boot_id": "", **members}))
    return Replace(msgspec.structs.replace(row, version=row.version + 1, **members))


def _written(ms: int) -> str:
    return str(msgspec.to_builtins(moment(ms)))


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.GET_CLOCK: Timekeeping.get,
    api.CONFIRM_CLOCK: Timekeeping.confirm,
}
