"""Ways to alter a backup, each of them found when it is opened with the right token: nothing of it is used then."""

from __future__ import annotations

import asyncio
import io
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from kmsd.backup.chunks import SEALED_CHUNK_BYTES
from kmsd.backup.header import COMMITMENT_BYTES, LENGTH_BYTES, MAGIC, BackupError, BackupHeader
from kmsd.backup.reading import BackupReader
from kmsd.hsm.root import WrappedKeyInvalidError
from kmsd.material.hierarchy import Hierarchy
from kmsd.memory.arena import Arena
from kmsd.service.restoring import Restoration
from tests.service.test_backups import backup
from tests.support.embedded import ALICE, Embedded, MemoryRoot


class Backup(NamedTuple):
    """The parts of a backup."""

    header: BackupHeader
    commitment: bytes
    chunks: list[bytes]

    @classmethod
    def of(cls, data: bytes) -> Backup:
        header = BackupReader(io.BytesIO(data).read, "FILE").header
        start = len(MAGIC) + LENGTH_BYTES
        body = start + int.from_bytes(data[len(MAGIC) : start], "big")
        rest = data[body + COMMITMENT_BYTES :]
        chunks = [rest[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(rest), SEALED_CHUNK_BYTES)]
        return cls(header, data[body : body + COMMITMENT_BYTES], chunks)

    def file(self) -> bytes:
        header = msgspec.json.encode(self.header)
        return MAGIC + len(header).to_bytes(LENGTH_BYTES, "big") + header + self.commitment + b"".join(self.chunks)

    def with_header(self, **members: object) -> Backup:
        return self._replace(header=replace(self.header, **members))

    def with_domain_key(self, **members: object) -> Backup:
        return self.with_header(domain_keys=(replace(self.header.domain_keys[0], **members),))

    def with_data_key(self, **members: object) -> Backup:
        return self.with_header(data_key=replace(self.header.data_key, **members))

    def with_chunks(self, *chunks: bytes) -> Backup:
        return self._replace(chunks=[*chunks])


class Two(NamedTuple):
    """Two backups of one store, the second with one more key in it; `token` opens both."""

    first: Backup
    second: Backup
    token: MemoryRoot


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    async def make() -> Two:
        service = await Embedded.open(tmp_path_factory.mktemp("tampered"))
        try:
            for number in range(30):
                await service.make_key(ALICE, description=str(number) * 4000)
            first = Backup.of(await backup(service))
            await service.make_key(ALICE, description="last" * 2000)
            return Two(first, Backup.of(await backup(service)), service.root)
        finally:
            await service.close()

    with asyncio.Runner() as runner:
        return runner.run(make())


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(128 * 1024)
    yield arena
    arena.wipe()


async def restored(data: bytes, token: MemoryRoot, arena: Arena, directory: Path) -> int:
    """How many rows the store has that a backup makes; raises BackupError."""
    reader = BackupReader(io.BytesIO(data).read, "FILE")
    restoration = Restoration(reader, "FILE", root=token, hierarchy=Hierarchy(arena, token, os.urandom), arena=arena)
    await restoration.unlock(None)
    store = await restoration.build(directory / "store.sqlite")
    try:
        return await store.verify_all()
    finally:
        await store.close()


