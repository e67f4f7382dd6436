"""Backups while the service runs: a consistent copy of the store goes to the client, sealed, piece by piece.

1. Write the `intent` record and give the client its end of a socketpair; sync the record before anything leaves.
2. Take a snapshot of the store, which goes on meanwhile.
3. Seal its records chunk by chunk under a data key of this backup alone, and send each. Nothing holds the whole.
4. The client answers when the file is on its disk, under its name. Only then is it the last backup: commit that, write
   the `outcome` record, and tell the client.

Until step 4 a seal or a stop ends the backup at once, since it holds a key; from there on both wait for its record.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

import kmsd
from kmsd.api import backups as api
from kmsd.api.backups import MAX_PIECE_BYTES, Kept, Recorded, Sent, Told
from kmsd.api.errors import (
    AuditUnavailableError,
    DaemonError,
    FileAccessError,
    KmsError,
    KMSInternalError,
    ProtocolError,
    SealedError,
    ShuttingDownError,
    ThrottlingError,
)
from kmsd.api.failure import Failure
from kmsd.api.operation import Operation
from kmsd.audit.record import Kind, Record
from kmsd.backup.chunks import ChunkSealer
from kmsd.backup.header import DATA_KEY_BYTES, BackupHeader, DataKey, WrappedKey, derive_keys, serialize
from kmsd.logs import Logger
from kmsd.material.hierarchy import Hierarchy, Place
from kmsd.memory.arena import Arena
from kmsd.service.call import Call
from kmsd.service.gate import Gate
from kmsd.service.identifiers import Arns
from kmsd.service.table import WithDescriptors
from kmsd.service.telling import told
from kmsd.store.base import Change, Insert, Replace
from kmsd.store.rows import BackupRow, DomainKeyRow

# A client that reads nothing for so long is not going to: a piece is written to a disk in a fraction of a second.
PEER_SECONDS = 60.0
# After the last piece it syncs the whole file: 150 MB of 100,000 keys take a slow USB stick half a minute.
KEPT_SECONDS = 600.0
_MAX_KEPT_BYTES = 256


def backup_place(backup_id: str) -> Place:
    """Return the place that the data key of a backup is wrapped for."""
    return Place("backups", backup_id, 0, "AES_256")


class Snapshot(Protocol):
    """What of a `kmsd.store.transfer.Snapshot` this needs."""

    store_id: str
    sequence: int

    def batches(self) -> AsyncIterator[bytes]:
        """Give the records, piece by piece."""

    async def close(self) -> None:
        """Remove the copy."""


class BackedUpStore(Protocol):
    """What of a `kmsd.store.sql.SqlStore` this needs."""

    @property
    def sequence(self) -> int:
        """The number of the last commit."""

    async def snapshot(self, path: Path) -> Snapshot:
        """Copy the store as it is after some commit."""

    async def domain_keys(self) -> list[DomainKeyRow]:
        """Return all domain keys."""

    async def last_backup(self) -> BackupRow | None:
        """Return the newest backup that was kept."""

    async def commit(self, mutation_id: str, changes: Sequence[Change]) -> None:
        """Make all changes in one transaction."""

    async def committed(self, mutation_ids: Sequence[str]) -> set[str]:
        """Return those of the mutation ids whose commits happened."""


class ReadableTrail(Protocol):
    """What of the audit trail this needs."""

    @property
    def head(self) -> tuple[int, str]:
        """The last line's sequence number and hash."""

    def append(self, records: Sequence[Record]) -> int:
        """Write records, all or none, and return how many bytes they took; raises AuditUnavailableError."""

    async def sync(self) -> None:
        """Wait until everything written is on the disk; raises AuditUnavailableError."""


