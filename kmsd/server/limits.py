"""What one uid may use of the daemon at once and over time."""

from __future__ import annotations

from collections.abc import Callable

from kmsd.api.errors import LimitExceededError
from kmsd.config import Limits
from kmsd.service.call import UNKNOWN_UIDS
from kmsd.service.token_bucket import TokenBucket


class Share:
    """What connections of one uid have in common."""

    __slots__ = ("bucket", "connections", "in_flight", "limits", "pauses")

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        rate = limits.requests_per_second_per_uid
        self.bucket = TokenBucket(rate, rate, clock)
        self.connections = 0
        self.in_flight = 0
        # How often one of them was not read from because the uid was above its rate.
        self.pauses = 0


class Shares:
    """The shares of all uids that have connections; `clock` gives monotonic seconds."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._shares: dict[int, Share] = {}
        self._connections = 0

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._connections

    @property
    def in_flight(self) -> int:
        """How many requests await something."""
        return sum(share.in_flight for share in self._shares.values())

    @property
    def pauses(self) -> int:
        """How often peers above their rate were made to wait."""
        return sum(share.pauses for share in self._shares.values())

    def join(self, uid: int, *, known: bool) -> Share:
        """Count a new connection of `uid`, `known` to passwd or not; raises LimitExceededError."""
        place = uid if known else UNKNOWN_UIDS
        share = self._shares.get(place)
        if share is None:
            share = Share(self._limits, self._clock)
        if self._connections >= self._limits.connections:
            raise LimitExceededError(f"kmsd has {self._connections} connections, which is its limit")
        if share.connections >= self._limits.connections_per_uid:
            raise LimitExceededError(f"uid {uid} has {share.connections} connections, which is its limit")
        self._shares[place] = share
        share.connections += 1
        self._connections += 1
        return share

    def leave(self, share: Share) -> None:
        """Count a closed connection.

        A share is kept while its uid has none: reconnecting must not refill its bucket.
        """
        share.connections -= 1
        self._connections -= 1