async def test_nothing_altered_is_found_in_what_is_whole(two: Two, arena: Arena, tmp_path: Path) -> None:
    """Both have all their rows, and are what the parts of them make."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    assert len(two.first.chunks) > 2
    before = await restored(two.first.file(), two.token, arena, tmp_path / "first")
    assert await restored(two.second.file(), two.token, arena, tmp_path / "second") > before


def _flipped(data: bytes, at: int = 40) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


ALTERED: dict[str, Callable[[Backup, Backup], Backup | bytes]] = {
    "another time": lambda one, _: one.with_header(creation_ms=one.header.creation_ms + 1),
    "another account": lambda one, _: one.with_header(account="999999999999"),
    "another region": lambda one, _: one.with_header(region="eu-central-1"),
    "another store": lambda one, _: one.with_header(store_id=str(uuid.UUID(int=1))),
    "a later state": lambda one, _: one.with_header(store_sequence=one.header.store_sequence + 5),
    "another head of the trail": lambda one, two: one.with_header(audit_hash=two.header.audit_hash),
    "another kmsd": lambda one, _: one.with_header(version="9.9.9"),
    "a domain key changed": lambda one, _: one.with_domain_key(wrapped=_flipped(one.header.domain_keys[0].wrapped, 5)),
    "a generation changed": lambda one, _: one.with_domain_key(generation=7),
    "a recovery wrap added": lambda one, _: one.with_domain_key(recovery_wrapped=bytes(113)),
    "a domain key added": lambda one, _: one.with_header(
        domain_keys=(*one.header.domain_keys, replace(one.header.domain_keys[0], domain_key_id="another"))
    ),
    "a domain key twice": lambda one, _: one.with_header(domain_keys=one.header.domain_keys * 2),
    "a store that no kmsd named": lambda one, _: one.with_header(store_id="a store"),
    "a huge data key": lambda one, _: one.with_data_key(wrapped=b"\x01" * 300_000),
    "the data key changed": lambda one, _: one.with_data_key(wrapped=_flipped(one.header.data_key.wrapped)),
    "another backup's data key": lambda one, two: one.with_header(data_key=two.header.data_key),
    "another name": lambda one, two: one.with_data_key(backup_id=two.header.data_key.backup_id),
    "another commitment": lambda one, two: one._replace(commitment=two.commitment),
    "another backup's header": lambda one, two: one._replace(header=two.header),
    "another backup's header and commitment": lambda one, two: two._replace(chunks=one.chunks),
    "another backup's last chunk": lambda one, two: one.with_chunks(*one.chunks[:-1], two.chunks[-1]),
    "a chunk changed": lambda one, _: one.with_chunks(_flipped(one.chunks[0]), *one.chunks[1:]),
    "the last chunk changed": lambda one, _: one.with_chunks(*one.chunks[:-1], _flipped(one.chunks[-1])),
    "a chunk removed": lambda one, _: one.with_chunks(*one.chunks[1:]),
    "the last chunk removed": lambda one, _: one.with_chunks(*one.chunks[:-1]),
    "all chunks removed": lambda one, _: one.with_chunks(),
    "a chunk repeated": lambda one, _: one.with_chunks(one.chunks[0], *one.chunks),
    "two chunks exchanged": lambda one, _: one.with_chunks(one.chunks[1], one.chunks[0], *one.chunks[2:]),
    "the end cut off": lambda one, _: one.file()[:-1],
    "a byte behind the end": lambda one, _: one.file() + b"\0",
    "a backup behind it": lambda one, two: one.file() + two.file(),
    "the magic line": lambda one, _: b"K" + one.file()[1:],
    "a member added": lambda one, _: (
        MAGIC
        + (len(msgspec.json.encode(one.header)) + 6).to_bytes(LENGTH_BYTES, "big")
        + msgspec.json.encode(one.header)[:-1]
        + b',"a":1}'
        + one.commitment
        + b"".join(one.chunks)
    ),
}


@pytest.mark.parametrize("name", ALTERED)
async def test_what_was_altered_is_found(two: Two, arena: Arena, tmp_path: Path, name: str) -> None:
    """And the file is named, whatever it was."""
    altered = ALTERED[name](two.first, two.second)
    data = altered if isinstance(altered, bytes) else altered.file()
    assert data != two.first.file()

    with pytest.raises(BackupError, match=r"^FILE: "):
        await restored(data, two.token, arena, tmp_path)


async def test_another_token_is_told_from_a_changed_backup(two: Two, arena: Arena, tmp_path: Path) -> None:
    """As far as one can: whoever brings the wrong token learns that it may be the wrong one."""
    other = MemoryRoot()
    other.fault = WrappedKeyInvalidError("not of this token")
    with pytest.raises(BackupError, match="this token does not open it: the backup was made with another"):
        await restored(two.first.file(), other, arena, tmp_path)
