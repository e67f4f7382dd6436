"""The directory of a service that a campaign goes wrong on, and what was acknowledged there."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO, cast

from tests.support.assembled import FOLDERS, Assembled
from tests.support.faulty_disk import FaultyDisk
from tests.support.forked import Ran, Say, run
from tests.support.workload import Told, all_aliases, all_keys, check, check_trail

SYNC_MODES = ("interval", "always")


class Faults:
    """A service log that takes what was foreseen, and reports what was not."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def write(self, text: str) -> int:
        if '"level": "error"' in text:
            self._say({"failure": f"the service reported a fault: {text}"})
        return len(text)

    def flush(self) -> None:
        return


class Place:
    """A directory, and what was acknowledged there; `disk` is watched in children only."""

    def __init__(self, directory: Path, disk: FaultyDisk, seed: int) -> None:
        self.directory = directory
        self.told = Told()
        self._disk = disk
        self._rng = random.Random(seed)

    def make_empty(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        for folder in FOLDERS:
            (self.directory / folder).mkdir(parents=True)
        self.told = Told()

    async def open(self, say: Say, *, sync: str | None = None) -> Assembled:
        """Start, in any mode if none is given."""
        self._disk.watch(self.directory)
        log = cast("TextIO", Faults(say))
        return await Assembled.open(self.directory, sync=sync or self._rng.choice(SYNC_MODES), log=log)

    async def check(self, service: Assembled) -> None:
        """Find everything as it has to be."""
        await check(service, self.told, self._rng)
        keys, aliases = await all_keys(service), await all_aliases(service)
        check_trail(self.directory, self.told, keys, aliases)

    def start_and_check(self) -> None:
        """Start undisturbed, find everything as it has to be, and stop."""

        async def main(say: Say) -> None:
            service = await self.open(say)
            await self.check(service)
            await service.close()

        assert run(main).signal == 0

    def work(self, main: Callable[[Say], Awaitable[None]], *, kill_after: float | None = None) -> Ran:
        """Have a child work, and note what it was told."""
        self._rng.random()  # a child begins with a copy of its state
        ran = run(main, kill_after=kill_after)
        self.told.add(ran.of("told"))
        return ran


def was_killed(ran: Ran) -> bool:
    """Whether a child ended by SIGKILL, as it was planned."""
    return ran.signal == signal.SIGKILL
