"""Counting what happens, by what was to be done and what came of it, and how long it took.

Plain numbers, because every request passes through here: 0.15 us, where counter and histogram of prometheus_client
take 3.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from kmsd.metrics.families import (
    REQUEST_SECONDS,
    REQUESTS,
    TOKEN_JOB_SECONDS,
    TOKEN_JOBS,
    Distribution,
    Family,
    Reading,
)

# What came of something that succeeded, and of what nobody awaited to the end.
OK = "ok"
CANCELED = "canceled"
# The bounds of buckets in seconds. Of requests: from what Encrypt takes (20 us) to what somebody would call broken. Of
# uses of the token: each is a process of its own (0.1 s), and has 30 s by default.
REQUEST_BOUNDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
TOKEN_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Tally:
    """What was counted under one name."""

    __slots__ = ("bounds", "buckets", "outcomes", "seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.outcomes: defaultdict[str, int] = defaultdict(int)
        self.buckets = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def note(self, outcome: str, seconds: float) -> None:
        """Count something that took so long."""
        self.outcomes[outcome] += 1
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def count(self, outcome: str) -> None:
        """Count something without saying how long it took."""
        self.outcomes[outcome] += 1


class Measured(NamedTuple):
    """As what a meter's counts and times are told."""

    outcomes: Family
    seconds: Family
    bounds: tuple[float, ...]


OF_REQUESTS = Measured(REQUESTS, REQUEST_SECONDS, REQUEST_BOUNDS)
OF_TOKEN_JOBS = Measured(TOKEN_JOBS, TOKEN_JOB_SECONDS, TOKEN_BOUNDS)


class Meter:
    """Tallies by name. Who names one sees to it that there are few: they are kept."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self._tallies: dict[str, Tally] = {}

    def of(self, name: str) -> Tally:
        """Return the tally of a name."""
        return self._tallies.setdefault(name, Tally(self._measured.bounds))

    def readings(self) -> Iterator[Reading]:
        """Return what was counted so far; of what nothing was, there is no series."""
        for name, tally in self._tallies.items():
            for outcome, count in tally.outcomes.items():
                yield Reading(self._measured.outcomes, count, (name, outcome))
            if any(tally.buckets):
                times = Distribution(tally.bounds, tuple(tally.buckets), tally.seconds)
                yield Reading(self._measured.seconds, times, (name,))
