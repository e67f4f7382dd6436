"""Kills of the service, each followed by a start that has to find everything acknowledged and nothing half done."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO, cast

from tests.support.assembled import Assembled
from tests.support.faulty_disk import KILLS, Act, FaultyDisk
from tests.support.forked import Say, run
from tests.support.workload import Client, Told, all_aliases, all_keys, check, check_trail

SYNC_MODES = ("interval", "always")
CLIENTS = 3

# A start makes some 40 disk calls, or 70 in an empty directory, and a change some 15; the numbers of kills are drawn so
# that starts get their share.
_MOST_CALLS = 400

# A start takes some 30 ms.
_LONGEST_SECONDS = 0.15

# How often one directory is used, each time with what the earlier kills left.
_KILLS_OF_ONE = (3, 12)


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
    """A directory, and what was acknowledged there."""

    def __init__(self, directory: Path, disk: FaultyDisk, seed: int) -> None:
        self.directory = directory
        self.told = Told()
        self._disk = disk
        self._rng = random.Random(seed)

    def make_empty(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        self.told = Told()

    async def open(self, say: Say) -> Assembled:
        self._disk.watch(self.directory)
        log = cast("TextIO", Faults(say))
        return await Assembled.open(self.directory, sync=self._rng.choice(SYNC_MODES), log=log)

    async def check(self, service: Assembled) -> None:
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

    def work(self, main: Callable[[Say], Awaitable[None]], *, kill_after: float | None = None) -> bool:
        """Have a child work, note what it was told, and return whether it was killed."""
        self._rng.random()  # children start with a copy of its state
        ran = run(main, kill_after=kill_after)
        self.told.add(ran.of("told"))
        return ran.signal == signal.SIGKILL


def injected_points(disk: FaultyDisk, directory: Path, rng: random.Random) -> Iterator[bool]:
    """Kill a fixed script before, amid and after each of its disk calls, in random order; yields after each kill.

    The script starts in an empty directory or one in use, makes a key and an alias, encrypts, and stops.
    """
    place = Place(directory, disk, rng.getrandbits(32))

    async def script(say: Say) -> None:
        service = await place.open(say)
        client = Client(service, f"s{len(place.told.keys)}", lambda one: say({"told": one}))
        for step in (client.create_key, client.create_alias, client.encrypt, client.seal_and_unseal):
            await step()
        await service.close()
        say({"calls": disk.calls})

    def prepare(*, in_use: bool) -> None:
        place.make_empty()
        if in_use:
            place.work(script)

    points = []
    for in_use in (False, True):
        prepare(in_use=in_use)
        [calls] = run(script).of("calls")
        points += [(in_use, number, act) for number in range(1, calls + 1) for act in KILLS]
    for in_use, number, act in rng.sample(points, len(points)):
        prepare(in_use=in_use)

        async def killed(say: Say, number: int = number, act: Act = act) -> None:
            disk.plan(at=number, act=act)
            await script(say)

        # When syncs come by time the script may have one less.
        if place.work(killed):
            place.start_and_check()
            yield True


def random_kills(disk: FaultyDisk, directory: Path, rng: random.Random) -> Iterator[bool]:
    """Kill at random times and at random disk calls while clients work, without end; yields after each kill."""
    place = Place(directory, disk, rng.getrandbits(32))
    number = 0
    while True:
        place.make_empty()
        for _ in range(rng.randint(*_KILLS_OF_ONE)):
            number += 1
            at = int(_MOST_CALLS ** rng.random()) if rng.random() < 0.5 else 0
            act, seconds = rng.choice(KILLS), rng.uniform(0, _LONGEST_SECONDS)

            async def killed(say: Say, number: int = number, at: int = at, act: Act = act) -> None:
                disk.plan(at=at, act=act)
                service = await place.open(say)
                await place.check(service)
                await asyncio.gather(*(work(service, f"r{number}c{one}", say) for one in range(CLIENTS)))

            assert place.work(killed, kill_after=None if at else seconds)
            yield True
        place.start_and_check()


async def work(service: Assembled, name: str, say: Say) -> None:
    """Ask for one random thing after the other until the end."""
    client = Client(service, name, lambda one: say({"told": one}))
    for step in client.steps(random.Random(name)):
        await step()


def kills(disk: FaultyDisk, directory: Path, rng: random.Random, *, points: int) -> Iterator[bool]:
    """Kill at so many injected points, or all there are, and then at random."""
    yield from islice(injected_points(disk, directory, rng), points)
    yield from random_kills(disk, directory, rng)
