"""Power cuts while a service works: its disk calls are recorded, and what a cut leaves of them is tried.

A record has several starts, of which some end by a kill; in most records a sync fails on the way, once or from then on
until the process ends. Every start after a cut succeeds, and everything acknowledged before it is there, with its line
in a chain that is whole; but for `audit.sync = interval` and `os`, with which the last lines may be lost, though not
those of changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from kmsd.api.errors import AuditUnavailableError, KmsError, StorageError
from kmsd.store.base import StoreUnavailableError
from tests.faults.outages import check_legal
from tests.faults.place import Mode, Place
from tests.faults.replay import Disk, Files
from tests.support.assembled import FOLDERS
from tests.support.faulty_disk import Call, Entry, FaultyDisk, entries
from tests.support.forked import Say
from tests.support.workload import Client, Told

_MODES: tuple[Mode, ...] = ("always", "always", "interval", "os")
STARTS = 3
CLIENTS = 3
OPERATIONS = 4

# A start and its operations take some 40 syncs.
_MOST_SYNCS = 100

# How often a record is cut, and how often a record begins with what a cut left.
_CUTS_OF_ONE = 20
_RECORDS_IN_A_ROW = 4


def power_cuts(disk: FaultyDisk, directory: Path, rng: random.Random) -> Iterator[int]:
    """Record and cut without end; yields after each cut the number of calls before it."""
    place = Place(directory, disk, rng.getrandbits(32))
    while True:
        files: Files = {}
        told = Told()
        mode = rng.choice(_MODES)
        place.keeps_lines = mode == "always"
        for _ in range(_RECORDS_IN_A_ROW):
            fill(place, files, told)
            calls = recorded(place, disk, rng, mode)
            start, start_told = files, told
            for cut in (rng.randint(1, len(calls)) for _ in range(_CUTS_OF_ONE)):
                replayed = Disk(FOLDERS, start, rng)
                replayed.replay(calls[:cut])
                files, told = replayed.after_cut(), start_told.copy()
                told.add(json.loads(note) for note in replayed.notes)
                fill(place, files, told)
                try:
                    place.start_and_check()
                except AssertionError as fault:
                    fill(place, files, told)
                    raise AssertionError(f"after a cut behind call {cut} of {len(calls)}: {calls[cut - 1]}") from fault
                yield cut


def fill(place: Place, files: Files, told: Told) -> None:
    """Have exactly these files in the directory."""
    place.make_empty()
    place.told = told.copy()
    if told.token:
        place.token.write_text(json.dumps(told.token))
    for name, content in files.items():
        (place.directory / name).write_bytes(content)


def recorded(place: Place, disk: FaultyDisk, rng: random.Random, mode: Mode) -> list[Entry]:
    """Return what a service does on the disk that is started several times, works, and stops or is killed."""
    path = place.directory.with_name("record")
    path.unlink(missing_ok=True)
    faulty_start = rng.randrange(STARTS + 1)

    def acknowledge(told: dict[str, str]) -> None:
        disk.note(json.dumps(told).encode())

    for start in range(STARTS):
        fails_at = rng.randint(1, _MOST_SYNCS) if start == faulty_start else 0
        plan = partial(disk.plan, at=fails_at, kinds=Call.SYNC, error=errno.EIO, persists=rng.random() < 0.5)
        seed, stops = rng.getrandbits(32), rng.random() < 0.5

        async def main(say: Say, plan: Callable[[], None] = plan, seed: int = seed, stops: bool = stops) -> None:
            # Opened before the directory is watched.
            disk.record(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            plan()
            with contextlib.suppress(AuditUnavailableError, StorageError, StoreUnavailableError):
                service = await place.open(say, sync=mode)
                clients = [Client(service, f"n{seed}c{one}", acknowledge) for one in range(CLIENTS)]
                await asyncio.gather(*(work(client, random.Random(seed + one)) for one, client in enumerate(clients)))
                if stops:
                    await service.close()

        place.work(main)
    return list(entries(path.read_bytes()))


async def work(client: Client, rng: random.Random) -> None:
    for step in islice(client.steps(rng), OPERATIONS):
        try:
            await step()
        except KmsError as error:
            check_legal(error)
