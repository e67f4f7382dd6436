"""How what a request changes is made, so that the trail knows of each change whatever happens.

1. Write an `intent` record, and have it on the disk.
2. Call the handler.
3. Write an `outcome` record with the store's number of commits: by it an earlier store cannot be put in this one's
   place unseen.

A change goes on when its peer hangs up, so that it never ends between the commit and its record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from kmsd.api.errors import DaemonError, KmsError
from kmsd.audit.record import Kind, Record
from kmsd.logs import Logger
from kmsd.service.call import Call
from kmsd.service.foreseen import Foreseen
from kmsd.service.gate import Gate
from kmsd.service.table import Entry
from kmsd.service.under_way import UnderWay


class Trail(Protocol):
    """What requests need of `kmsd.audit.writer.Trail`."""

    def append(self, records: Sequence[Record]) -> int:
        """Write records, all or none, and return how many bytes they took; raises AuditUnavailableError."""

    async def sync(self) -> None:
        """Wait until everything written is on the disk; raises AuditUnavailableError."""


class Mutations(Protocol):
    """What requests need of `kmsd.store.base.Store`."""

    @property
    def sequence(self) -> int:
        """How many commits the store counts."""

    async def committed(self, mutation_ids: Sequence[str]) -> set[str]:
        """Return which of these mutations were committed."""


class Changing:
    """The changes under way. `mutations` tells which were committed."""

    def __init__(self, *, trail: Trail, mutations: Mutations, gate: Gate, logger: Logger) -> None:
        self._trail = trail
        self._mutations = mutations
        self._gate = gate
        self._logger = logger
        self._under_way = UnderWay()

    def begin(self, call: Call, entry: Entry, arguments: tuple[Any, ...]) -> asyncio.Task[msgspec.Struct]:
        """Make the change that the handler makes of its `arguments`, and return what becomes of it."""
        change = self._under_way.begin(self._make(call, entry, arguments))
        if not entry.operation.works_sealed:
            self._gate.pass_through(change)
        return change

    async def drain(self) -> None:
        """Wait until every change under way has its outcome in the trail."""
        await self._under_way.drain()

    async def _make(self, call: Call, entry: Entry, arguments: tuple[Any, ...]) -> msgspec.Struct:
        parameters = entry.parameters(arguments[1])
        call.budget.charge(self._trail.append([call.record(Kind.INTENT, parameters=parameters)]))
        call.began = True
        try:
            with Foreseen(self._logger, call):
                await self._trail.sync()
                response: msgspec.Struct = await entry.handler(*arguments)
                elements = entry.response_elements(response)
        except KmsError as error:
            details: dict[str, Any] = dict(call.noted or {})
            if isinstance(error, DaemonError):
                # What failed may have done so after the commit, the commit itself included. The record tells which, or
                # stays open until the next start can tell.
                with Foreseen(self._logger, call):
                    happened = call.request_id in await self._mutations.committed([call.request_id])
                    details |= {"committed": happened, "storeSequence": self._mutations.sequence}
            outcome = call.record(Kind.OUTCOME, parameters=parameters, error=error, details=details or None)
            call.budget.charge(self._trail.append([outcome]))
            raise
        details = {**(call.noted or {}), "storeSequence": self._mutations.sequence}
        outcome = call.record(Kind.OUTCOME, parameters=parameters, response=elements, details=details)
        call.budget.charge(self._trail.append([outcome]))
        return response
