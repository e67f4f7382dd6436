"""CreateBackup: what leaves the daemon, what is recorded, and how it ends: `kmsd.service.backups`."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
from pathlib import Path

import pytest

from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.backups import (
    CREATE_BACKUP,
    MAX_DATAGRAM_BYTES,
    CreateBackupRequest,
    Kept,
    Sent,
    Told,
    decode_told,
    encode,
)
from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, KmsError, SealedError, ThrottlingError
from kmsd.audit.record import Kind
from kmsd.backup.reading import BackupReader
from kmsd.material.hierarchy import Hierarchy
from kmsd.service.restoring import Restoration
from kmsd.store.base import Insert, StoreUnavailableError
from kmsd.store.sql import SqlStore
from tests.store.rows import credential_row, default_key_row, grant_row
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate, kind_is


async def begin(service: Embedded) -> socket.socket:
    """Ask for a backup and return the end that comes with the answer."""
    batch = await service.reply_to(ROOT, CREATE_BACKUP, CreateBackupRequest())
    service.response(batch, CREATE_BACKUP)
    [descriptor] = batch.descriptors
    channel = socket.socket(fileno=descriptor)
    channel.setblocking(False)
    return channel


async def hear(channel: socket.socket) -> Told:
    datagram = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(channel, MAX_DATAGRAM_BYTES), 10)
    assert datagram, "the daemon closed its end"
    return decode_told(datagram)


async def receive(channel: socket.socket) -> tuple[bytes, Sent]:
    """All pieces, and what the daemon says that they are together."""
    data = b""
    while (told := await hear(channel)).sent is None:
        assert told.error is None
        assert told.piece is not None
        data += told.piece
    return data, told.sent


async def keep(channel: socket.socket, sent: Sent) -> Told:
    """Say that it is kept; return what the daemon says to that, after which it closes its end."""
    channel.send(encode(Kept(sha256=sent.sha256)))
    told = await hear(channel)
    assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(channel, 1), 10) == b""
    return told


async def failure(channel: socket.socket) -> KmsError:
    """What the daemon says at last, whatever it has sent before."""
    while (told := await hear(channel)).error is None:
        assert told.recorded is None
    return told.error.error()


async def backup(service: Embedded) -> bytes:
    """A whole backup that was kept."""
    with await begin(service) as channel:
        data, sent = await receive(channel)
        assert (await keep(channel, sent)).recorded is not None
    return data


async def opened(service: Embedded, data: bytes, directory: Path) -> SqlStore:
    """The store that a backup makes, with the same token."""
    hierarchy = Hierarchy(service.arena, service.root, bytes)
    reader = BackupReader(io.BytesIO(data).read, "FILE")
    restoration = Restoration(reader, "FILE", root=service.root, hierarchy=hierarchy, arena=service.arena)
    await restoration.unlock(None)
    return await restoration.build(directory / "restored.sqlite")


async def recorded(service: Embedded, code: str | None) -> None:
    """Wait for the outcome in the trail, and until another backup can be made."""
    async with asyncio.timeout(10):
        while service.backups._task is not None:  # noqa: ASYNC110 - it ends by itself
            await asyncio.sleep(0.001)
    assert service.newest()["eventType"] == Kind.OUTCOME.value
    assert service.newest().get("errorCode") == code


async def test_a_backup_has_every_row(service: Embedded, tmp_path: Path) -> None:
    """Those of keys, aliases and secrets, as they were when it was asked for."""
    names = [await service.make_key(ALICE, description=f"key {number}") for number in range(50)]
    data = await backup(service)
    await service.make_key(ALICE, description="later")

    store = await opened(service, data, tmp_path)
    try:
        rows = await store.keys(after=None, limit=1000)
        assert {f"key {number}" for number in range(50)} == {row.description for row in rows}
        assert {name.rpartition("/")[2] for name in names} == {row.key_id for row in rows}
        assert await store.settings() == await service.store.settings()
        assert await store.material(rows[0].key_id, 1) == await service.store.material(rows[0].key_id, 1)
    finally:
        await store.close()


async def test_a_backup_has_what_hangs_on_keys(service: Embedded, tmp_path: Path) -> None:
    """Grants, whose default key is which, and units' credentials; the state row counts them."""
    changes = [Insert(grant_row()), Insert(default_key_row()), Insert(credential_row())]
    await service.store.commit("m", changes)

    store = await opened(service, await backup(service), tmp_path)
    try:
        assert await store.grant(grant_row().grant_id) == grant_row()
        assert await store.default_key(default_key_row().owner) == default_key_row()
        assert await store.credentials(unit=None, after=None, limit=9) == [credential_row()]
        assert (await store.check_state()).findings == ()
    finally:
        await store.close()


