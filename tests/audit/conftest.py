"""What the tests of the audit trail share: records, a kernel that fails on command, and trails that get closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.checkpoint import key_id_of
from kmsd.audit.record import Actor, Kind, Record
from kmsd.audit.system import System
from kmsd.audit.writer import SyncMode, Trail

MakeRecord = Callable[..., Record]
OpenTrail = Callable[..., Trail]


class FaultySystem:
    """The real system calls, counted, each failing with what stands in `faults` under its name.

    A fault is an OSError to raise, or, for write, how many bytes it takes. `hang` holds fdatasync until it is set.
    `at_call` is told the name of each call before it is made, and may raise as well.
    """

    def __init__(self) -> None:
        self.faults: dict[str, OSError | int] = {}
        names = ("write", "fdatasync", "ftruncate", "pread", "fstat", "lstat", "open", "fsync", "rename", "unlink")
        self.counts = dict.fromkeys((*names, "link"), 0)
        self.at_call: Callable[[str], None] | None = None
        self.hang: threading.Event | None = None
        self.synced = threading.Condition()
        self.late = 0.0  # seconds that the monotonic clock runs ahead
        self.calls = System(
            self.write,
            self.fdatasync,
            self.ftruncate,
            self.pread,
            self.fstat,
            self.lstat,
            self.monotonic,
            self.open,
            self.fsync,
            self.rename,
            self.unlink,
            self.link,
        )

    def write(self, fd: int, data: bytes) -> int:
        fault = self._count("write")
        return os.write(fd, data if fault is None else data[:fault])

    def fdatasync(self, fd: int) -> None:
        try:
            self._count("fdatasync")
            if self.hang is not None:
                self.hang.wait()
            os.fdatasync(fd)
        finally:
            with self.synced:
                self.synced.notify_all()

    def ftruncate(self, fd: int, size: int) -> None:
        self._count("ftruncate")
        os.ftruncate(fd, size)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self._count("pread")
        return os.pread(fd, count, offset)

    def fstat(self, fd: int) -> os.stat_result:
        self._count("fstat")
        return os.fstat(fd)

    def lstat(self, path: Path) -> os.stat_result:
        self._count("lstat")
        return path.lstat()

    def monotonic(self) -> float:
        return time.monotonic() + self.late

    def open(self, path: Path, flags: int, mode: int) -> int:
        self._count("open")
        return os.open(path, flags, mode)

    def fsync(self, fd: int) -> None:
        self._count("fsync")
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename")
        source.rename(target)

    def unlink(self, path: Path) -> None:
        self._count("unlink")
        path.unlink()

    def link(self, source: Path, target: Path) -> None:
        self._count("link")
        target.hardlink_to(source)

    async def sync_begins(self, before: int) -> None:
        """Wait until fdatasync was called more often than it had been `before`; it may hang then."""
        while self.counts["fdatasync"] == before:  # noqa: ASYNC110 - a thread counts
            await asyncio.sleep(0.001)

    def wait_for_syncs(self, count: int) -> None:
        with self.synced:
            assert self.synced.wait_for(lambda: self.counts["fdatasync"] >= count, timeout=10)

    def _count(self, call: str) -> int | None:
        self.counts[call] += 1
        if self.at_call is not None:
            self.at_call(call)
        fault = self.faults.get(call)
        if isinstance(fault, OSError):
            raise fault
        return fault


class AuditKey:
    """An audit key in use, and its public half."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()
        self.key_id = key_id_of(self.public)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


@pytest.fixture
def audit_key() -> AuditKey:
    return AuditKey()


@pytest.fixture
def system() -> FaultySystem:
    return FaultySystem()


@pytest.fixture(scope="session")
def make_system() -> type[FaultySystem]:
    return FaultySystem


@pytest.fixture
def make_record() -> MakeRecord:
    def make(kind: Kind = Kind.REQUEST, **members: Any) -> Record:
        actor = Actor(uid=1000, gid=1000, user="alice", pid=4242, unit="web.service", exe="/usr/bin/web")
        defaults = {"event_name": "Encrypt", "actor": actor, "request_id": "r-1", "read_only": True}
        return Record(kind, **{**defaults, **members})

    return make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def open_trail(path: Path) -> Iterator[OpenTrail]:
    trails = []

    def open_(
        where: Path = path, sync: SyncMode = SyncMode.OS, system: FaultySystem | None = None, **settings: Any
    ) -> Trail:
        clock = settings.pop("clock", lambda: 1790000000.125)
        calls = None if system is None else system.calls
        trail = Trail.open(where, sync=sync, clock=clock, system=calls, **settings)
        trails.append(trail)
        return trail

    yield open_
    for trail in trails:
        with contextlib.suppress(AuditUnavailableError):  # of tests that leave the disk broken
            trail.close()
