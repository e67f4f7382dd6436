"""Uses of keys that are to be destroyed: refused each time, and on record of their own so that somebody is told.

The refusals themselves are records of requests: above an audit budget they are only counted, and retention drops them.
Of each key there is one of these records an hour at most, however many want to use it.
"""

from __future__ import annotations

from collections.abc import Callable

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.record import Kind, Record
from kmsd.audit.writer import Trail
from kmsd.service.call import Call

KEY_USED_WHILE_PENDING_DELETION = "KeyUsedWhilePendingDeletion"
EVERY_SECONDS = 3600.0
# Keys that are remembered, in a megabyte. Of further ones nothing is told before an hour is over: nobody reads more.
MOST_KEYS = 4096


class _Used:
    """When a use of a key was told, and how many there were since."""

    __slots__ = ("count", "told_at")

    def __init__(self, told_at: float) -> None:
        self.told_at = told_at
        self.count = 0


class PendingUses:
    """Puts them into `trail`; `clock` gives monotonic seconds."""

    def __init__(self, trail: Trail, clock: Callable[[], float]) -> None:
        self._trail = trail
        self._clock = clock
        # In the order of `told_at`.
        self._used: dict[str, _Used] = {}
        # All of them, also those that are not on record.
        self.count = 0

    def note(self, arn: str, call: Call) -> None:
        """Take note of a call that was refused because the key with this ARN is pending deletion."""
        self.count += 1
        now = self._clock()
        used = self._used.get(arn)
        if used is not None and now - used.told_at < EVERY_SECONDS:
            used.count += 1
            return
        if used is None and not self._has_room(now):
            return
        count = 1 if used is None else used.count + 1
        record = Record(
            kind=Kind.SYSTEM,
            event_name=KEY_USED_WHILE_PENDING_DELETION,
            actor=call.session.actor,
            request_id=call.request_id,
            read_only=False,
            resources=(arn,),
            details={"operation": call.operation.name, "count": count},
        )
        try:
            self._trail.append([record])
        except AuditUnavailableError:
            return  # the refusal's own record fails for the same reason, and the next use tries again
        self._used.pop(arn, None)
        self._used[arn] = _Used(now)

    def _has_room(self, now: float) -> bool:
        if len(self._used) >= MOST_KEYS:
            oldest = next(iter(self._used))
            if now - self._used[oldest].told_at < EVERY_SECONDS:
                return False
            del self._used[oldest]
        return True
