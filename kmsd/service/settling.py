"""What an earlier run left open in the trail, settled as the store knows it."""

from __future__ import annotations

from kmsd.api import BY_NAME
from kmsd.api.errors import KMSInternalError
from kmsd.audit.record import Intent, Kind, Record
from kmsd.audit.writer import Trail
from kmsd.store.base import Store


class Settling:
    """Writes the missing counterpart of each intent and begin record that was open when the trail was opened, once."""

    def __init__(self, store: Store, trail: Trail) -> None:
        self._store = store
        self._trail = trail
        self._settled = False

    async def settle(self) -> None:
        """Do so, unless it was done; needs the store's keys."""
        intents = () if self._settled else self._trail.open_intents()
        committed = await self._store.committed([intent.request_id for intent in intents])
        self._trail.append([_counterpart(intent, happened=intent.request_id in committed) for intent in intents])
        self._settled = True


def _counterpart(intent: Intent, *, happened: bool) -> Record:
    error = None if happened else KMSInternalError("the daemon stopped before this was done")
    return Record(
        kind=Kind.OUTCOME if intent.kind is Kind.INTENT else Kind.END,
        event_name=intent.event_name,
        actor=intent.actor,
        request_id=intent.request_id,
        read_only=intent.event_name in BY_NAME and BY_NAME[intent.event_name].read_only,
        resources=intent.resources,
        error_code=error.code if error else None,
        error_message=error.message if error else None,
        details={"settledAtStart": True},
    )
