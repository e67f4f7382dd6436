"""The time by which things fall due: what is sure to have passed, whatever the host's clock says.

Anybody who may set the clock of a host could otherwise have all keys destroyed that are pending deletion, and clocks
are set by accident: an empty battery, a wrong time server, a machine that wakes up in another year. What counts here is
how long the host has been up, which nobody can set; the clock only counts where it agrees with that.

1. `certain` goes on with CLOCK_BOOTTIME, which counts also while the host is suspended. It follows the clock for as
   much as that may run ahead, which is `slack`: an hour, of which 24 seconds come back each hour. So drift and the
   steps of time services never add up to doubt, and many small steps bring nothing forward that a large one would not.
2. For how long a host was off, nobody but its clock can tell. So after a reboot slack is 31 days, to be used at once or
   later, in one jump or in several: hosts without a battery begin with the time of their last stop, and learn the right
   one from the network. What is left of that when the host has been up for two days is taken back; and so it is when a
   deletion is scheduled, whose window no clock that is set afterwards may jump over.
3. Any other clock that is more than an hour off is in doubt: `AHEAD`, or `BEHIND`. Doubt is over when the clock agrees
   again, or when an administrator confirms it.
4. Things fall due by the earlier of clock and certain time, and dates are counted from the later of the two. So a clock
   that is wrong makes things late, and never early.
5. A clock from before this program was written was never set. The first one that is later is believed; until then no
   date is counted from it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple

from kmsd.api.calendar import ClockState
from kmsd.api.errors import UnsupportedOperationError
from kmsd.service.key_dates import DAY_MS

# More than any change of a running clock that is no mistake: time zones are none, and leap seconds are one.
TOLERANCE_MS = 3600 * 1000
# A host that was off for longer was put away, or is a backup of long ago: somebody can say that its clock is right.
MAX_OFF_MS = 31 * DAY_MS
# A host that has not found a time service by then has none.
LEARNS_WITHIN_MS = 2 * DAY_MS
# One of so many milliseconds of uptime comes back of what was used: ten minutes a day, more than the worst clock gains.
REFILL = 150
EARLIEST_MS = int(dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp()) * 1000
# Of a clock that was never set: by how much it runs ahead once it is says nothing. Some 285,000 years.
UNLIMITED_MS = 2**53


class Reckoning(NamedTuple):
    """What is kept of the time: a row's members of these names (`kmsd.store.rows.HousekeepingRow`)."""

    certain_ms: int
    boot_id: str
    uptime_ms: int
    slack_ms: int


class Calendar:
    """Tells the time; until it has begun nothing has passed.

    `clock` gives seconds since 1970 UTC, `uptime` seconds since the host was booted, and `boot_id` names that boot.
    """

    def __init__(self, *, clock: Callable[[], float], uptime: Callable[[], float], boot_id: str) -> None:
        self._clock = clock
        self._uptime = uptime
        self._boot_id = boot_id
        self._begun = False
        self._certain_ms = 0
        self._uptime_ms = 0
        self._slack_ms = 0
        # Up to which uptime what was used has come back.
        self._refilled_ms = 0

    @property
    def begun(self) -> bool:
        """Whether it knows what was kept."""
        return self._begun

    def begin(self, kept: Reckoning | None) -> None:
        """Go on from what was kept, None if nothing ever was."""
        if kept is None:
            self._uptime_ms = self._up_ms()
            self._certain_ms = max(self.clock_ms(), EARLIEST_MS)
            self._slack_ms = UNLIMITED_MS if self.clock_ms() < EARLIEST_MS else TOLERANCE_MS
        elif kept.boot_id == self._boot_id:
            self._certain_ms, self._slack_ms = kept.certain_ms, kept.slack_ms
            # A virtual machine that was set back to a snapshot has been up for less than before.
            self._uptime_ms = min(kept.uptime_ms, self._up_ms())
        else:
            # How much of this boot's uptime has passed since is not known either: a container has that of its host.
            self._certain_ms, self._uptime_ms = kept.certain_ms, self._up_ms()
            self._slack_ms = max(MAX_OFF_MS, kept.slack_ms)
        self._refilled_ms = self._uptime_ms
        self._begun = True
        self.look()

    def look(self) -> ClockState:
        """Go on to this moment, and tell whether the clock is believed."""
        if not self._begun:
            return ClockState.TRUSTED
        up_ms = self._up_ms()
        self._certain_ms += max(0, up_ms - self._uptime_ms)
        self._uptime_ms = max(up_ms, self._uptime_ms)
        self._refill()
        state = self._follow(self.clock_ms() - self._certain_ms)
        if self._uptime_ms > LEARNS_WITHIN_MS and self._slack_ms != UNLIMITED_MS:
            self._slack_ms = min(self._slack_ms, TOLERANCE_MS)
        return state

    def _refill(self) -> None:
        came_back = (self._uptime_ms - self._refilled_ms) // REFILL
        self._refilled_ms += came_back * REFILL
        if self._slack_ms < TOLERANCE_MS:
            self._slack_ms = min(self._slack_ms + came_back, TOLERANCE_MS)

    def _follow(self, ahead_ms: int) -> ClockState:
        """Let the certain time follow the clock, which is ahead of it by this, as far as that may be."""
        if ahead_ms > 0 and self._slack_ms == UNLIMITED_MS:
            self._certain_ms += ahead_ms
            self._slack_ms = TOLERANCE_MS
        elif ahead_ms > max(self._slack_ms, TOLERANCE_MS):
            return ClockState.AHEAD
        elif ahead_ms > 0:
            followed_ms = min(ahead_ms, self._slack_ms)
            self._certain_ms += followed_ms
            self._slack_ms -= followed_ms
        return ClockState.BEHIND if ahead_ms < -TOLERANCE_MS else ClockState.TRUSTED

    def certain_ms(self) -> int:
        """Return the time that is sure to have passed: what is due by it is due."""
        self.look()
        return min(self._certain_ms, self.clock_ms())

    def reckoned_ms(self) -> int:
        """Return the certain time also where the clock is behind it: what happens now does not happen before it."""
        self.look()
        return self._certain_ms

    def latest_ms(self) -> int:
        """Return the time from which dates in the future are counted.

        Raises UnsupportedOperationError while the clock was never set: what is counted from it would be due when it is.
        """
        self.look()
        if self._slack_ms == UNLIMITED_MS:
            raise UnsupportedOperationError(
                f"the host's clock says {moment(self.clock_ms()):%Y-%m-%d} and was never set, so that no date can be "
                "counted from it: set it, and ask again"
            )
        return max(self._certain_ms, self.clock_ms())

    def promised_ms(self) -> int:
        """Return the latest time, and let no clock jump over what is counted from it."""
        latest_ms = self.latest_ms()
        self._slack_ms = min(self._slack_ms, TOLERANCE_MS)
        return latest_ms

    def clock_ms(self) -> int:
        """Return what the host's clock says."""
        return int(self._clock() * 1000)

    def reckoning(self) -> Reckoning:
        """Return what is to be kept."""
        self.look()
        return Reckoning(self._certain_ms, self._boot_id, self._uptime_ms, self._slack_ms)

    def confirmed(self) -> Reckoning:
        """Return what is to be kept, and begun with, when the clock's time is taken for certain."""
        return Reckoning(self.clock_ms(), self._boot_id, self._up_ms(), TOLERANCE_MS)

    def _up_ms(self) -> int:
        return int(self._uptime() * 1000)


def moment(ms: int) -> dt.datetime:
    """Return milliseconds since 1970 UTC as a date."""
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
