"""Snapshots of a store in use, and stores made of them: `kmsd.store.transfer`."""

# ruff: noqa: ASYNC221, ASYNC240 - one thing after the other is what these tests are about
import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.api.errors import IntegrityError, SealedError
from kmsd.store.base import Delete, Insert, Replace, StoreError, StoreFormatError, StoreUnavailableError
from kmsd.store.sql import SqlStore
from kmsd.store.transfer import SNAPSHOT_NAME, restore_into
from tests.store.rows import (
    KEY_IDS,
    alias_row,
    domain_key_row,
    housekeeping_row,
    key_row,
    material_row,
    opened,
    secret_row,
    settings_row,
    tombstone_row,
    unseal,
    usage_row,
)
from tests.store.test_migrations import contents_of, files_of, schema_of

ROWS = [key_row(one, policy="x" * 3000) for one in KEY_IDS]


# Keys, material, a domain key, a secret, settings; use, tombstone, housekeeping; mutations; the state row.
ROW_COUNT = 4 + 1 + 1 + 1 + 1 + 3 + 3 + 1


async def fill(store: SqlStore) -> None:
    await store.commit("one", [Insert(row) for row in (*ROWS, material_row(), alias_row(), domain_key_row())])
    await store.commit("two", [Insert(secret_row()), Insert(settings_row()), Replace(key_row(due_ms=7, version=2))])
    await store.commit("three", [Delete(alias_row()), *map(Insert, (usage_row(), tombstone_row(), housekeeping_row()))])


async def streamed(store: SqlStore) -> bytes:
    """The whole stream of a snapshot."""
    snapshot = await store.snapshot(snapshot_path(store))
    try:
        return b"".join([batch async for batch in snapshot.batches()])
    finally:
        await snapshot.close()


def snapshot_path(store: SqlStore) -> Path:
    return Path(store._database.name.removeprefix("store ")).with_name(SNAPSHOT_NAME)


async def restored(path: Path, stream: bytes, size: int = 1000) -> None:
    await restore_into(path, (stream[at : at + size] for at in range(0, len(stream), size)))


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
async def test_a_restored_store_is_the_one_that_was_copied(path: Path, size: int) -> None:
    """Tables and rows are the same to the letter, and the state row tells of them; pieces may be of any size."""
    other = path.with_name("other.sqlite")
    async with opened(path) as store:
        await fill(store)
        await restored(other, await streamed(store), size)

    assert schema_of(other) == schema_of(path)
    assert contents_of(other) == contents_of(path)
    assert other.stat().st_mode & 0o777 == 0o600
    assert sorted(files_of(path.parent)) == ["other.sqlite", "store.sqlite"]
    async with opened(other, mac_key=None) as store:
        unseal(store)
        report = await store.check_state()
        assert (report.findings, report.sequence) == ((), 3)
        assert await store.verify_all() == ROW_COUNT
        assert await store.keys_due(7, limit=9) == [key_row(due_ms=7, version=2)]
        await store.commit("four", [Replace(key_row(version=3))])


async def test_a_stream_of_an_older_store_makes_one_of_today(path: Path) -> None:
    """Keys had no column for when something falls due: nothing does, and the state row is as true as it was."""
    async with opened(path) as store:
        await store.commit("m", [Insert(row) for row in (*ROWS, material_row())])
        stream = await streamed(store)
    path.unlink()
    older = b"".join(map(before_due_dates, records_of(stream)))
    assert len(older) < len(stream)

    await restored(path, older)

    async with opened(path) as store:
        assert (await store.check_state()).findings == ()
        assert await store.keys(after=None, limit=9) == ROWS
        assert await store.next_due_ms() is None


def records_of(stream: bytes) -> Iterator[list[Any]]:
    while stream:
        behind = 4 + int.from_bytes(stream[:4], "big")
        yield msgspec.msgpack.decode(stream[4:behind])
        stream = stream[behind:]


def before_due_dates(record: list[Any]) -> bytes:
    """A record of the stream as it was when keys had no `due_ms`."""
    if record[0] == "keys":
        del record[3]
    encoded = msgspec.msgpack.encode(record)
    return len(encoded).to_bytes(4, "big") + encoded