class Backups:
    """Handler of CreateBackup. `snapshot_path` is where a copy of the store lies as long as it is needed.

    `last` is the newest backup that a client has kept, as far as it is known: from the first unsealing on. A client
    has `peer_seconds` for each piece and `kept_seconds` to sync the file. `clock` gives seconds since 1970 UTC.
    `settles`: no client is told of an outcome before its record is on the disk, not only written.
    """

    def __init__(
        self,
        *,
        store: BackedUpStore,
        hierarchy: Hierarchy,
        arena: Arena,
        arns: Arns,
        trail: ReadableTrail,
        gate: Gate,
        logger: Logger,
        snapshot_path: Path,
        clock: Callable[[], float],
        settles: bool,
        peer_seconds: float = PEER_SECONDS,
        kept_seconds: float = KEPT_SECONDS,
    ) -> None:
        self._store = store
        self._hierarchy = hierarchy
        self._arena = arena
        self._arns = arns
        self._trail = trail
        self._gate = gate
        self._logger = logger
        self._snapshot_path = snapshot_path
        self._clock = clock
        self._settles = settles
        self._peer_seconds = peer_seconds
        self._kept_seconds = kept_seconds
        self._task: asyncio.Task[None] | None = None
        self._interruptible = self._interrupted = False
        self.last: BackupRow | None = None
        gate.on_close(self._interrupt)

    async def remember(self) -> None:
        """Look up the last backup, once there are keys to do so."""
        self.last = await self._store.last_backup()

    async def create(self, call: Call, request: api.CreateBackupRequest) -> WithDescriptors:  # noqa: ARG002 - handlers share one form
        """Begin a backup, and give the client the end over which it comes."""
        if self._task is not None:
            raise ThrottlingError("a backup is being made already: wait until it is done")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as unless_begun:
            unless_begun.enter_context(ours)
            unless_begun.enter_context(theirs)
            ours.setblocking(False)
            self._trail.append([call.record(Kind.INTENT, parameters=None)])
            call.began = True
            unless_begun.pop_all()
        backup_id = str(uuid.uuid4())
        # Not yet: a task that is cancelled before its first step takes none, and records nothing.
        self._interruptible = self._interrupted = False
        self._task = asyncio.ensure_future(self._converse(call, backup_id, ours))
        self._task.add_done_callback(self._ended)
        self._gate.pass_through(self._task)
        return WithDescriptors(api.CreateBackupResponse(backup_id=backup_id), [theirs.detach()])

    async def _converse(self, call: Call, backup_id: str, channel: socket.socket) -> None:
        with channel:
            try:
                with told():
                    made = await self._send(backup_id, channel)
                    await self._hear_kept(channel, made)
                    # From here on nothing ends it but its end.
                    self._interruptible = False
                    recorded = await self._keep(call, made)
            except KmsError as error:
                _tell(channel, Told(error=Failure.of(await self._failed(call, error))))
            except asyncio.CancelledError:
                _tell(channel, Told(error=Failure.of(self._recorded(call, self._interruption()))))
                raise
            except BaseException:
                fault = KMSInternalError("kmsd failed to make the backup; its log tells why")
                _tell(channel, Told(error=Failure.of(self._recorded(call, fault))))
                raise
            else:
                _tell(channel, recorded)

    async def _send(self, backup_id: str, channel: socket.socket) -> BackupRow:
        """Send the whole backup; return what there is to say of it."""
        self._interruptible = True
        if self._interrupted:
            raise self._interruption()
        await self._trail.sync()
        snapshot = await self._store.snapshot(self._snapshot_path)
        try:
            digest, length = hashlib.sha256(), 0
            now_ms = int(self._clock() * 1000)
            async with contextlib.aclosing(self._pieces(backup_id, snapshot, now_ms)) as pieces:
                async for piece in pieces:
                    digest.update(piece)
                    length += len(piece)
                    await self._send_one(channel, Told(piece=piece))
        finally:
            await snapshot.close()
        sent = Sent(length=length, sha256=digest.hexdigest(), store_sequence=snapshot.sequence)
        await self._send_one(channel, Told(sent=sent))
        return BackupRow(
            creation_ms=now_ms,
            store_sequence=sent.store_sequence,
            sha256=sent.sha256,
            length=sent.length,
            version=1,
        )

    async def _pieces(self, backup_id: str, snapshot: Snapshot, now_ms: int) -> AsyncGenerator[bytes, None]:
        with self._arena.random(DATA_KEY_BYTES) as data_key, self._arena.lease(DATA_KEY_BYTES) as body_key:
            domain_key_id = self._hierarchy.current_domain_key
            wrapped = self._hierarchy.wrap(backup_place(backup_id), data_key.view)
            audit_sequence, audit_hash = self._trail.head
            prefix = serialize(
                BackupHeader(
                    creation_ms=now_ms,
                    version=kmsd.__version__,
                    account=self._arns.account,
                    region=self._arns.region,
                    store_id=snapshot.store_id,
                    store_sequence=snapshot.sequence,
                    audit_sequence=audit_sequence,
                    audit_hash=audit_hash,
                    domain_keys=tuple(
                        WrappedKey(
                            domain_key_id=row.domain_key_id,
                            generation=row.generation,
                            wrapped=row.wrapped,
                            recovery_wrapped=row.recovery_wrapped,
                        )
                        for row in await self._store.domain_keys()
                    ),
                    data_key=DataKey(backup_id=backup_id, domain_key_id=domain_key_id, wrapped=wrapped),
                )
            )
            start = prefix + derive_keys(data_key.view, prefix, body_key.view)
            for offset in range(0, len(start), MAX_PIECE_BYTES):
                yield start[offset : offset + MAX_PIECE_BYTES]
            sealer = ChunkSealer(body_key.view)
            async for batch in snapshot.batches():
                for chunk in sealer.add(batch):
                    yield chunk
            yield sealer.finish()

    async def _send_one(self, channel: socket.socket, datagram: Told) -> None:
        try:
            async with asyncio.timeout(self._peer_seconds):
                await asyncio.get_running_loop().sock_sendall(channel, api.encode(datagram))
        except TimeoutError:
            raise FileAccessError(f"the client took nothing of the backup for {self._peer_seconds:g} s") from None
        except OSError:
            raise FileAccessError("the client went away before the backup was complete") from None

    async def _hear_kept(self, channel: socket.socket, made: BackupRow) -> None:
        """Wait until the client says that the backup is on its disk."""
        try:
            async with asyncio.timeout(self._kept_seconds):
                datagram = await asyncio.get_running_loop().sock_recv(channel, _MAX_KEPT_BYTES)
        except TimeoutError:
            raise FileAccessError(f"the client did not keep the backup within {self._kept_seconds:g} s") from None
        except OSError:
            datagram = b""
        if not datagram:
            raise FileAccessError("the client went away before it had kept the backup")
        if api.decode_kept(datagram) != Kept(sha256=made.sha256):
            raise ProtocolError("the client kept another backup than it was sent")

    async def _keep(self, call: Call, made: BackupRow) -> Told:
        """Make it the last backup, on record; return what to tell the client."""
        before = await self._store.last_backup()
        row = made if before is None else replace(made, version=before.version + 1)
        await self._store.commit(call.request_id, [Insert(row) if before is None else Replace(row)])
        self.last = row
        details = {
            "bytes": made.length,
            "sha256": made.sha256,
            "backupSequence": made.store_sequence,
            "storeSequence": self._store.sequence,
        }
        self._trail.append([call.record(Kind.OUTCOME, parameters=None, details=details)])
        if self._settles:
            await self._trail.sync()
        return Told(recorded=Recorded())

    def _interruption(self) -> KmsError:
        if self._gate.closed:
            return SealedError("kmsd was sealed before the backup was complete: make it again once it is unsealed")
        return ShuttingDownError("kmsd is stopping; ask again when it has started")

    async def _failed(self, call: Call, error: KmsError) -> KmsError:
        """Record a failure, and whether it came behind the commit; return what to tell the client."""
        details = None
        if not self._interruptible and isinstance(error, DaemonError):
            try:
                with told():
                    details = {"committed": call.request_id in await self._store.committed([call.request_id])}
            except KmsError as unknown:
                return unknown  # the record stays open until the next start can tell
        return self._recorded(call, error, details)

    def _recorded(self, call: Call, error: KmsError, details: dict[str, Any] | None = None) -> KmsError:
        """Record how it ended and return what to tell the client: nobody is told what is not on record."""
        try:
            self._trail.append([call.record(Kind.OUTCOME, parameters=None, error=error, details=details)])
        except AuditUnavailableError as unavailable:
            return unavailable
        return error

    def _interrupt(self) -> None:
        self._interrupted = True
        if self._task is not None and self._interruptible:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("backup_failed", fault)

    async def close(self) -> None:
        """End a backup that is being sent; one that was kept comes to its end."""
        self._interrupt()
        if self._task is not None:
            await asyncio.wait({self._task})


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.CREATE_BACKUP: Backups.create,
}


def _tell(channel: socket.socket, outcome: Told) -> None:
    with contextlib.suppress(OSError):  # the client is gone; its record has the outcome
        channel.send(api.encode(outcome))
