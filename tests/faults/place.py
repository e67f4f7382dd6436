"""The directory of a service that a campaign goes wrong on, and what was acknowledged there."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TextIO, TypeVar, cast

from kmsd.config import Audit
from tests.support.assembled import FOLDERS, Assembled, KeptRoot
from tests.support.faulty_disk import FaultyDisk
from tests.support.forked import Ran, Say, run
from tests.support.workload import Told, check, check_trail

_T = TypeVar("_T")

Mode = Literal["interval", "always", "os"]

SYNC_MODES: tuple[Mode, ...] = ("interval", "always")

# A record has some 700 bytes: a new file every 30 records, or never; a signature every 8, or only where it has to be.
_ROTATE_BYTES = (20_000, 0)
_CHECKPOINT_RECORDS = (8, 10_000)


class Share(NamedTuple):
    """The part of a process, `number` from 0, in what several do together."""

    number: int
    processes: int

    def of(self, things: Sequence[_T]) -> Sequence[_T]:
        """Return this process' part of what is there once."""
        return things[self.number :: self.processes]


class Log:
    """A service log: what it says of faults that nobody foresaw ends the run, anchors of the trail are told."""

    def __init__(self, say: Say, disk: FaultyDisk) -> None:
        self._say = say
        self._disk = disk

    def write(self, text: str) -> int:
        if '"level": "error"' in text:
            self._say({"failure": f"the service reported a fault: {text}"})
        if '"event": "audit_checkpoint"' in text:
            anchor = {"anchor": text}
            self._say({"told": anchor})
            self._disk.note(json.dumps(anchor).encode())
        return len(text)

    def flush(self) -> None:
        return


class Place:
    """A directory, and what was acknowledged there; `disk` is watched in children only."""

    def __init__(self, directory: Path, disk: FaultyDisk, seed: int) -> None:
        self.directory = directory
        self.token = directory.with_name("token")  # not watched: it is another device
        self.told = Told()
        self.keeps_lines = True  # whether the trail has to have a line for each acknowledgement
        self._disk = disk
        self._rng = random.Random(seed)

    def make_empty(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.token.unlink(missing_ok=True)
        for folder in FOLDERS:
            (self.directory / folder).mkdir(parents=True)
        self.told = Told()

    async def open(self, say: Say, *, sync: Mode | None = None) -> Assembled:
        """Start, in any mode if none is given."""
        self._disk.watch(self.directory)
        drawn = self._rng.choice(SYNC_MODES)
        audit = Audit(
            sync=sync or drawn,
            rotate_bytes=self._rng.choice(_ROTATE_BYTES),
            checkpoint_records=self._rng.choice(_CHECKPOINT_RECORDS),
        )
        root = KeptRoot(self.token, self._note_token)
        return await Assembled.open(self.directory, audit=audit, root=root, log=cast("TextIO", Log(say, self._disk)))

    def _note_token(self, store_id: str, sequence: int) -> None:
        self._disk.note(json.dumps({"token": {store_id: sequence}}).encode())

    async def check(self, service: Assembled) -> None:
        """Find everything as it has to be."""
        await check(service, self.told, self._rng)
        await check_trail(service, self.directory, self.told, has_all=self.keeps_lines)

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
