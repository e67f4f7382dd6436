"""Changes to keys that kmsd makes by itself: recorded like those that somebody asks for.

1. An intent is in the trail, and on the disk, before the store is asked.
2. The store commits, and remembers the intent's id with it.
3. The outcome is in the trail before anybody builds on the change.

So a kill at any moment leaves the change done or not done, and the next start settles which (`settling`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kmsd.api.errors import ConflictError, DaemonError, KmsError
from kmsd.audit.record import Actor, Kind, Record
from kmsd.audit.writer import Trail
from kmsd.service.audit_budget import AuditBudget
from kmsd.service.gate import Gate
from kmsd.service.identifiers import Arns
from kmsd.service.records import KeyRecords
from kmsd.service.telling import told
from kmsd.service.under_way import UnderWay
from kmsd.store.base import Change, RowChangedError, RowExistsError, Store


@dataclass(frozen=True)
class OwnChange:
    """What is to be committed, for one key, and what the trail tells of it.

    `actor`, `decision` and `budget` are those of the request that caused it, if one did.
    """

    event: str
    key_id: str
    changes: Sequence[Change]
    parameters: dict[str, Any] = field(default_factory=dict)
    actor: Actor | None = None
    decision: str | None = None
    budget: AuditBudget | None = None


class OwnChanges:
    """Commits such changes; `new_id` returns an id that no request has."""

    def __init__(
        self,
        *,
        store: Store,
        trail: Trail,
        records: KeyRecords,
        arns: Arns,
        gate: Gate,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._trail = trail
        self._records = records
        self._arns = arns
        self._gate = gate
        self._new_id = new_id
        self._under_way = UnderWay()

    async def commit(self, change: OwnChange) -> None:
        """Make a change; it goes on to its end when who waits for it is cancelled.

        Raises ConflictError when somebody else changed the same rows, and other KmsErrors.
        """
        task = self._under_way.begin(self._commit(change))
        self._gate.pass_through(task)
        await asyncio.shield(task)

    async def drain(self) -> None:
        """Wait until every change under way has its outcome in the trail."""
        await self._under_way.drain()

    async def _commit(self, change: OwnChange) -> None:
        mutation_id = self._new_id()
        self._append(change, Kind.INTENT, mutation_id)
        try:
            try:
                with told():
                    await self._trail.sync()
                    await self._store.commit(mutation_id, change.changes)
            except (RowExistsError, RowChangedError) as error:
                raise ConflictError(str(error)) from None
            finally:
                self._records.forget(change.key_id)
        except KmsError as error:
            details = {}
            if isinstance(error, DaemonError):
                # What failed may have done so behind the commit. Where that cannot be told, the next start can.
                with told():
                    details["committed"] = mutation_id in await self._store.committed([mutation_id])
            self._append(change, Kind.OUTCOME, mutation_id, error, details)
            raise
        self._append(change, Kind.OUTCOME, mutation_id)

    def _append(
        self,
        change: OwnChange,
        kind: Kind,
        mutation_id: str,
        error: KmsError | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        sequence = {"storeSequence": self._store.sequence} if kind is Kind.OUTCOME else {}
        record = Record(
            kind=kind,
            event_name=change.event,
            actor=change.actor,
            request_id=mutation_id,
            read_only=False,
            resources=(self._arns.key(change.key_id),),
            request_parameters=change.parameters or None,
            error_code=error.code if error else None,
            error_message=error.message if error else None,
            decision=change.decision,
            details={**sequence, **(details or {})} or None,
        )
        size = self._trail.append([record])
        if change.budget is not None:
            change.budget.charge(size)
