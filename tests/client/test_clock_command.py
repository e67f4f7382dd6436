"""`kms clock`, over a scripted daemon."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from kmsd.api.calendar import ClockState, ConfirmClockRequest, ConfirmClockResponse, GetClockResponse
from kmsd_client.cli.main import main
from tests.client.keyboard import pipes, types
from tests.client.scripted import Answer, ScriptedDaemon

CERTAIN = dt.datetime(2026, 11, 26, 3, 4, 5, tzinfo=dt.UTC)
CLOCK = dt.datetime(2036, 11, 26, 3, 4, 5, 678_901, tzinfo=dt.UTC)
Captured = pytest.CaptureFixture[str]


class Clock:
    """A daemon whose clock is ten years ahead of what it is sure of; it keeps what is confirmed."""

    def __init__(self, daemon: ScriptedDaemon) -> None:
        self._path = daemon.path
        self.state = ClockState.AHEAD
        self.confirmed: list[Any] = []
        daemon.answer = self._answer

    def kms(self, *words: str) -> int:
        return main(["--socket", str(self._path), "clock", *words])

    def _answer(self, name: str, request: Any) -> Answer:
        if name == "GetClock":
            return GetClockResponse(state=self.state, clock=CLOCK, certain=CERTAIN, waiting=2), []
        self.confirmed.append(request)
        return ConfirmClockResponse(before=CERTAIN, after=CLOCK), []


@pytest.fixture
def clock(daemon: ScriptedDaemon) -> Clock:
    return Clock(daemon)


def test_a_clock_in_doubt_is_told_with_what_waits(clock: Clock, capsys: Captured) -> None:
    """For people, and for programs."""
    assert clock.kms() == 0
    assert capsys.readouterr().out.splitlines() == [
        "state:   in doubt: it is ahead of the time that is sure to have passed",
        "clock:   2036-11-26 03:04:05 UTC",
        "certain: 2026-11-26 03:04:05 UTC",
        "waiting: 2 keys with something due by the clock",
    ]
    assert clock.kms("--json") == 0
    assert json.loads(capsys.readouterr().out)["State"] == "ahead"


def test_what_was_shown_is_what_is_confirmed(clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """To the microsecond; so a clock that jumps meanwhile is not confirmed with it."""
    types(monkeypatch, "yes\n")

    assert clock.kms("confirm") == 0

    said, shown = capsys.readouterr()
    assert "clock:   2036-11-26 03:04:05 UTC\n" in shown
    assert "those to be destroyed" in shown
    assert said == "the certain time was 2026-11-26 03:04:05 UTC, and is 2036-11-26 03:04:05 UTC now\n"
    assert clock.confirmed == [ConfirmClockRequest(clock=CLOCK)]


def test_only_a_yes_confirms(clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """What is confirmed may destroy keys."""
    types(monkeypatch, "y\n")
    assert clock.kms("confirm") == 1
    assert capsys.readouterr().err.endswith("kms: error: nothing was confirmed\n")
    pipes(monkeypatch, "yes\n")
    assert clock.kms("confirm") == 2
    assert clock.confirmed == []

    assert clock.kms("confirm", "--yes") == 0
    assert len(clock.confirmed) == 1


def test_a_clock_that_was_set_back_destroys_nothing_when_confirmed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """And that is said."""
    clock.state = ClockState.BEHIND
    types(monkeypatch, "yes\n")

    assert clock.kms("confirm") == 0

    shown = capsys.readouterr().err
    assert "in doubt: it is behind the time that is sure to have passed" in shown
    assert "destroyed" not in shown
    assert len(clock.confirmed) == 1


def test_a_clock_that_is_trusted_needs_no_word(clock: Clock, capsys: Captured) -> None:
    """Nor takes one: somebody may have run the command beforehand, to be sure."""
    clock.state = ClockState.TRUSTED

    assert clock.kms("confirm", "--yes") == 0

    assert capsys.readouterr().out == "the clock is trusted: there is nothing to confirm\n"
    assert clock.confirmed == []
