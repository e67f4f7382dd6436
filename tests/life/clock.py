"""What a host's clocks tell, and what of it can be believed: the model of time, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

HOUR = 3600 * 1000
DAY = 24 * HOUR
# For so long a host may have been off without anybody having to say so.
MOST_OFF = 31 * DAY


class Times(NamedTuple):
    """What the clocks tell: the time since 1970 UTC, the time since the host was booted, and which boot that was."""

    wall: int
    uptime: int
    boot: str


@dataclass
class Clock:
    """How long the host is up is certain; its wall clock counts where it agrees with that.

    It may run ahead by an hour at a time, and after the host was off by 31 days in all, for how long that was nobody
    else knows. Until an administrator confirms it, any other clock makes nothing fall due.
    """

    times: Times
    certain: int
    allowance: int = 0

    def look(self, times: Times) -> None:
        """Go on to these times."""
        before, self.times = self.times, times
        if times.boot != before.boot:
            self.allowance = MOST_OFF
        self.certain += times.uptime - before.uptime if times.boot == before.boot else 0
        lead = times.wall - self.certain
        if HOUR < lead <= self.allowance:
            self.allowance -= lead
        elif lead > HOUR:
            return
        self.certain = max(self.certain, times.wall)

    def confirm(self) -> None:
        """Take the wall clock's time for certain."""
        self.certain, self.allowance = self.times.wall, 0

    @property
    def state(self) -> str:
        """Whether the wall clock is believed."""
        lead = self.times.wall - self.certain
        return "ahead" if lead > HOUR else "behind" if lead < -HOUR else "trusted"

    @property
    def due(self) -> int:
        """What is due by then is due."""
        return min(self.certain, self.times.wall)

    @property
    def latest(self) -> int:
        """From when on dates are counted."""
        return max(self.certain, self.times.wall)
