"""The service log: JSON lines without secrets, and never the reason why something else fails."""

from __future__ import annotations

import io
import json
import threading
import time
from typing import Any

import pytest

from kmsd.logs import DroppingStream, StructuredLogger

SECRET = "nobody may read this"  # noqa: S105 - what the tests look for


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fault(error: Exception) -> Exception:
    """The error as it is when it was raised and caught, with a secret in a local variable on its way."""

    def fail(plaintext: str) -> None:
        assert plaintext
        raise error

    try:
        fail(SECRET)
    except type(error) as caught:
        return caught
    raise AssertionError


def test_an_event_is_one_line_of_json() -> None:
    """With level, time and its fields."""
    stream = io.StringIO()
    logger = StructuredLogger(stream)

    logger.info("started", version="1")
    logger.warning("refused", uid=7, reason="two\nlines\u2028")

    first, second = lines(stream)
    assert (first["event"], first["level"], first["version"]) == ("started", "info", "1")
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"], second["uid"]) == ("refused", "warning", 7)
    assert second["reason"] == "two\nlines\u2028"
    assert stream.getvalue().isascii()


def test_a_fault_is_its_type_and_places() -> None:
    """Neither its message nor a local variable nor a cause."""
    stream = io.StringIO()
    error = fault(ValueError(SECRET))
    error.__cause__ = KeyError(SECRET)

    StructuredLogger(stream).fault("request_failed", error, operation="Encrypt")

    [line] = lines(stream)
    assert (line["event"], line["level"], line["fault"]) == ("request_failed", "error", "ValueError")
    assert line["operation"] == "Encrypt"
    assert [place.rpartition(" ")[2] for place in line["places"]] == ["fault", "fail"]
    assert all(place.startswith("test_logs.py:") for place in line["places"])
    assert SECRET not in stream.getvalue()


def test_a_fault_of_the_system_has_its_number() -> None:
    """But not its text, which may name a file of a user's."""
    stream = io.StringIO()

    StructuredLogger(stream).fault("failed", fault(OSError(28, SECRET, f"/home/{SECRET}")))

    [line] = lines(stream)
    assert line["errno"] == 28
    assert SECRET not in stream.getvalue()


def test_a_deep_fault_has_a_bounded_number_of_places() -> None:
    """The innermost ones."""

    def deeper(depth: int) -> None:
        if depth == 0:
            raise ZeroDivisionError
        deeper(depth - 1)

    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError) as caught:
        deeper(100)
    StructuredLogger(stream).fault("failed", caught.value)

    assert len(lines(stream)[0]["places"]) == 20


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    """Whoever reads standard error may go away; requests are still answered."""
    logger = StructuredLogger(Broken())

    logger.info("started")
    logger.warning("refused")
    logger.fault("failed", fault(ValueError()))


def test_it_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless another stream is given."""
    StructuredLogger().info("started")

    written = capsys.readouterr()
    assert written.out == ""
    assert json.loads(written.err)["event"] == "started"


class StuckStream(io.StringIO):
    """A stream whose reader takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        assert self.go_on.wait(30)
        return super().write(text)


def test_a_log_that_nobody_reads_blocks_nothing() -> None:
    """Lines beyond what is kept are dropped, and their number is told when somebody reads again."""
    stream = StuckStream()
    logger = StructuredLogger(DroppingStream(stream, capacity=4))

    for number in range(10):
        logger.info("line", number=number)
    stream.go_on.set()

    deadline = time.monotonic() + 30
    while len(stream.getvalue().splitlines()) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    logger.info("last")
    while '"last"' not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    told = lines(stream)
    kept = [line["number"] for line in told if line["event"] == "line"]
    dropped = sum(line["count"] for line in told if line["event"] == "log_lines_dropped")
    assert len(kept) + dropped == 10
    assert dropped >= 5