async def test_what_is_in_a_backup_cannot_be_read(service: Embedded) -> None:
    """Descriptions and policies are inside."""
    await service.make_key(ALICE, description="of the payroll")
    data = await backup(service)

    assert b"payroll" in (service.directory / "store.sqlite-wal").read_bytes()
    assert b"payroll" not in data


async def test_the_intent_stands_before_anything_leaves_and_the_outcome_before_the_client_is_told(
    service: Embedded,
) -> None:
    """With who asked, how long it was, its hash, and which changes are in it."""
    with await begin(service) as channel:
        intent = service.newest()
        assert (intent["eventType"], intent["eventName"], intent["userIdentity"]["uid"]) == (
            Kind.INTENT.value,
            "CreateBackup",
            0,
        )
        data, sent = await receive(channel)
        assert service.newest() == intent
        assert (sent.length, sent.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (await keep(channel, sent)).recorded is not None
    record = service.newest()
    assert (record["eventType"], record["requestID"], record["readOnly"]) == (
        Kind.OUTCOME.value,
        intent["requestID"],
        False,
    )
    assert "errorCode" not in record
    details = record["additionalEventData"]
    assert (details["bytes"], details["sha256"], details["backupSequence"]) == (
        len(data),
        sent.sha256,
        sent.store_sequence,
    )


async def test_only_what_was_kept_is_the_last_backup(service: Embedded) -> None:
    """Status tells of it, also when it has been sealed since, and a second takes its place."""
    assert (await service.ask(BOB, STATUS, StatusRequest())).last_backup is None
    with await begin(service) as channel:
        await receive(channel)
    await recorded(service, "FileAccessException")
    assert (await service.ask(BOB, STATUS, StatusRequest())).last_backup is None

    await backup(service)
    data = await backup(service)
    status = await service.ask(BOB, STATUS, StatusRequest())
    assert status.last_backup is not None
    assert status.last_backup.sha256 == hashlib.sha256(data).hexdigest()
    assert status.store_sequence == status.last_backup.store_sequence + 1  # that of taking note of it
    await service.unsealing.seal()
    assert (await service.ask(BOB, STATUS, StatusRequest())).last_backup == status.last_backup


async def test_others_get_no_backup(service: Embedded) -> None:
    """It is for administrators."""
    for session in (ALICE, BOB):
        with pytest.raises(AccessDeniedError):
            await service.ask(session, CREATE_BACKUP, CreateBackupRequest())


async def test_there_is_one_at_a_time(service: Embedded) -> None:
    """Each holds a copy of the store."""
    with await begin(service) as channel:
        with pytest.raises(ThrottlingError):
            await service.ask(ROOT, CREATE_BACKUP, CreateBackupRequest())
        _, sent = await receive(channel)
        await keep(channel, sent)
    await backup(service)


async def test_who_goes_away_ends_it(service: Embedded) -> None:
    """That is on record, nothing is left of it, and another can be made."""
    (await begin(service)).close()
    await recorded(service, "FileAccessException")
    assert sorted(path.name for path in service.directory.glob("snapshot*")) == []
    await backup(service)


async def test_who_takes_nothing_is_not_waited_for(service: Embedded) -> None:
    """There is a deadline for each piece, and one for keeping it."""
    for number in range(70):
        await service.make_key(ALICE, description=str(number) * 4000)
    with await begin(service) as channel:
        await recorded(service, "FileAccessException")
        assert "took nothing" in service.newest()["errorMessage"]
    with await begin(service) as channel:
        assert "did not keep" in (await failure(channel)).message


@pytest.mark.parametrize("said", [encode(Kept(sha256="ab" * 32)), b"\xff", b"\x80"], ids=["other", "nonsense", "empty"])
async def test_another_file_is_not_the_backup(service: Embedded, said: bytes) -> None:
    """Whatever the client says that it has kept."""
    with await begin(service) as channel:
        await receive(channel)
        channel.send(said)
        assert (await failure(channel)).code == "ProtocolException"
    assert service.newest()["errorCode"] == "ProtocolException"
    assert service.backups.last is None


async def test_a_trail_that_cannot_be_written_prevents_it(service: Embedded) -> None:
    """Without an intent, or one that is not on the disk, nothing leaves; without an outcome the client is told why."""
    service.trail.refuses = kind_is(Kind.INTENT)
    with pytest.raises(AuditUnavailableError):
        await service.ask(ROOT, CREATE_BACKUP, CreateBackupRequest())
    service.trail.refuses, service.trail.unsyncable = None, True
    with await begin(service) as channel:
        told = await hear(channel)
        assert (told.piece, told.error is not None) == (None, True)
    service.trail.unsyncable = False
    service.trail.refuses = kind_is(Kind.OUTCOME)
    with await begin(service) as channel:
        _, sent = await receive(channel)
        told = await keep(channel, sent)
    assert told.error is not None
    assert told.error.code == "AuditUnavailableException"


async def test_a_store_that_fails_is_told(service: Embedded) -> None:
    """Whether the note was taken stands in the record."""
    service.store.faults["commit"] = StoreUnavailableError("store: no space left on device")
    with await begin(service) as channel:
        _, sent = await receive(channel)
        told = await keep(channel, sent)
    assert told.error is not None
    assert told.error.code == "StorageException"
    assert service.newest()["additionalEventData"]["committed"] is False

    del service.store.faults["commit"]
    service.store.faults["committing"] = StoreUnavailableError("store: the disk failed to sync")
    with await begin(service) as channel:
        _, sent = await receive(channel)
        await keep(channel, sent)
    assert service.newest()["additionalEventData"]["committed"] is True


async def test_sealing_ends_it_and_takes_its_key(service: Embedded) -> None:
    """The client is told, and it is on record."""
    used = service.arena.used_bytes
    with await begin(service) as channel:
        await hear(channel)
        await service.unsealing.seal()
        assert service.arena.used_bytes < used
        assert (await failure(channel)).code == SealedError.code
    assert service.newest()["errorCode"] == SealedError.code


async def test_sealing_ends_what_has_only_just_begun(service: Embedded) -> None:
    """Before a first step was made, too: nothing of it leaves, its client is told, and its intent has an outcome."""
    with await begin(service) as channel:
        # No turn of the loop has passed since the answer.
        await service.gate.close(10)
        told = await hear(channel)
    assert told.error is not None
    assert told.error.code == SealedError.code
    await recorded(service, SealedError.code)


async def test_what_is_kept_is_noted_before_the_keys_go(service: Embedded) -> None:
    """Sealing waits for it."""
    gate = service.store.gates["commit"] = Gate()
    with await begin(service) as channel:
        _, sent = await receive(channel)
        channel.send(encode(Kept(sha256=sent.sha256)))
        await gate.arrived.wait()
        sealing = asyncio.ensure_future(service.unsealing.seal())
        await asyncio.sleep(0.01)
        assert not sealing.done()
        gate.opened.set()
        await sealing
        assert (await hear(channel)).recorded is not None
    assert service.backups.last is not None
    assert "errorCode" not in service.newest()


async def test_a_stop_ends_it(service: Embedded) -> None:
    """Whoever waits is told."""
    with await begin(service) as channel:
        await hear(channel)
        await service.backups.close()
        assert (await failure(channel)).code == "ShuttingDownException"
    assert service.newest()["errorCode"] == "ShuttingDownException"


async def test_sealed_there_is_nothing_to_back_up_with(service: Embedded) -> None:
    """The keys that open a backup are away."""
    await service.unsealing.seal()
    with pytest.raises(SealedError):
        await service.ask(ROOT, CREATE_BACKUP, CreateBackupRequest())
