"""What one uid may have written into the audit trail, and what is told of it beyond that (pure).

A disk that one uid can fill with records stops everybody's requests, because nothing is answered without its record. So
each uid has a budget of bytes. What a uid above it may do is refused before it is done, and its refusals are counted
instead of recorded; the count becomes one record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from kmsd.api.errors import ThrottlingError
from kmsd.audit.chain import format_time
from kmsd.audit.record import Actor, Kind, Record
from kmsd.service.token_bucket import TokenBucket

SUMMARY = "SummarizeRefusals"

# A uid that was above its budget comes back with a second's worth of it, so that it does not go above it again with its
# next record, and each time there is a summary.
_RESUME_SECONDS = 1.0
# The bucket is charged for some 25 records at a time: looking at the clock for each costs 0.3 us of about 15. With a
# small burst it is charged more often.
_MOST_UNCHARGED_BYTES = 16 * 1024
_UNCHARGED_PART = 16
# Refusals that are explained to who asks later: with a hostile policy one takes 2 ms, so that a uid whose every request
# is refused takes a sixteenth of the daemon's time by them.
_EXPLAINED_PER_SECOND = 32
_EXPLAINED_AT_ONCE = 256
# Names of operations may be the peer's own text, and some are in any number of uids: so many are told apart.
_NAMES = 32


class AuditBudget:
    """The budget of one uid, or of all whom passwd does not know; `uid` is None then.

    `clock` gives monotonic seconds, `wall_clock` seconds since 1970.
    """

    __slots__ = (
        "_bucket",
        "_clock",
        "_explanations",
        "_most_uncharged",
        "_resume_at",
        "_tally",
        "_uid",
        "_uncharged",
        "_wall_clock",
        "exceeded",
    )

    def __init__(
        self,
        uid: int | None,
        *,
        bytes_per_second: float,
        burst_bytes: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._uid = uid
        self._clock = clock
        self._wall_clock = wall_clock
        self._resume_at = 0.0
        self._tally: _Tally | None = None
        self._bucket = TokenBucket(bytes_per_second, burst_bytes, clock)
        self._explanations = TokenBucket(_EXPLAINED_PER_SECOND, _EXPLAINED_AT_ONCE, clock)
        self._uncharged = 0
        self._most_uncharged = min(_MOST_UNCHARGED_BYTES, burst_bytes // _UNCHARGED_PART)
        # Whether it is used up; read on the path of every request.
        self.exceeded = False

    def charge(self, size: int) -> None:
        """Account for so many bytes of records that were written."""
        self._uncharged += size
        if self._uncharged >= self._most_uncharged:
            self._charge_bucket()

    def _charge_bucket(self) -> None:
        wait = self._bucket.charge(self._uncharged)
        self._uncharged = 0
        if wait > 0:
            self.exceeded = True
            self._resume_at = self._clock() + wait + _RESUME_SECONDS

    def pays_explanation(self) -> bool:
        """Tell whether one more refusal is explained, and account for it."""
        if self.exceeded or self._explanations.charge(0) > 0:
            return False
        self._explanations.charge(1)
        return True

    def is_refusing(self) -> bool:
        """Return whether a request that came now would be refused."""
        return self.exceeded and self._clock() < self._resume_at

    def resume(self) -> bool:
        """Return whether there is budget again, after it was exceeded."""
        if self._clock() < self._resume_at:
            return False
        self.exceeded = False
        return True

    def refusal(self) -> ThrottlingError:
        """Return what a request that would be served is refused with."""
        whose = "of all uids that passwd does not know" if self._uid is None else f"of uid {self._uid}"
        seconds = max(1, round(self._resume_at - self._clock()))
        return ThrottlingError(
            f"the audit budget {whose} is used up (limits.audit_bytes_per_second_per_uid and "
            f"audit_burst_bytes_per_uid): ask again in {seconds} s"
        )

    def count(self, actor: Actor, operation: str, code: str) -> None:
        """Count a refusal that is not recorded."""
        if self._tally is None:
            self._tally = _Tally(actor, self._wall_clock())
        self._tally.add(actor, operation, code, self._wall_clock())

    def summary(self) -> Record | None:
        """Return the record of what was counted since `forget`, or None."""
        return None if self._tally is None else self._tally.record()

    def forget(self) -> None:
        """Begin to count anew: the summary was written."""
        self._tally = None


class _Tally:
    """Refusals of one budget that have no line of their own."""

    def __init__(self, actor: Actor, now: float) -> None:
        self._actor = actor
        self._since = self._until = now
        self._count = 0
        self._codes: Counter[str] = Counter()
        self._operations: Counter[str] = Counter()
        self._uids: Counter[str] = Counter()

    def add(self, actor: Actor, operation: str, code: str, now: float) -> None:
        self._count += 1
        self._until = now
        self._codes[code] += 1
        _count_bounded(self._operations, operation)
        _count_bounded(self._uids, str(actor.uid))

    def record(self) -> Record:
        details: dict[str, Any] = {
            "count": self._count,
            "errorCodes": dict(self._codes),
            "operations": dict(self._operations),
            "from": format_time(self._since),
            "to": format_time(self._until),
        }
        if len(self._uids) > 1:
            details["uids"] = dict(self._uids)
        return Record(Kind.SYSTEM, SUMMARY, self._actor, request_id="", read_only=False, details=details)


def _count_bounded(counter: Counter[str], name: str) -> None:
    """Count under `name`, unless there are many names already; their sum is then less than the count."""
    if name in counter or len(counter) < _NAMES:
        counter[name] += 1
