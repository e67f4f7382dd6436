"""What is measured of a service, and who tells it to monitoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.api.operation import Operation
from kmsd.audit.writer import Trail
from kmsd.envelope.pool import WorkerPool
from kmsd.metrics import families
from kmsd.metrics.meter import OF_REQUESTS, Meter
from kmsd.server.announcing import Announcing
from kmsd.server.custody import Custody
from kmsd.server.foundation import Foundation
from kmsd.server.limits import Shares
from kmsd.service import metrics
from kmsd.service.audit_accounts import AuditAccounts
from kmsd.service.metrics import Metrics
from kmsd.service.table import bind
from kmsd.store.rows import BackupRow
from kmsd.store.sql import SqlStore


class Measuring:
    """Counts requests, and reads the rest where it is; `withdrawn` gives how many replies were withdrawn."""

    def __init__(
        self,
        foundation: Foundation,
        store: SqlStore,
        trail: Trail,
        custody: Custody,
        *,
        shares: Shares,
        accounts: AuditAccounts,
        pool: WorkerPool,
        withdrawn: Callable[[], int],
        announcing: Announcing,
    ) -> None:
        self._clock = foundation.clock
        started = foundation.clock()
        arena = foundation.arena
        self.requests = Meter(OF_REQUESTS)
        self._metrics = Metrics(
            meters=(self.requests, foundation.root.meter),
            values={
                families.STARTED: lambda: started,
                families.SECRET_MEMORY_USED: lambda: arena.used_bytes,
                families.SECRET_MEMORY_LIMIT: lambda: arena.limit_bytes,
                families.AUDIT_SEQUENCE: lambda: trail.head[0],
                families.AUDIT_REFUSALS: lambda: trail.refusals,
                families.AUDIT_WRITTEN: lambda: trail.written_bytes,
                families.AUDIT_LAG: lambda: trail.lag_seconds,
                families.AUDIT_CHECKPOINT: lambda: last.seq if (last := custody.checkpoints.last) else None,
                families.STORE_SEQUENCE: lambda: store.sequence,
                families.BACKUP_AGE: lambda: self._age(custody.backups.last),
                families.REQUESTS_IN_FLIGHT: lambda: shares.in_flight,
                families.REPLIES_WITHDRAWN: withdrawn,
                families.CONNECTIONS: lambda: shares.connections,
                families.CONNECTIONS_LIMIT: lambda: foundation.config.limits.connections,
                families.PAUSES: lambda: shares.pauses,
                families.OVER_AUDIT_BUDGET: accounts.count_exceeded,
                families.FILES: lambda: pool.busy,
                families.FILES_LIMIT: lambda: pool.size,
                **announcing.values,
            },
            store=store,
            gate=custody.gate,
            calendar=custody.calendar,
        )

    @property
    def handlers(self) -> dict[Operation[Any, Any], Callable[..., Any]]:
        """The handlers of what monitoring asks."""
        return bind(metrics.HANDLERS, self._metrics)

    def _age(self, backup: BackupRow | None) -> float | None:
        return None if backup is None else max(0.0, self._clock() - backup.creation_ms / 1000)
