"""Disk calls that fail, at every one in turn, while the service starts, does twenty things, and stops.

Whatever fails: a request succeeds, or fails with an error that names the trail or the store and may be tried again; a
start fails with an error that was foreseen; nobody is told of a fault of the program. When the disk is well again the
same process goes on by itself, but for a store that could not be synced, which says that it needs a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from kmsd.api.errors import AuditUnavailableError, KmsError, StorageError
from kmsd.store.base import StoreFormatError, StoreUnavailableError
from tests.faults.place import SYNC_MODES, Mode, Place, Share
from tests.support.assembled import Assembled
from tests.support.faulty_disk import CHANGES, Act, Call, FaultyDisk
from tests.support.forked import Say, run
from tests.support.workload import Client, check

OPERATIONS = 20

# A failed sync of the trail is tried again every 50 ms; this is for a slow machine.
_RESUMES_SECONDS = 10.0
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Outage:
    """What fails: call number `at` of these kinds, or all from there on; in an empty directory or one in use."""

    at: int
    act: Act
    kinds: Call
    error: int
    persists: bool
    in_use: bool
    sync: Mode

    @property
    def stays(self) -> bool:
        """Whether the disk is not well again before the service has stopped."""
        return self.persists and self.at % 2 == 0

    def __str__(self) -> str:
        name = f"{self.act.name} {self.kinds!r} number {self.at} with {errno.errorcode[self.error]}"
        return f"{name}, persists: {self.persists}, in use: {self.in_use}, sync: {self.sync}"


# What fails how. EMFILE is what an open says; a short write comes before a full disk.
FAILURES = (
    (Act.FAIL, CHANGES, errno.ENOSPC),
    (Act.FAIL, CHANGES, errno.EIO),
    (Act.FAIL, CHANGES, errno.EROFS),
    (Act.SHORTEN, Call.WRITE, errno.ENOSPC),
    (Act.FAIL, Call.OPEN, errno.EMFILE),
    (Act.FAIL, Call.READ, errno.EIO),
)


class Life:
    """One life of a service whose disk fails as planned: a start, operations, a stop."""

    def __init__(self, place: Place, disk: FaultyDisk, outage: Outage) -> None:
        self._place = place
        self._disk = disk
        self._outage = outage
        self._service: Assembled | None = None
        self._starts = 0

    async def live(self, say: Say) -> None:
        outage = self._outage
        self._disk.plan(at=outage.at, act=outage.act, kinds=outage.kinds, error=outage.error, persists=outage.persists)
        client = await self._start(say)
        if client is not None:
            await self._operate(client)
            if self._disk.calls < outage.at or outage.stays:
                await self._stop(fails=True)
                return
        # From here on the disk is well.
        self._disk.plan()
        client = client or await self._start(say, fails=False)
        assert client is not None
        client = await self._resume(client, say)
        for step in (client.create_key, client.create_alias, client.encrypt, client.seal_and_unseal):
            await step()
        assert self._service is not None
        # Not of the trail: an intent whose outcome could not be written stays open until the next start.
        await check(self._service, self._place.told, random.Random(outage.at))
        await self._stop(fails=False)

    async def count(self, say: Say) -> None:
        """Live undisturbed, and say how many calls of each kind it took."""
        self._disk.plan(kinds=self._outage.kinds)
        client = await self._start(say, fails=False)
        assert client is not None
        await self._operate(client, fails=False)
        await self._stop(fails=False)
        say({"calls": self._disk.calls})

    async def _start(self, say: Say, *, fails: bool = True) -> Client | None:
        def acknowledge(one: dict[str, str]) -> None:
            self._place.told.add([one])
            say({"told": one})

        # What SQLite cannot read it takes for damaged.
        damaged = (StoreFormatError,) if Call.READ in self._outage.kinds else ()
        foreseen = (AuditUnavailableError, StorageError, StoreUnavailableError, *damaged) if fails else ()
        with contextlib.suppress(*foreseen):
            self._service = await self._place.open(say, sync=self._outage.sync)
            self._starts += 1
            return Client(self._service, f"p{os.getpid()}s{self._starts}", acknowledge)
        return None

    async def _operate(self, client: Client, *, fails: bool = True) -> None:
        # Not at random: so that counting and failing see the same.
        for step in islice(client.steps(random.Random(OPERATIONS)), OPERATIONS):
            try:
                await step()
            except KmsError as error:
                assert fails
                check_legal(error)

    async def _resume(self, client: Client, say: Say) -> Client:
        """Return when requests are answered again, after a restart where an error says that it takes one."""
        last: KmsError | None = None
        for _ in range(int(_RESUMES_SECONDS / _PAUSE_SECONDS)):
            try:
                await client.create_key()
            except KmsError as error:
                last = error
                check_legal(error)
            else:
                return client
            if "restart kmsd" in last.message:
                await self._stop(fails=True)
                restarted = await self._start(say, fails=False)
                assert restarted is not None
                client = restarted
            await client.maintain()  # as the service does every few seconds
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError(f"did not resume: {last}")

    async def _stop(self, *, fails: bool) -> None:
        """Stop, which may fail where nothing can be written; the process ends then."""
        assert self._service is not None
        with contextlib.suppress(*((AuditUnavailableError, StoreUnavailableError) if fails else ())):
            await self._service.close()


def check_legal(error: KmsError) -> None:
    """Hold that an error is one that a failing disk may cause, and says so."""
    assert isinstance(error, AuditUnavailableError | StorageError), repr(error)
    assert error.retryable
    assert ("audit.log" if isinstance(error, AuditUnavailableError) else "store.sqlite") in error.message


def outages(disk: FaultyDisk, directory: Path, rng: random.Random, share: Share) -> Iterator[Outage]:
    """Let every disk call fail in every way once, in random order; yields after each. Processes share the work."""
    place = Place(directory, disk, rng.getrandbits(32))
    template = directory.with_name("in-use")
    place.make_empty()
    assert place.work(Life(place, disk, Outage(0, Act.FAIL, CHANGES, 0, False, True, "always")).count).signal == 0
    shutil.copytree(directory, template / directory.name)
    shutil.copy(place.token, template)
    told = place.told.copy()
    planned = []
    for in_use in (False, True):
        for sync in SYNC_MODES:
            calls: dict[Call, int] = {}
            for act, kinds, error in FAILURES:
                one = Outage(0, act, kinds, error, False, in_use, sync)
                if kinds not in calls:
                    prepare(place, template if in_use else None)
                    [calls[kinds]] = run(Life(place, disk, one).count).of("calls")
                for persists in (False, True):
                    planned += [replace(one, at=at, persists=persists) for at in range(1, calls[kinds] + 1)]
    mine = share.of(planned)
    for outage in rng.sample(mine, len(mine)):
        prepare(place, template if outage.in_use else None)
        if outage.in_use:
            place.told = told.copy()
        try:
            assert place.work(Life(place, disk, outage).live).signal == 0
            place.start_and_check()
        except AssertionError as fault:
            raise AssertionError(str(outage)) from fault
        yield outage


def prepare(place: Place, template: Path | None) -> None:
    """Have an empty directory, or a copy of the template."""
    place.make_empty()
    if template is not None:
        shutil.copytree(template / place.directory.name, place.directory, dirs_exist_ok=True)
        shutil.copy(template / place.token.name, place.token)
