"""What is acknowledged stays: a process that commits is killed, again and again."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmsd.store.base import StoreUnavailableError
from kmsd.store.sql import SqlStore
from tests.store.rows import opened

# Commits pairs of rows and tells each pair's id once its commit returned.
COMMITTER = """
import asyncio, os, pathlib, sys, uuid
from kmsd.store.base import Insert
from tests.store.rows import key_row, material_row, opened

async def main():
    async with opened(pathlib.Path(sys.argv[1])) as store:
        while True:
            key_id = str(uuid.uuid4())
            await store.commit(f"m-{key_id}", [Insert(key_row(key_id)), Insert(material_row(key_id))])
            os.write(1, f"{key_id}\\n".encode())

asyncio.run(main())
"""


def kill_while_committing(path: Path, seconds: float) -> list[str]:
    """Let a child commit for a while after its first acknowledgement, kill it, return all acknowledged ids."""
    with subprocess.Popen([sys.executable, "-c", COMMITTER, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGKILL)
        # A line that the kill cut short was acknowledged to nobody.
        lines = (first + child.stdout.read()).split(b"\n")[:-1]
    assert child.returncode == -signal.SIGKILL
    return [line.decode() for line in lines]


async def test_an_acknowledged_commit_survives_kill(path: Path) -> None:
    """After each kill the store opens at once, and holds every acknowledged pair of rows, whole."""
    acknowledged: list[str] = []
    for _ in range(3):
        # With some 1,000 commits a second, the kill falls into any phase of one.
        acknowledged += kill_while_committing(path, random.uniform(0.05, 0.3))

        async with opened(path) as store:
            committed = await store.committed([f"m-{key_id}" for key_id in acknowledged])
            keys = {row.key_id for row in await store.keys(after=None, limit=100_000)}
            materials = {key_id for key_id in keys if await store.material(key_id, 1) is not None}

        assert committed == {f"m-{key_id}" for key_id in acknowledged[-10_000:]}
        assert keys >= set(acknowledged)
        assert materials == keys


async def test_what_a_kill_left_in_the_log_is_written_again_and_synced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is committed behind it: if its last sync failed, the kernel holds it for clean and lost."""
    kill_while_committing(path, 0)
    log = path.with_name("store.sqlite-wal")
    left = log.read_bytes()
    written: list[bytes] = []
    synced = b""
    real_pwrite, real_fsync = os.pwrite, os.fsync

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink() == log:
            assert offset == len(b"".join(written))
            written.append(data)
        return real_pwrite(fd, data, offset)

    def fsync(fd: int) -> None:
        nonlocal synced
        if Path(f"/proc/self/fd/{fd}").readlink() == log:
            synced = b"".join(written)
        real_fsync(fd)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    async with opened(path):
        assert left
        assert synced == left


async def test_a_log_that_cannot_be_written_again_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store does not open, and names the file and the reason; nothing is changed."""
    kill_while_committing(path, 0)
    left = {one.name: one.read_bytes() for one in path.parent.iterdir()}

    def fail(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StoreUnavailableError, match=r"store\.sqlite.*write-ahead log: Input/output error"):
        await SqlStore.open(path)

    monkeypatch.undo()
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == left
    async with opened(path) as store:
        assert await store.keys(after=None, limit=1)


async def test_a_store_whose_logs_name_cannot_be_synced_does_not_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed into a log without a name is lost in a power cut; SQLite itself would go on."""
    log = path.with_name("store.sqlite-wal")
    real = os.fsync

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink() == path.parent and log.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreUnavailableError, match="folder cannot be synced: Input/output error"):
        await SqlStore.open(path)

    monkeypatch.undo()
    async with opened(path):
        assert log.exists()
