"""What is told to monitoring: counts and times that were taken, and how things stand (`kmsd/metrics`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import kmsd
from kmsd.api import metrics as api
from kmsd.api.calendar import ClockState
from kmsd.api.errors import KmsError
from kmsd.api.operation import KeyState, Operation
from kmsd.metrics.exposition import exposition
from kmsd.metrics.families import (
    BUILD,
    CLOCK_IN_DOUBT,
    HOUSEKEEPING_LAG,
    KEY_DELETION,
    KEYS_PENDING_DELETION,
    SEALED,
    SERVING,
    STORE_READABLE,
    Family,
    Reading,
)
from kmsd.metrics.meter import Meter
from kmsd.service.calendar import Calendar
from kmsd.service.call import Call
from kmsd.service.gate import Gate
from kmsd.service.key_dates import DAY_MS
from kmsd.store.base import StoreError
from kmsd.store.rows import KeyRow

# A monitored host gets no more series of keys than this, however many are pending deletion: the next ones matter.
_KEYS_SHOWN = 100
# Reading a row takes some 10 us, and somebody asks every 15 seconds.
_KEYS_READ = 1000
# No key waits longer to be destroyed (AWS KMS: 30 days), and a day more for clocks that were set.
_HORIZON_MS = 31 * DAY_MS
# Who watches has to be told that the store hangs, and not to hang with it; collectors wait for 10 s.
_STORE_SECONDS = 2.0


class DatedKeys(Protocol):
    """What of a `kmsd.store.base.Store` this needs."""

    async def keys_due(self, until_ms: int, *, limit: int) -> list[KeyRow]:
        """Return the first keys of which something is due at `until_ms`, by when it fell due."""


class Metrics:
    """Handler of GetMetrics.

    `values` gives what families without labels stand at, None for what has no value now; `meters` have counted.
    The store has `store_seconds` to answer.
    """

    def __init__(
        self,
        *,
        meters: Sequence[Meter],
        values: Mapping[Family, Callable[[], float | None]],
        store: DatedKeys,
        gate: Gate,
        calendar: Calendar,
        store_seconds: float = _STORE_SECONDS,
    ) -> None:
        self._meters = meters
        self._values = values
        self._store = store
        self._gate = gate
        self._calendar = calendar
        self._store_seconds = store_seconds

    async def get_metrics(self, call: Call, request: api.GetMetricsRequest) -> api.GetMetricsResponse:  # noqa: ARG002 - handlers share one form
        """Tell all readings; those of keys only while there are keys."""
        keys = [] if self._gate.closed else await self._read_keys()
        return api.GetMetricsResponse(text=exposition([*self._readings(), *keys]))

    def _readings(self) -> Iterator[Reading]:
        yield Reading(SERVING, 1)
        yield Reading(BUILD, 1, (kmsd.__version__,))
        yield Reading(SEALED, self._gate.closed)
        if self._calendar.begun:
            yield Reading(CLOCK_IN_DOUBT, self._calendar.look() is not ClockState.TRUSTED)
        for family, read in self._values.items():
            value = read()
            if value is not None:
                yield Reading(family, value)
        for meter in self._meters:
            yield from meter.readings()

    async def _read_keys(self) -> list[Reading]:
        now = self._calendar.latest_ms()
        try:
            async with asyncio.timeout(self._store_seconds):
                due = await self._store.keys_due(now + _HORIZON_MS, limit=_KEYS_READ)
        except (KmsError, StoreError, TimeoutError):
            # Sealed meanwhile, too; the rest is told in any case.
            return [Reading(STORE_READABLE, 0)]
        dying = sorted((row.deletion_ms, row.key_id) for row in due if row.key_state == KeyState.PENDING_DELETION)
        readings = [
            Reading(KEY_DELETION, max(0, deletion_ms - now) / 1000, (key_id,))
            for deletion_ms, key_id in dying[:_KEYS_SHOWN]
        ]
        if len(due) < _KEYS_READ:
            readings.append(Reading(KEYS_PENDING_DELETION, len(dying)))
        late_ms = self._calendar.certain_ms() - due[0].due_ms if due else 0
        return [Reading(STORE_READABLE, 1), Reading(HOUSEKEEPING_LAG, max(0, late_ms) / 1000), *readings]


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {api.GET_METRICS: Metrics.get_metrics}
