"""Kills of the service, each followed by a start that has to find everything acknowledged and nothing half done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tests.faults.place import Place, Share, was_killed
from tests.support.assembled import Assembled
from tests.support.faulty_disk import KILLS, Act, FaultyDisk
from tests.support.forked import Say, run
from tests.support.workload import Client

CLIENTS = 3

# A start makes some 40 disk calls, or 70 in an empty directory, and a change some 15; the numbers of kills are drawn so
# that starts get their share.
_MOST_CALLS = 400

# A start takes some 30 ms.
_LONGEST_SECONDS = 0.15

# So that also those who make a few kills only have some of them.
_RANDOM_FIRST = 20

# How often one directory is used, each time with what the earlier kills left.
_KILLS_OF_ONE = (3, 12)


def injected_points(disk: FaultyDisk, directory: Path, rng: random.Random, share: Share) -> Iterator[bool]:
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
    mine = share.of(points)
    for in_use, number, act in rng.sample(mine, len(mine)):
        prepare(in_use=in_use)

        async def killed(say: Say, number: int = number, act: Act = act) -> None:
            disk.plan(at=number, act=act)
            await script(say)

        # When syncs come by time the script may have one less.
        if was_killed(place.work(killed)):
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

            assert was_killed(place.work(killed, kill_after=None if at else seconds))
            yield True
        place.start_and_check()


async def work(service: Assembled, name: str, say: Say) -> None:
    """Ask for one random thing after the other until the end."""
    client = Client(service, name, lambda one: say({"told": one}))
    for step in client.steps(random.Random(name)):
        await step()


def kills(disk: FaultyDisk, directory: Path, rng: random.Random, share: Share) -> Iterator[bool]:
    """Kill at a few random moments, at every injected point once, and then at random again."""
    yield from islice(random_kills(disk, directory, rng), _RANDOM_FIRST)
    yield from injected_points(disk, directory, rng, share)
    yield from random_kills(disk, directory, rng)
