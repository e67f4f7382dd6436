"""A backup opened by a command, while no daemon is there to do it: who opens it, and where its keys are meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from kmsd.backup.reading import BackupReader
from kmsd.commands.sites import Site
from kmsd.hsm.conversation import TokenConfig
from kmsd.hsm.pkcs11 import JOB_ENTRY, Pkcs11Root, run_job
from kmsd.material.hierarchy import Hierarchy
from kmsd.memory.arena import Arena, default_limit_bytes
from kmsd.processes.sandbox import harden_process
from kmsd.processes.zygote import Zygote
from kmsd.recovery import RECOVERY_KEY_BYTES
from kmsd.recovery.job import RECOVERY_ENTRY, run_recovery_job
from kmsd.recovery.jobs import RecoveryJobs, shares_page
from kmsd.service.restoring import Restoration


class HashedFile:
    """A file as it is read once: how long it is and its SHA-256, as far as it was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.length = 0

    def read(self, size: int) -> bytes:
        """Return so many bytes, or fewer at the end."""
        data = self._stream.read(size)
        self._digest.update(data)
        self.length += len(data)
        return data

    @property
    def sha256(self) -> str:
        """The hash in hexadecimal."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Opened:
    """A backup whose keys are there. `seen` is the sequence of the store that the token knows of, 0 if none."""

    reader: BackupReader
    restoration: Restoration
    file: HashedFile
    seen: int
    by: str


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open a backup: the file with its name, the site whose token may do it, and recovery shares, if any.

    With `needs_token` the token is there for more than opening; with shares it is not used otherwise.
    """

    stream: BinaryIO
    name: str
    site: Site
    shares: bytes | None
    needs_token: bool = False

    def run(self, work: Callable[[Opened], Awaitable[None]]) -> None:
        """Open the backup, and have `work` done while its keys are in memory; raises whatever prevents either."""
        harden_process()
        # Whatever ends this short of SIGKILL, such as a terminal that goes away, ends it as Ctrl-C does: `work` has
        # made copies of rows, and takes them away.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
        # Before there is a thread, and before there is a key.
        zygote = Zygote.start({JOB_ENTRY: run_job, RECOVERY_ENTRY: run_recovery_job})
        asyncio.run(self._run(zygote, work))

    async def _run(self, zygote: Zygote, work: Callable[[Opened], Awaitable[None]]) -> None:
        arena = Arena(default_limit_bytes())
        try:
            await work(await self._open(zygote, arena))
        finally:
            arena.wipe()
            await zygote.close()

    async def _open(self, zygote: Zygote, arena: Arena) -> Opened:
        file = HashedFile(self.stream)
        # Before anybody is asked for anything: is it a backup at all?
        reader = BackupReader(file.read, self.name)
        with ExitStack() as held:
            recovery_key = None
            if self.shares is not None:
                with shares_page(memoryview(self.shares)) as page:
                    key = held.enter_context(await RecoveryJobs(zygote).combine(page))
                recovery_key = held.enter_context(key.view[:RECOVERY_KEY_BYTES])
            root = await self._root(zygote)
            restoration = Restoration(
                reader, self.name, root=root, hierarchy=Hierarchy(arena, root, os.urandom), arena=arena
            )
            seen = await restoration.unlock(recovery_key)
        return Opened(reader, restoration, file, seen or 0, "token" if self.shares is None else "recovery shares")

    async def _root(self, zygote: Zygote) -> Pkcs11Root:
        deadline_seconds = self.site.deadline_seconds
        if self.shares is not None and not self.needs_token:
            return Pkcs11Root(zygote, TokenConfig("", "", ""), None, deadline_seconds=deadline_seconds)
        config = await self.site.find_token(zygote)
        return Pkcs11Root(zygote, config, self.site.pin, deadline_seconds=deadline_seconds)
