"""A store made of a backup, as the commands make it: `kmsd.service.restoring`."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from kmsd.backup.header import BackupError
from kmsd.backup.reading import BackupReader
from kmsd.hsm.root import PinSource, WrappedDomainKey
from kmsd.material.hierarchy import Hierarchy
from kmsd.service.restoring import Restoration
from kmsd.store.base import Insert
from kmsd.store.rows import AnchorRow, BackupRow
from kmsd.store.transfer import Snapshot
from tests.service.test_backups import backup
from tests.support.embedded import ALICE, Embedded, MemoryRoot

MADE = BackupRow(creation_ms=1, store_sequence=2, sha256="ab" * 32, length=3, version=1)
ANCHOR = AnchorRow(seq=1, prev="00" * 32, event_time="2026-01-01T00:00:00.000Z", key_id="k", signature="s", version=1)


class OtherRoot(MemoryRoot):
    """A token that wraps otherwise than the one that a backup was made with."""

    async def wrap_domain_key(
        self, domain_key_id: str, generation: int, key: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        await self._login(pin)
        return WrappedDomainKey(domain_key_id, generation, bytes(one ^ 0xFF for one in key))


def restoration(service: Embedded, data: bytes, root: MemoryRoot) -> Restoration:
    reader = BackupReader(io.BytesIO(data).read, "FILE")
    return Restoration(
        reader, "FILE", root=root, hierarchy=Hierarchy(service.arena, root, os.urandom), arena=service.arena
    )


async def test_a_restored_store_is_no_older_one_put_back(service: Embedded, tmp_path: Path) -> None:
    """It counts on from what trail and token have seen, forgets the old trail's anchor, and has this as last backup."""
    await service.store.commit("anchored", [Insert(ANCHOR)])
    data = await backup(service)
    opened = restoration(service, data, service.root)
    await opened.unlock(None)
    store = await opened.build(tmp_path / "store.sqlite")
    try:
        before = await store.domain_keys()
        assert await store.anchor() == ANCHOR
        await opened.adopt(store, made=MADE, seen=500, to_new_token=False)

        assert store.sequence > 500
        assert await store.anchor() is None
        last = await store.last_backup()
        assert last is not None
        assert last.sha256 == MADE.sha256
        assert await store.domain_keys() == before
        assert (await store.check_state()).findings == ()
    finally:
        await store.close()


async def test_onto_a_new_token_every_domain_key_is_wrapped_anew(service: Embedded, tmp_path: Path) -> None:
    """What recovery needs stays, and what the new token remembers of this store counts, too."""
    data = await backup(service)
    root = OtherRoot()
    opened = restoration(service, data, root)
    await opened.unlock(None)
    store_id = BackupReader(io.BytesIO(data).read, "FILE").header.store_id
    await root.keep_anchor(store_id, 700)
    store = await opened.build(tmp_path / "store.sqlite")
    try:
        [before] = await store.domain_keys()
        await opened.adopt(store, made=MADE, seen=0, to_new_token=True)

        [after] = await store.domain_keys()
        assert after.wrapped == bytes(one ^ 0xFF for one in before.wrapped)
        assert msgspec.structs.replace(after, wrapped=before.wrapped, version=before.version) == before
        assert store.sequence > 700
    finally:
        await store.close()


def _without_last(records: list[bytes]) -> list[bytes]:
    keys = [record for record in records if msgspec.msgpack.decode(record)[0] == "keys"]
    return [record for record in records if record != keys[-1]]


def _with_another_policy(records: list[bytes]) -> list[bytes]:
    return [record.replace(b"kms:*", b"kms:+") for record in records]


@pytest.mark.parametrize(
    ("change", "words"),
    [(_without_last, "keys: 1 row is missing"), (_with_another_policy, "does not authenticate")],
    ids=["a row left out", "a row changed"],
)
async def test_rows_are_not_believed_because_they_were_sealed(
    service: Embedded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[bytes]], list[bytes]],
    words: str,
) -> None:
    """Even where somebody had the backup's own key: each has its MAC, and all together the state row."""
    for _ in range(2):
        await service.make_key(ALICE)
    batches = Snapshot.batches

    async def changed(self: Snapshot) -> AsyncIterator[bytes]:
        stream = b"".join([piece async for piece in batches(self)])
        records = []
        while stream:
            end = 4 + int.from_bytes(stream[:4], "big")
            records.append(stream[4:end])
            stream = stream[end:]
        for record in change(records):
            yield len(record).to_bytes(4, "big") + record

    monkeypatch.setattr(Snapshot, "batches", changed)
    opened = restoration(service, await backup(service), service.root)
    await opened.unlock(None)
    with pytest.raises(BackupError, match=f"^FILE: it holds what no kmsd left: .*{words}"):
        await opened.build(tmp_path / "store.sqlite")
