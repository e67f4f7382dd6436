"""SubscribeEvents: the event log over a socket, as fast as who reads it takes it.

A subscriber is sent what the log's files hold, and nothing waits for him anywhere else: one who is slow is behind, one
who hangs up is noticed, whether he is being sent something or not. When kmsd stops, the event of that is the last one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from kmsd.api import events as api
from kmsd.api.errors import LimitExceededError, ThrottlingError
from kmsd.api.events import Event, encode_event
from kmsd.api.operation import Operation
from kmsd.audit.chain import format_time
from kmsd.audit.writer import Trail
from kmsd.events.log import EventLog, LogSpoiledError, Reader
from kmsd.events.projection import event_time
from kmsd.logs import Logger
from kmsd.service.call import Call
from kmsd.service.event_feed import EventFeed
from kmsd.service.table import WithDescriptors

# A mailer, a collector, and a few people at their shells.
MOST_PER_UID = 8
MOST = 32
# Clients wait for 30 s. A log that was lost takes longer where the trail has millions of records.
LOG_SECONDS = 10.0


class _Subscriber(NamedTuple):
    """Whom he is counted with, and the end of the pair from which he is sent."""

    place: int
    channel: socket.socket


class Events:
    """Handler of SubscribeEvents."""

    def __init__(self, *, trail: Trail, feed: EventFeed, logger: Logger) -> None:
        self._trail = trail
        self._feed = feed
        self._logger = logger
        self._subscribers: dict[asyncio.Task[None], _Subscriber] = {}
        self._stopping = False

    @property
    def subscribers(self) -> int:
        """How many are being sent events."""
        return len(self._subscribers)

    async def subscribe(self, call: Call, request: api.SubscribeEventsRequest) -> WithDescriptors:
        """Begin to send, and give the client the end over which the events come."""
        try:
            async with asyncio.timeout(LOG_SECONDS):
                # Who follows is sent later what the log has not got yet.
                log = await (self._feed.opened() if request.follow else self._feed.caught_up())
        except TimeoutError:
            raise ThrottlingError(
                "the events are still being read from the audit trail: ask again in a while, or follow them"
            ) from None
        self._check_limits(call.session.place)
        try:
            after = self._beginning(request, log)
            reader = log.reader(after)
        except LogSpoiledError as error:
            self._feed.distrust(log)
            raise ThrottlingError(f"{error.strerror}, and is made anew: ask again in a while") from None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        task = asyncio.ensure_future(self._send(ours, log, reader, follow=request.follow))
        self._subscribers[task] = _Subscriber(call.session.place, ours)
        task.add_done_callback(self._ended)
        # A subscriber says nothing: what can be read is that he hung up.
        asyncio.get_running_loop().add_reader(ours, self._hung_up, ours, task)
        response = api.SubscribeEventsResponse(
            after_sequence=after, until_sequence=max(after, log.last), dropped_until=log.dropped_until
        )
        return WithDescriptors(response, [theirs.detach()])

    async def close(self, grace_seconds: float) -> None:
        """Send everybody what is left within the grace, and end."""
        self._stopping = True
        self._feed.tell(None)
        if self._subscribers:
            await asyncio.wait(self._subscribers, timeout=grace_seconds)
        for task in self._subscribers:
            task.cancel()
        if self._subscribers:
            await asyncio.wait(self._subscribers)

    def _check_limits(self, place: int) -> None:
        if len(self._subscribers) >= MOST:
            raise LimitExceededError(f"{MOST} subscriptions to events are under way already")
        if sum(one.place == place for one in self._subscribers.values()) >= MOST_PER_UID:
            raise LimitExceededError(f"{MOST_PER_UID} subscriptions to events by this uid are under way already")

    def _beginning(self, request: api.SubscribeEventsRequest, log: EventLog) -> int:
        """Return the number of a record: what comes from records behind it is sent."""
        head, _ = self._trail.head
        if request.after_sequence is not None:
            return min(request.after_sequence, head)
        if request.since is not None:
            return log.last_before(event_time(format_time(request.since.timestamp())))
        return head

    async def _send(self, channel: socket.socket, log: EventLog, reader: Reader, *, follow: bool) -> None:
        loop = asyncio.get_running_loop()
        told: Event | None = None
        try:
            while True:
                changed = self._feed.changed
                urgent = self._feed.urgent
                if data := reader.read():
                    await loop.sock_sendall(channel, data)
                elif urgent is not None and urgent is not told:
                    told = urgent
                    await loop.sock_sendall(channel, encode_event(urgent))
                elif self._stopping or not follow:
                    return
                else:
                    await changed.wait()
        except LogSpoiledError:
            self._feed.distrust(log)
        except OSError:
            pass  # he hung up while he was being sent something, or a file cannot be read

    def _hung_up(self, channel: socket.socket, task: asyncio.Task[None]) -> None:
        asyncio.get_running_loop().remove_reader(channel)
        task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        channel = self._subscribers.pop(task).channel
        asyncio.get_running_loop().remove_reader(channel)
        channel.close()
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("subscription_failed", fault)


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.SUBSCRIBE_EVENTS: Events.subscribe,
}
