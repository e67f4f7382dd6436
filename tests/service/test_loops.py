"""What goes on by itself goes on after faults, and not after its end."""

from __future__ import annotations

import asyncio
import io

from kmsd.logs import StructuredLogger
from kmsd.service.loops import Loop


class Faulty:
    """A loop that fails at once, each time."""

    def __init__(self, *, pause_seconds: float = 60) -> None:
        self.runs = 0
        self.log = io.StringIO()
        self.paused: list[float] = []
        self.loop = Loop(
            self._run,
            event="it_failed",
            logger=StructuredLogger(self.log),
            sleep=self._sleep,
            pause_seconds=pause_seconds,
        )

    async def _run(self) -> None:
        self.runs += 1
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def _sleep(self, seconds: float) -> None:
        self.paused.append(seconds)
        await asyncio.sleep(0)

    async def until(self, runs: int) -> None:
        while self.runs < runs:  # noqa: ASYNC110 - nobody else tells
            await asyncio.sleep(0)


async def test_it_begins_again_behind_each_fault() -> None:
    """After a pause, and the log has each."""
    faulty = Faulty()
    faulty.loop.begin()
    await faulty.until(3)
    await faulty.loop.close()

    assert faulty.log.getvalue().count("it_failed") == 2
    assert set(faulty.paused) == {60}


async def test_it_begins_no_more_behind_its_end() -> None:
    """Also when it failed just before, which was not told yet."""
    faulty = Faulty()
    faulty.loop.begin()
    await faulty.until(1)
    await asyncio.sleep(0)
    await faulty.loop.close()
    for _ in range(10):
        await asyncio.sleep(0)

    assert faulty.runs == 1


async def test_who_begins_it_twice_has_one() -> None:
    """The former one is ended, and its end begins nothing."""
    faulty = Faulty()
    faulty.loop.begin()
    faulty.loop.begin()
    await faulty.until(3)
    await faulty.loop.close()

    assert faulty.log.getvalue().count("it_failed") == faulty.runs - 1
