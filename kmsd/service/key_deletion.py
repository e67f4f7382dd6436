"""Scheduling the deletion of keys, and taking that back; who destroys them at the date is `destruction`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.api import deletion as api
from kmsd.api.errors import ValidationError
from kmsd.api.operation import KeyState, Operation
from kmsd.material.versions import Versions
from kmsd.service.calendar import moment
from kmsd.service.call import Call
from kmsd.service.key_changes import KeyChanges
from kmsd.service.key_dates import DAY_MS
from kmsd.service.records import KeyRecord
from kmsd.service.timekeeping import Timekeeping


class KeyDeletion:
    """Handlers of deletion."""

    def __init__(self, *, changes: KeyChanges, versions: Versions, timekeeping: Timekeeping) -> None:
        self._changes = changes
        self._versions = versions
        self._timekeeping = timekeeping

    async def schedule(
        self, call: Call, request: api.ScheduleKeyDeletionRequest, key: KeyRecord
    ) -> api.ScheduleKeyDeletionResponse:
        """Let nobody use the key any more, at once, and have it destroyed when the window is over."""
        days = request.pending_window_in_days
        if not api.SHORTEST_WINDOW_DAYS <= days <= api.LONGEST_WINDOW_DAYS:
            raise ValidationError(
                f"PendingWindowInDays is {days}: it may be {api.SHORTEST_WINDOW_DAYS} to {api.LONGEST_WINDOW_DAYS}"
            )
        async with self._timekeeping.promise() as (now_ms, also):
            deletion_ms = now_ms + days * DAY_MS
            try:
                await self._changes.make(
                    call,
                    key,
                    *also,
                    key_state=KeyState.PENDING_DELETION,
                    deletion_ms=deletion_ms,
                    pending_window_days=days,
                    deletion_warned=False,
                )
            finally:
                # Also when it failed, as it may have happened: a key that may still be used is unwrapped again.
                self._versions.forget(key.key_id)
        return api.ScheduleKeyDeletionResponse(
            key_id=key.arn,
            deletion_date=moment(deletion_ms),
            key_state=KeyState.PENDING_DELETION,
            pending_window_in_days=days,
        )

    async def cancel(
        self,
        call: Call,
        request: api.CancelKeyDeletionRequest,  # noqa: ARG002 - handlers share one form
        key: KeyRecord,
    ) -> api.CancelKeyDeletionResponse:
        """Keep the key; it is disabled, so that whoever needs it has to say so."""
        await self._changes.make(
            call, key, key_state=KeyState.DISABLED, deletion_ms=0, pending_window_days=0, deletion_warned=False
        )
        return api.CancelKeyDeletionResponse(key_id=key.arn)


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.SCHEDULE_KEY_DELETION: KeyDeletion.schedule,
    api.CANCEL_KEY_DELETION: KeyDeletion.cancel,
}
