"""Whose audit budget a request uses, and when what was counted beyond it is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.record import Record
from kmsd.logs import Logger
from kmsd.service.audit_budget import AuditBudget
from kmsd.service.call import UNKNOWN_UIDS, Session

# A uid that is refused for a day makes 1,440 records.
SUMMARY_SECONDS = 60.0


class Trail(Protocol):
    """What is needed of `kmsd.audit.writer.Trail`."""

    def append(self, records: Sequence[Record]) -> int:
        """Write records, all or none, and return how many bytes they took; raises AuditUnavailableError."""


class AuditAccounts:
    """The budgets of all uids that have asked for anything; those that passwd does not know have one together.

    `clock` gives monotonic seconds, `wall_clock` seconds since 1970; `sleep` waits for so many seconds.
    """

    def __init__(
        self,
        *,
        bytes_per_second: int,
        burst_bytes: int,
        trail: Trail,
        logger: Logger,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._burst_bytes = burst_bytes
        self._trail = trail
        self._logger = logger
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        # Kept while their uid has no connection: reconnecting must not refill them.
        self._budgets: dict[int, AuditBudget] = {}
        self._writing: asyncio.Task[None] | None = None

    def of(self, session: Session) -> AuditBudget:
        """Return the budget of a peer, as it is now."""
        budget = self._budgets.get(session.place)
        if budget is None:
            return self._open(session.place)
        if budget.exceeded and budget.resume():
            self._write(budget)
        return budget

    def count_exceeded(self) -> int:
        """Return how many budgets are used up."""
        return sum(budget.is_refusing() for budget in self._budgets.values())

    def _open(self, place: int) -> AuditBudget:
        budget = self._budgets[place] = AuditBudget(
            None if place == UNKNOWN_UIDS else place,
            bytes_per_second=self._bytes_per_second,
            burst_bytes=self._burst_bytes,
            clock=self._clock,
            wall_clock=self._wall_clock,
        )
        return budget

    def start(self) -> None:
        """Write a summary for each budget once in a while, as long as there is something to tell."""
        self._writing = asyncio.ensure_future(self._write_regularly())
        self._writing.add_done_callback(self._tell_fault)

    def close(self) -> None:
        """Write what was counted and is not written; nothing is counted any more."""
        if self._writing is not None:
            self._writing.cancel()
        for budget in self._budgets.values():
            self._write(budget)

    async def _write_regularly(self) -> None:
        while True:
            await self._sleep(SUMMARY_SECONDS)
            for budget in list(self._budgets.values()):
                self._write(budget)

    def _write(self, budget: AuditBudget) -> None:
        summary = budget.summary()
        if summary is None:
            return
        try:
            budget.charge(self._trail.append([summary]))
        except AuditUnavailableError as error:
            # It is kept until the trail takes it; the log has it, should that not come to be.
            self._logger.warning("event_not_recorded", recorded=summary.event_name, reason=error.message)
            return
        budget.forget()

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("refusals_not_summarized", fault)
