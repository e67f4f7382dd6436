"""Everything by which somebody knows in time: the events of the audit trail, and who is told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.api.operation import Operation
from kmsd.audit.writer import Trail
from kmsd.events.log import NAME
from kmsd.events.projection import Projection
from kmsd.metrics import families
from kmsd.metrics.families import Family
from kmsd.server.foundation import Foundation
from kmsd.service import events
from kmsd.service.audit_trouble import AuditTrouble
from kmsd.service.event_feed import EventFeed
from kmsd.service.pending_uses import PendingUses
from kmsd.service.table import bind
from kmsd.store.rows import SettingsRow

# Who is to be told that kmsd stops takes some hundred bytes.
_STOP_SECONDS = 1.0


class Announcing:
    """The event log beside the trail, from `start` to `close`; `pending_uses` is told of what must not go unnoticed."""

    def __init__(self, foundation: Foundation, trail: Trail, settings: SettingsRow) -> None:
        logger = foundation.logger
        self.pending_uses = PendingUses(trail, foundation.uptime)
        projection = Projection(settings.account, settings.region)
        path = foundation.audit_path.with_name(NAME)
        self._feed = EventFeed(trail=trail, path=path, projection=projection, logger=logger, sleep=foundation.sleep)
        self._trouble = AuditTrouble(
            trail=trail,
            tell=lambda reason, since: self._feed.tell(projection.trouble(reason, since)),
            is_over=lambda: self._feed.tell(None),
            logger=logger,
            clock=foundation.clock,
            sleep=foundation.sleep,
        )
        self._events = events.Events(trail=trail, feed=self._feed, logger=logger)

    @property
    def handlers(self) -> dict[Operation[Any, Any], Callable[..., Any]]:
        """The handlers of what is asked about events."""
        return bind(events.HANDLERS, self._events)

    @property
    def values(self) -> dict[Family, Callable[[], float | None]]:
        """What monitoring is told of it."""
        return {
            families.PENDING_USES: lambda: self.pending_uses.count,
            families.EVENTS: lambda: self._feed.written,
            families.EVENTS_CURRENT: lambda: self._feed.is_current,
            families.EVENT_SUBSCRIBERS: lambda: self._events.subscribers,
        }

    def start(self) -> None:
        """Begin to tell."""
        self._feed.start()
        self._trouble.start()

    async def close(self) -> None:
        """Tell what is on record, and then nobody anything any more."""
        await self._trouble.close()
        await self._feed.close(_STOP_SECONDS)
        await self._events.close(_STOP_SECONDS)
