"""Events: the client's side of what follows the operation SubscribeEvents.

    with subscribe(client, SubscribeEventsRequest(after_sequence=0)) as subscription:
        for line, event in subscription.events():
            ...

Who wants each event once keeps the number of the last one that he has dealt with, and asks for what comes behind it;
before there is one, that is the number in the answer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from kmsd.api.errors import ConnectionLostError
from kmsd.api.events import SUBSCRIBE_EVENTS, Event, SubscribeEventsRequest, SubscribeEventsResponse, decode_event
from kmsd_client.files import Caller

_READ_BYTES = 64 * 1024
# A line of the trail has 256 KiB at most, and an event says less than its record.
_MOST_LINE_BYTES = 1024 * 1024


class Subscription:
    """A stream of events, and what the daemon answered before it."""

    def __init__(self, response: SubscribeEventsResponse, channel: socket.socket, *, follows: bool) -> None:
        self.response = response
        self._channel = channel
        self._follows = follows

    def events(self) -> Iterator[tuple[bytes, Event]]:
        """Yield each event with its line, which has no line feed; those without a number are on no record.

        Returns at the end of the stream, if it follows when the daemon stops. Raises ConnectionLostError when the
        daemon is gone before it has sent everything.
        """
        rest, last = b"", self.response.after_sequence
        while data := self._receive():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                event = _event_in(line)
                last = max(last, event.sequence)
                yield line, event
            if len(rest) > _MOST_LINE_BYTES:
                raise ConnectionLostError("the daemon sends what is no event")
        if not self._follows and last < self.response.until_sequence:
            raise ConnectionLostError("the daemon went away before it had sent all events")

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(_READ_BYTES)
        except ConnectionResetError:
            return b""


@contextmanager
def subscribe(client: Caller, request: SubscribeEventsRequest) -> Iterator[Subscription]:
    """Subscribe until the end of the context. Raises the KmsError that the operation ended with."""
    response, descriptors = client.call_with_descriptors(SUBSCRIBE_EVENTS, request)
    if len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ConnectionLostError(f"the daemon sent {len(descriptors)} descriptors instead of one")
    with socket.socket(fileno=descriptors[0]) as channel:
        yield Subscription(response, channel, follows=request.follow)


def _event_in(line: bytes) -> Event:
    try:
        return decode_event(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConnectionLostError("the daemon sends what is no event") from None
