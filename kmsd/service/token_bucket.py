"""What is spent over time, and comes back at a rate."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """`rate` charges a second, and `burst` at once after a quiet time."""

    __slots__ = ("_burst", "_clock", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._clock = clock
        self._updated = clock()

    def charge(self, amount: float) -> float:
        """Take `amount`, and return for how many seconds the payer has to wait before its next request (0.0: none)."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate) - amount
        self._updated = now
        return -self._tokens / self._rate if self._tokens < 0 else 0.0