async def test_a_snapshot_is_of_one_commit(store: SqlStore) -> None:
    """What is committed while it is read is not in it; the store does not wait for its reader."""
    await fill(store)
    snapshot = await store.snapshot(snapshot_path(store))
    batches = snapshot.batches()
    first = await anext(batches)
    await store.commit("later", [Replace(key_row(version=3)), Insert(alias_row("alias/later"))])
    rest = [batch async for batch in batches]

    assert (snapshot.sequence, store.sequence) == (3, 4)
    assert b"alias/later" not in b"".join([first, *rest])
    await snapshot.close()
    await snapshot.close()


async def test_a_snapshot_comes_in_pieces(store: SqlStore) -> None:
    """However many rows there are, one piece is some tens of kilobytes; a second reader gets the same."""
    await store.commit("m", [Insert(key_row(f"{number:04}", policy="x" * 2000)) for number in range(300)])
    snapshot = await store.snapshot(snapshot_path(store))
    sizes = [len(batch) async for batch in snapshot.batches()]
    again = [len(batch) async for batch in snapshot.batches()]
    await snapshot.close()

    assert sum(sizes) > 600_000
    assert max(sizes) < 100_000
    assert sizes == again


async def test_a_snapshot_leaves_no_file(path: Path) -> None:
    """Its file has no name when it is read; one that a killed daemon left goes with the next start."""
    leftover = path.with_name(SNAPSHOT_NAME)
    leftover.write_bytes(b"left")
    async with opened(path) as store:
        assert not leftover.exists()
        await fill(store)
        leftover.write_bytes(b"left")
        snapshot = await store.snapshot(leftover)
        assert sorted(files_of(path.parent)) == ["store.sqlite", "store.sqlite-wal"]
        await snapshot.close()


async def test_only_an_unsealed_and_checked_store_is_copied(path: Path) -> None:
    """A store that nobody vouches for is not put into a backup; nor is one without a row."""
    async with opened(path, mac_key=None) as store:
        with pytest.raises(SealedError):
            await store.snapshot(snapshot_path(store))
        unseal(store)
        with pytest.raises(IntegrityError):
            await store.snapshot(snapshot_path(store))
        await store.check_state()
        with pytest.raises(StoreUnavailableError, match="empty"):
            await store.snapshot(snapshot_path(store))


async def test_a_snapshot_that_cannot_be_written_is_refused(store: SqlStore) -> None:
    """The message names the file; the store goes on."""
    await fill(store)
    missing = snapshot_path(store).parent / "missing" / "snapshot"

    with pytest.raises(StoreUnavailableError, match="missing/snapshot: No such file"):
        await store.snapshot(missing)

    await store.commit("four", [])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_up(folder: Path) -> None:
    """Leave a few pages of room, so that what fails has begun."""
    with contextlib.suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(folder / "filling", (folder / "filling").stat().st_size - 3 * 4096)


@pytest.mark.root
async def test_without_room_there_is_no_snapshot_and_no_restored_store(disk: Path, path: Path) -> None:
    """Both say so and leave nothing that takes room; the store goes on."""
    async with opened(disk / "store.sqlite") as store:
        await fill(store)
        stream = await streamed_elsewhere(store, path)
        fill_up(disk)
        before = sorted(files_of(disk))

        with pytest.raises(StoreUnavailableError, match="full"):
            await store.snapshot(disk / SNAPSHOT_NAME)
        with pytest.raises(StoreUnavailableError, match=r"full|No space"):
            await restored(disk / "other.sqlite", stream)

        assert sorted(files_of(disk)) == before
        assert await store.verify_all() == ROW_COUNT


async def streamed_elsewhere(store: SqlStore, path: Path) -> bytes:
    snapshot = await store.snapshot(path)
    stream = b"".join([batch async for batch in snapshot.batches()])
    await snapshot.close()
    return stream


async def test_nothing_is_restored_over_a_store(path: Path) -> None:
    """Whatever has the name stays, a link that leads nowhere as well, and no earlier log becomes this one's."""
    async with opened(path) as store:
        await fill(store)
        stream = await streamed(store)
    before = path.read_bytes()
    link = path.with_name("link")
    link.symlink_to(path.with_name("nowhere"))

    logs = [path.with_name("other.sqlite-wal"), path.with_name("another.sqlite-journal")]
    for log in logs:
        log.write_bytes(b"of another store")

    for there in (path, link, path.with_name("other.sqlite"), path.with_name("another.sqlite")):
        with pytest.raises(StoreUnavailableError, match="is there"):
            await restored(there, stream)

    assert path.read_bytes() == before
    assert {log.read_bytes() for log in logs} == {b"of another store"}
    assert link.is_symlink()


