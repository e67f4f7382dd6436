"""Points in time and spans of it in words; always in UTC, whatever the terminal's time zone is."""

from __future__ import annotations

import datetime as dt

# From here on a year more or less says enough.
_YEARS_FROM = dt.timedelta(days=730)
_UNITS = (
    ("day", dt.timedelta(days=1)),
    ("hour", dt.timedelta(hours=1)),
    ("minute", dt.timedelta(minutes=1)),
    ("second", dt.timedelta(seconds=1)),
)
_YEAR = dt.timedelta(days=365)


def now() -> dt.datetime:
    """Return the time by this host's clock."""
    return dt.datetime.now(dt.UTC)


def day(moment: dt.datetime) -> str:
    """Return the day of a moment: 2026-11-26."""
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d}"


def second(moment: dt.datetime) -> str:
    """Return a moment to the second: 2026-11-26 03:04:05 UTC."""
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(length: dt.timedelta) -> str:
    """Return a span in its largest unit, rounded down: 3 minutes; one that is negative is none."""
    if length >= _YEARS_FROM:
        return counted(length // _YEAR, "year")
    for name, unit in _UNITS:
        if length >= unit:
            return counted(length // unit, name)
    return counted(0, "second")


def ago(moment: dt.datetime, until: dt.datetime) -> str:
    """Return how long ago a moment is: 3 minutes ago; one that is still to come (a clock was set back) by its date."""
    if moment > until + dt.timedelta(minutes=1):
        return f"on {second(moment)}"
    if moment > until - dt.timedelta(seconds=1):
        return "just now"
    return f"{span(until - moment)} ago"


def counted(count: int, noun: str) -> str:
    """Return a number of things: 1 day, 2 days."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
