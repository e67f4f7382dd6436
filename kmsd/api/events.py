"""Operations on events: what happens to keys and to the service that somebody should know in time."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kmsd.api.operation import Cost, Operation
from kmsd.api.shapes import Request, Response


class Severity(enum.StrEnum):
    """How much an event matters, as syslog(3) names it."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"
    INFO = "info"


class Event(msgspec.Struct, frozen=True):
    """An event in EventBridge's envelope, as `kmsd/events/EVENTS.md` specifies it."""

    version: str
    id: str
    detail_type: str = msgspec.field(name="detail-type")
    source: str
    account: str
    time: str
    region: str
    resources: list[str]
    detail: dict[str, Any]

    @property
    def sequence(self) -> int:
        """The number of the record of the audit trail that it comes from, 0 while that cannot be written."""
        sequence = self.detail.get("sequence", 0)
        return sequence if isinstance(sequence, int) else 0

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return Severity(self.detail.get("severity", Severity.NOTICE))

    @property
    def message(self) -> str:
        """What happened, and what to do, in a person's words."""
        return str(self.detail.get("message", self.detail_type))


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Return an event as a line of JSON."""
    return _ENCODER.encode(event) + b"\n"


def decode_event(line: bytes) -> Event:
    """Return the event that a line holds; raises msgspec.DecodeError."""
    return _DECODER.decode(line)


class SubscribeEventsRequest(Request, frozen=True, kw_only=True):
    """Members of SubscribeEvents.

    Without `after_sequence` or `since` only what happens from now on comes; `after_sequence` overrides `since`. With
    `follow` the stream goes on with what happens later, else it ends behind the last event that there is.
    """

    after_sequence: Annotated[int, Meta(ge=0)] | None = None
    since: Annotated[dt.datetime, Meta(tz=True)] | None = None
    follow: bool = False


class SubscribeEventsResponse(Response, frozen=True, kw_only=True):
    """What SubscribeEvents answers; the events come over the descriptor, a line of JSON each.

    All events of the stream come from records behind number `after_sequence`: from there on a stream that breaks off
    is taken up again as long as it brought none. It is below the number that was asked for where the trail does not go
    that far: it is another one, or has lost its end. The last event that there is now comes from record
    `until_sequence`, which is `after_sequence` if there is none. Of events up to `dropped_until` some may be kept no
    longer.
    """

    after_sequence: int
    until_sequence: int
    dropped_until: int = 0


SUBSCRIBE_EVENTS = Operation(
    name="SubscribeEvents",
    summary="Get events over a descriptor, a line of JSON each, in the order in which they happened.",
    request=SubscribeEventsRequest,
    response=SubscribeEventsResponse,
    cost=Cost.STATUS,
    works_sealed=True,
    descriptors=1,
    audit_fields=("after_sequence", "since", "follow"),
)

OPERATIONS = (SUBSCRIBE_EVENTS,)
