"""Times as people read them: `kmsd_client.cli.moments`."""

import datetime as dt
import time

import pytest

from kmsd_client.cli.moments import ago, day, second, span

NOW = dt.datetime(2026, 11, 26, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (dt.timedelta(days=-3), "0 seconds"),
        (dt.timedelta(0), "0 seconds"),
        (dt.timedelta(seconds=1), "1 second"),
        (dt.timedelta(seconds=179), "2 minutes"),
        (dt.timedelta(hours=23, minutes=59), "23 hours"),
        (dt.timedelta(days=1), "1 day"),
        (dt.timedelta(days=729), "729 days"),
        (dt.timedelta(days=730), "2 years"),
        (dt.timedelta(days=36_500), "100 years"),
    ],
)
def test_a_span_is_told_in_its_largest_unit(length: dt.timedelta, said: str) -> None:
    """Rounded down; one that a clock set back made negative is none."""
    assert span(length) == said


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (dt.timedelta(0), "just now"),
        (dt.timedelta(milliseconds=999), "just now"),
        (dt.timedelta(seconds=-30), "just now"),
        (dt.timedelta(minutes=3), "3 minutes ago"),
        (dt.timedelta(days=-400), "on 2027-12-31 03:04:05 UTC"),
    ],
)
def test_a_moment_is_told_by_how_long_ago_it_is(before: dt.timedelta, said: str) -> None:
    """One that is to come, as the clock was set back, by its date."""
    assert ago(NOW - before, NOW) == said


def test_moments_are_told_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the terminal is: trail and log are in UTC as well."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        late = dt.datetime(2026, 11, 26, 23, 30, tzinfo=dt.UTC)
        assert day(late) == "2026-11-26"
        assert day(late.astimezone()) == "2026-11-26"
        assert second(late.astimezone()) == "2026-11-26 23:30:00 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()
