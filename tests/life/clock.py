"""What a host's clocks tell, and what of it can be believed: the model of time, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

HOUR = 3600 * 1000
DAY = 24 * HOUR
# For so long a host may have been off without anybody having to say so, and so long its clock has to show that.
MOST_OFF, MOST_LEARNING = 31 * DAY, 2 * DAY
# Of an hour so much comes back each hour.
COMES_BACK = 24 * 1000


class Times(NamedTuple):
    """What the clocks tell: the time since 1970 UTC, the time since the host was booted, and which boot that was."""

    wall: int
    uptime: int
    boot: str


@dataclass
class Clock:
    """How long the host is up is certain; its wall clock counts where it agrees with that.

    It may run ahead by an hour, of which a little comes back each hour, and after the host was off by 31 days in all,
    for how long that was nobody else knows; until that was learnt, or a deletion is scheduled. Until an administrator
    confirms it, any other clock makes nothing fall due.
    """

    times: Times
    certain: int
    allowance: int = HOUR

    def look(self, times: Times) -> None:
        """Go on to these times."""
        before, self.times = self.times, times
        if times.boot != before.boot:
            self.allowance = MOST_OFF
        passed = times.uptime - before.uptime if times.boot == before.boot else 0
        self.certain += passed
        if self.allowance < HOUR:
            self.allowance = min(HOUR, self.allowance + passed * COMES_BACK // HOUR)
        lead = times.wall - self.certain
        if 0 < lead <= max(HOUR, self.allowance):
            followed = min(lead, self.allowance)
            self.certain += followed
            self.allowance -= followed
        if times.uptime > MOST_LEARNING:
            self.promise()

    def promise(self) -> None:
        """Let no clock jump over what is scheduled now."""
        self.allowance = min(HOUR, self.allowance)

    def confirm(self) -> None:
        """Take the wall clock's time for certain."""
        self.certain, self.allowance = self.times.wall, HOUR

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
