"""Operations on events: what happens to keys and to the service that somebody should know in time."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, Operation
from kmsd.api.shapes import Request, Response


class SubscribeEventsRequest(Request, frozen=True, kw_only=True):
    """Members of SubscribeEvents.

    Without `after_sequence` or `since` only what happens from now on comes; `after_sequence` overrides `since`. With
    `follow` the stream goes on with what happens later, else it ends behind the last event that there is.
    """

    after_sequence: Annotated[int, Meta(ge=0)] | None = None
    since: Annotated[dt.datetime, Meta(tz=True)] | None = None
    follow: bool = False


class SubscribeEventsResponse(Response, frozen=True, kw_only=True):
    """What SubscribeEvents answers; the events come over the descriptor, a line of JSON each."""

    subscribed: bool = True


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
