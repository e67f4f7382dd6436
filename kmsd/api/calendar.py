"""Operations on the time by which things fall due."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, Operation
from kmsd.api.shapes import Request, Response


class ClockState(enum.StrEnum):
    """Whether the host's clock is believed."""

    TRUSTED = "trusted"
    AHEAD = "ahead"  # of the time that is sure to have passed
    BEHIND = "behind"  # it was later before


class GetClockRequest(Request, frozen=True, kw_only=True):
    """GetClock has no members."""


class GetClockResponse(Response, frozen=True, kw_only=True):
    """What GetClock answers.

    `certain` is the time that is sure to have passed, and by which things fall due. `waiting` is how many keys have
    something that would be due by the clock and is not by the certain time, 1,000 at most.
    """

    state: ClockState
    clock: dt.datetime
    certain: dt.datetime
    waiting: int = 0


class ConfirmClockRequest(Request, frozen=True, kw_only=True):
    """Members of ConfirmClock: the time that the administrator saw, which has to be the clock's within a minute."""

    clock: Annotated[dt.datetime, Meta(tz=True)]


class ConfirmClockResponse(Response, frozen=True, kw_only=True):
    """What ConfirmClock answers: the certain time before and after."""

    before: dt.datetime
    after: dt.datetime


GET_CLOCK = Operation(
    name="GetClock",
    summary="Tell whether the host's clock is believed, and what waits for that.",
    request=GetClockRequest,
    response=GetClockResponse,
    cost=Cost.STORE,
    audit_fields=(),
)
CONFIRM_CLOCK = Operation(
    name="ConfirmClock",
    summary="Confirm that the host's clock is right, so that what is due by it happens.",
    request=ConfirmClockRequest,
    response=ConfirmClockResponse,
    cost=Cost.STORE,
    read_only=False,
    audit_fields=("clock",),
    audit_response=("before", "after"),
)

OPERATIONS = (GET_CLOCK, CONFIRM_CLOCK)
