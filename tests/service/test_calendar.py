"""The time by which things fall due: a clock that is wrong makes nothing early, and one that is right nothing late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.calendar import ClockState
from kmsd.api.errors import UnsupportedOperationError
from kmsd.service.calendar import EARLIEST_MS, MAX_OFF_MS, REFILL, TOLERANCE_MS, UNLIMITED_MS, Calendar, Reckoning
from tests.support.host_time import BOOT_SECONDS, HostTime

HOUR = 3600.0
DAY = 24 * HOUR
YEAR = 365 * DAY
# 2027, so that a clock may be set back by a year and still be one that was set.
NOW = EARLIEST_MS / 1000 + YEAR
WINDOW_MS = 7 * 86_400_000


def calendar_of(host: HostTime, kept: Reckoning | None = None) -> Calendar:
    """The calendar of a daemon that starts now."""
    calendar = Calendar(clock=lambda: host.wall, uptime=lambda: host.uptime, boot_id=host.boot_id)
    calendar.begin(kept)
    return calendar


def restarted(host: HostTime, calendar: Calendar) -> Calendar:
    return calendar_of(host, calendar.reckoning())


def booted(host: HostTime, calendar: Calendar, off_seconds: float) -> Calendar:
    kept = calendar.reckoning()
    host.boot(off_seconds)
    return calendar_of(host, kept)


def test_before_it_has_begun_nothing_has_passed() -> None:
    """Nothing is due then, and dates are counted from what the clock says."""
    host = HostTime(NOW)
    calendar = Calendar(clock=lambda: host.wall, uptime=lambda: host.uptime, boot_id=host.boot_id)

    assert not calendar.begun
    assert (calendar.certain_ms(), calendar.latest_ms()) == (0, int(NOW * 1000))


def test_the_first_clock_is_believed() -> None:
    """There is nothing to compare it with."""
    calendar = calendar_of(HostTime(NOW))

    assert calendar.look() is ClockState.TRUSTED
    assert calendar.certain_ms() == calendar.latest_ms() == int(NOW * 1000)


def test_a_clock_that_was_never_set_is_believed_once_it_is() -> None:
    """Until then nothing is due, and no date is counted; what it is set to first counts, also after a reboot."""
    host = HostTime(0.0)
    calendar = booted(host, restarted(host, calendar_of(host)), 0.0)
    assert calendar.look() is ClockState.BEHIND
    assert calendar.certain_ms() == int(host.wall * 1000)
    with pytest.raises(UnsupportedOperationError, match="says 1970-01-01 and was never set"):
        calendar.latest_ms()

    host.step(NOW)

    assert calendar.look() is ClockState.TRUSTED
    assert calendar.certain_ms() == calendar.latest_ms() == int(host.wall * 1000)
    host.step(YEAR)
    assert calendar.look() is ClockState.AHEAD


def test_a_clock_that_was_set_by_little_is_believed_only_once_as_well() -> None:
    """From the first time on that can be right."""
    host = HostTime(0.0)
    calendar = calendar_of(host)
    host.step(EARLIEST_MS / 1000 + 60)
    assert calendar.look() is ClockState.TRUSTED

    host.step(YEAR)

    assert calendar.look() is ClockState.AHEAD


@pytest.mark.parametrize(
    ("seconds", "state"),
    [
        (HOUR + 1, ClockState.AHEAD),
        (10 * YEAR, ClockState.AHEAD),
        (HOUR, ClockState.TRUSTED),
        (-HOUR, ClockState.TRUSTED),
        (-HOUR - 1, ClockState.BEHIND),
        (-60 * YEAR, ClockState.BEHIND),
    ],
)
def test_a_clock_that_jumps_is_in_doubt(seconds: float, state: ClockState) -> None:
    """By more than an hour, be it forward or back; doubt is over when it is set right."""
    host = HostTime(NOW)
    calendar = calendar_of(host)

    host.step(seconds)

    assert calendar.look() is state
    host.step(-seconds)
    assert calendar.look() is ClockState.TRUSTED


def test_time_goes_on_in_doubt() -> None:
    """By how long the host is up, whether it works or sleeps."""
    host = HostTime(NOW)
    calendar = calendar_of(host)
    host.step(10 * YEAR)

    host.let_pass(3 * DAY)

    assert calendar.certain_ms() == int((NOW + 3 * DAY) * 1000)
    assert calendar.latest_ms() == int((NOW + 10 * YEAR + 3 * DAY) * 1000)


def test_what_is_due_by_certain_time_is_not_by_a_clock_that_is_behind() -> None:
    """It waits for the earlier of both, but time that has passed is not forgotten."""
    host = HostTime(NOW)
    calendar = calendar_of(host)

    host.step(-30 * DAY)

    assert calendar.certain_ms() == int((NOW - 30 * DAY) * 1000)
    assert calendar.reckoned_ms() == calendar.latest_ms() == int(NOW * 1000)


def test_drift_never_adds_up_to_doubt() -> None:
    """A clock that gains two minutes a day, or that a time service sets now and then, is followed for years."""
    host = HostTime(NOW)
    calendar = calendar_of(host)
    for _ in range(1000):
        host.let_pass(DAY)
        host.step(120)
        assert calendar.look() is ClockState.TRUSTED

    assert calendar.certain_ms() == int(host.wall * 1000)


@pytest.mark.parametrize(("days", "state"), [(30.9, ClockState.TRUSTED), (31, ClockState.AHEAD)])
def test_after_a_reboot_the_clock_may_be_a_month_ahead(days: float, state: ClockState) -> None:
    """So long the host may have been off; more is somebody to say."""
    host = HostTime(NOW)
    calendar = booted(host, calendar_of(host), days * DAY)

    assert calendar.look() is state


def test_a_container_has_the_uptime_of_its_host() -> None:
    """It is booted anew, and has been up for months: that has not passed since its last stop."""
    host = HostTime(NOW)
    calendar = calendar_of(host)
    kept = calendar.reckoning()
    host.boot(60.0)
    host.uptime = YEAR
    calendar = calendar_of(host, kept)

    assert calendar.look() is ClockState.TRUSTED
    assert calendar.latest_ms() == int(host.wall * 1000)


def test_a_host_without_a_battery_learns_the_time_later() -> None:
    """It begins with the time of its last stop, and its clock jumps when the network is there; also over a restart."""
    host = HostTime(NOW)
    calendar = booted(host, calendar_of(host), 0.0)
    host.let_pass(DAY)
    calendar = restarted(host, calendar)
    host.step(20 * DAY)
    assert calendar.look() is ClockState.TRUSTED

    host.step(20 * DAY)

    assert calendar.look() is ClockState.AHEAD, "of 31 days 11 are left"


def test_a_host_that_has_been_up_for_days_knows_the_time() -> None:
    """Its clock may be weeks ahead when it is looked at first, but not jump by as much any more."""
    host = HostTime(NOW)
    kept = calendar_of(host).reckoning()
    host.boot(20 * DAY)
    host.let_pass(3 * DAY)
    calendar = calendar_of(host, kept)
    assert calendar.look() is ClockState.TRUSTED
    assert calendar.certain_ms() == int(host.wall * 1000)

    host.step(5 * DAY)

    assert calendar.look() is ClockState.AHEAD


def test_many_small_steps_are_no_way_around_a_large_one() -> None:
    """A clock that is set again and again by less than an hour brings nothing forward by more than a large step may."""
    host = HostTime(NOW)
    calendar = calendar_of(host)
    for _ in range(1000):
        host.step(HOUR - 60)
        host.let_pass(60)
        calendar = restarted(host, calendar)

    assert calendar.look() is ClockState.AHEAD
    assert calendar.certain_ms() <= (NOW + 1000 * 60 + 2 * HOUR) * 1000


def test_a_virtual_machine_that_was_set_back_goes_on() -> None:
    """In the same boot, for less long than was kept of it."""
    host = HostTime(NOW)
    host.let_pass(10 * DAY)
    kept = calendar_of(host).reckoning()
    host.uptime -= 9 * DAY
    calendar = calendar_of(host, kept)

    host.let_pass(2 * DAY)

    assert calendar.look() is ClockState.TRUSTED
    assert calendar.certain_ms() == int(host.wall * 1000)


def test_no_clock_that_is_set_later_jumps_over_a_window() -> None:
    """Of a key whose deletion was scheduled before a host without a battery learnt the time."""
    host = HostTime(NOW)
    calendar = booted(host, calendar_of(host), 0.0)
    due_ms = calendar.promised_ms() + WINDOW_MS

    host.step(20 * DAY)

    assert calendar.look() is ClockState.AHEAD
    assert restarted(host, calendar).certain_ms() < due_ms


def test_a_backup_of_last_year_is_in_doubt_until_somebody_confirms() -> None:
    """Nobody can tell a host that was put away from a clock that is wrong."""
    host = HostTime(NOW)
    calendar = booted(host, calendar_of(host), YEAR)
    host.let_pass(DAY)
    assert calendar.look() is ClockState.AHEAD

    calendar.begin(calendar.confirmed())

    assert calendar.look() is ClockState.TRUSTED
    assert calendar.certain_ms() == int(host.wall * 1000)


def test_confirming_takes_back_a_time_that_was_too_late() -> None:
    """A clock that was wrong when it was first believed is mended, and confirmed."""
    host = HostTime(NOW + 10 * YEAR)
    calendar = calendar_of(host)
    host.step(-10 * YEAR)
    assert calendar.look() is ClockState.BEHIND

    calendar.begin(calendar.confirmed())

    assert calendar.certain_ms() == calendar.latest_ms() == int(NOW * 1000)


# What may happen to a host, with the names of the methods of HostTime that it is; restarts are the daemon's.
_passing = st.tuples(st.just("let_pass"), st.floats(0, 20 * DAY))
_jumps = st.floats(-50 * YEAR, 50 * YEAR) | st.floats(-2 * HOUR, 2 * HOUR)
_steps = st.tuples(st.just("step"), _jumps)
_restarts = st.tuples(st.just("restart"), st.just(0.0))
_boots = st.tuples(st.just("boot"), st.floats(0, MAX_OFF_MS / 1000 - BOOT_SECONDS))


def live(host: HostTime, calendar: Calendar, event: tuple[str, float]) -> Calendar:
    """What is left of a calendar when something has happened."""
    what, seconds = event
    if what == "restart":
        return restarted(host, calendar)
    if what == "boot":
        return booted(host, calendar, seconds)
    getattr(host, what)(seconds)
    calendar.look()
    return calendar


@given(st.lists(_passing | _steps | _restarts | _boots, max_size=30), st.lists(_passing | _steps | _restarts))
def test_nothing_falls_due_early_however_the_clock_is_set(
    before: list[tuple[str, float]], events: list[tuple[str, float]]
) -> None:
    """What was to wait for seven days waits that long, whatever the clock said when it was scheduled, and since.

    Less an hour, and what comes back of that.
    """
    host = HostTime(NOW)
    calendar = calendar_of(host)
    for event in before:
        calendar = live(host, calendar, event)
    due_ms, begun = calendar.promised_ms() + WINDOW_MS, host.uptime

    for event in events:
        calendar = live(host, calendar, event)
        if calendar.certain_ms() >= due_ms:
            passed_ms = (host.uptime - begun) * 1000
            assert passed_ms >= WINDOW_MS - TOLERANCE_MS - passed_ms / REFILL - len(events)


@given(st.lists(_passing | _restarts | _boots, max_size=30))
def test_a_clock_that_is_right_is_always_believed(events: list[tuple[str, float]]) -> None:
    """Whether the host works, sleeps or is off for a month, and whatever the daemon does."""
    host = HostTime(NOW)
    calendar = calendar_of(host)
    for event in events:
        calendar = live(host, calendar, event)
        assert calendar.look() is ClockState.TRUSTED
        assert calendar.certain_ms() == int(host.wall * 1000) == pytest.approx(calendar.latest_ms(), abs=len(events))


@given(st.lists(_passing | _steps | _restarts | _boots, max_size=30))
def test_certain_time_never_goes_back(events: list[tuple[str, float]]) -> None:
    """And in a boot its clock moves it ahead of uptime by no more than a month, be it restarted as often as it will."""
    host = HostTime(NOW)
    calendar = calendar_of(host)
    for event in events:
        before, slack_ms = calendar.reckoned_ms(), MAX_OFF_MS if event[0] == "boot" else calendar.reckoning().slack_ms
        uptime = BOOT_SECONDS if event[0] == "boot" else host.uptime
        calendar = live(host, calendar, event)
        gone_ms = calendar.reckoned_ms() - before
        up_ms = (host.uptime - uptime) * 1000
        assert up_ms - 2 <= gone_ms <= up_ms + max(slack_ms, TOLERANCE_MS) + 2
        assert calendar.certain_ms() <= calendar.reckoned_ms() <= calendar.latest_ms()
        assert calendar.reckoning().slack_ms < UNLIMITED_MS