async def test_what_is_no_stream_makes_no_store(path: Path) -> None:
    """Whatever is wrong with it is told by its number, without what it holds; nothing is left."""
    async with opened(path.with_name("other.sqlite")) as store:
        await fill(store)
        stream = await streamed(store)
    path.with_name("other.sqlite").unlink()

    def record(*columns: object) -> bytes:
        encoded = msgspec.msgpack.encode(columns)
        return len(encoded).to_bytes(4, "big") + encoded

    whole = ("secrets", "canary", 1, b"content", b"mac")
    wrong = [
        stream[:-1],
        stream[1:],
        stream + b"\x00",
        stream + record(),
        stream + record("nonsense", "canary", 1, b"", b""),
        stream + record(1, 2),
        stream + record(["secrets"], "canary"),
        stream + record("secrets", "canary"),
        stream + record(*whole, "more"),
        stream + record("secrets", "canary", "1", b"", b""),
        stream + record("secrets", b"canary", 1, b"", b""),
        stream + record("keys", "canary", 1, b"", b""),
        stream + record("keys", "canary", 1, "canary", 1, b"", b""),
        stream + record("secrets", "canary", 1 << 63, b"", b""),
        stream + record("secrets", "canary", True, b"", b""),
        stream + record(*whole) + record(*whole),
        stream + (1 << 31).to_bytes(4, "big"),
        stream + b"\x00\x00\x00\x01\xc1",
        stream + b"\x00\x00\x00\x04\x92\xa2\xff\xff",
        b"canary" * 10_000,
    ]
    for number, one in enumerate(wrong):
        with pytest.raises(StoreError) as refused:
            await restored(path, one)
        assert isinstance(refused.value, StoreFormatError), number
        assert "canary" not in str(refused.value)
        assert files_of(path.parent) == {}


async def test_a_source_that_fails_leaves_nothing(path: Path) -> None:
    """Its error comes through, and so does the cancellation of the task."""
    async with opened(path.with_name("other.sqlite")) as store:
        await fill(store)
        stream = await streamed(store)
    path.with_name("other.sqlite").unlink()

    def failing() -> Iterator[bytes]:
        yield stream
        raise ValueError("of the source")

    with pytest.raises(ValueError, match="of the source"):
        await restore_into(path, failing())
    for turns in range(4):
        restoring = asyncio.create_task(restored(path, stream * 1, 10))
        for _ in range(turns):
            await asyncio.sleep(0.002)
        restoring.cancel()
        await asyncio.wait([restoring])
        path.unlink(missing_ok=True)
        assert files_of(path.parent) == {}


async def test_one_store_is_restored_at_a_time(path: Path) -> None:
    """A second one in the same folder is refused, and does the first no harm."""
    async with opened(path.with_name("other.sqlite")) as store:
        await fill(store)
        stream = await streamed(store)
    seconds = []

    def pieces() -> Iterator[bytes]:
        yield stream[:5000]
        seconds.append(asyncio.get_running_loop().create_task(restored(path, stream)))
        yield stream[5000:]

    await restore_into(path, pieces())

    with pytest.raises(StoreUnavailableError, match=r"being restored|is there"):
        await seconds[0]
    async with opened(path) as store:
        assert await store.verify_all() == ROW_COUNT


async def test_a_restore_that_was_killed_can_be_repeated(path: Path) -> None:
    """There is no store until it is whole, and what was left of the draft is no obstacle."""
    async with opened(path.with_name("other.sqlite")) as store:
        await fill(store)
        stream = path.with_name("stream")
        stream.write_bytes(await streamed(store))
    program = (
        "import asyncio, os, pathlib, sys; from kmsd.store.transfer import restore_into\n"
        "def pieces():\n"
        "    yield pathlib.Path(sys.argv[2]).read_bytes() * 1\n"
        "    os._exit(9)\n"
        "asyncio.run(restore_into(pathlib.Path(sys.argv[1]), pieces()))"
    )

    child = subprocess.run([sys.executable, "-c", program, str(path), str(stream)], check=False)

    assert child.returncode == 9
    assert not path.exists()
    await restored(path, stream.read_bytes())
    async with opened(path) as store:
        assert await store.verify_all() == ROW_COUNT
    assert sorted(files_of(path.parent)) == ["other.sqlite", "store.sqlite", "stream"]
