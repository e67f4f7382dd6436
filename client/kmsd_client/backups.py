"""Making a backup: the client's side of what follows the operation CreateBackup.

The backup gets its name only when all of it is on the disk, and only then the daemon is told that it is kept. Until
the daemon has taken note of that, no backup was made, as far as its audit trail and its status tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from kmsd.api import backups
from kmsd.api.backups import CREATE_BACKUP, MAX_DATAGRAM_BYTES, CreateBackupRequest, Kept, Sent, Told
from kmsd.api.errors import ConnectionLostError, ProtocolError
from kmsd_client.destination import Destination, attempt, open_destination
from kmsd_client.files import Caller, Place


@dataclass(frozen=True)
class BackupResult:
    """What was written: its length in bytes, its SHA-256 in hex, and the number of the store's last commit in it."""

    length: int
    sha256: str
    store_sequence: int


def create_backup(client: Caller, destination: Place, *, force: bool = False) -> BackupResult:
    """Have the daemon make a backup and write it to `destination`, a path or an open descriptor.

    A path must not exist unless `force` is given; the file appears there when it is complete and on the disk, readable
    for its owner only. Raises `KmsError`s: those of the operation, AlreadyExistsError, FileAccessError, and
    ConnectionLostError when the daemon is gone. ConnectionLostError may come when the file is already in its place: it
    is then complete, but the daemon may not have taken note of it.
    """
    # Nothing that the destination could be the same as, and no file whose mode or time it should have.
    nothing = Path(os.devnull).stat()
    with open_destination(destination, source=nothing, force=force) as target:
        _, descriptors = client.call_with_descriptors(CREATE_BACKUP, CreateBackupRequest())
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise ConnectionLostError(f"the daemon sent {len(descriptors)} descriptors instead of one")
        with socket.socket(fileno=descriptors[0]) as channel:
            sent = _receive(channel, target, destination)
            target.finish(sent.length, nothing, sync=True)
            _confirm(channel, sent)
    return BackupResult(sent.length, sent.sha256, sent.store_sequence)


def _receive(channel: socket.socket, target: Destination, name: Place) -> Sent:
    """Write the pieces as they come, until all are there."""
    digest, length = hashlib.sha256(), 0
    while True:
        told = _next(channel)
        if told.piece is not None:
            digest.update(told.piece)
            length += len(told.piece)
            _write(target.fd, told.piece, name)
        if told.sent is not None:
            if (told.sent.length, told.sent.sha256) != (length, digest.hexdigest()):
                raise ConnectionLostError("the daemon sent another backup than it says it did")
            return told.sent


def _confirm(channel: socket.socket, sent: Sent) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why before it closed its end
        channel.send(backups.encode(Kept(sha256=sent.sha256)))
    while _next(channel).recorded is None:
        continue


def _next(channel: socket.socket) -> Told:
    try:
        datagram = channel.recv(MAX_DATAGRAM_BYTES)
    except ConnectionResetError:
        datagram = b""
    if not datagram:
        raise ConnectionLostError("the daemon went away before it had taken note of the backup")
    try:
        told = backups.decode_told(datagram)
    except ProtocolError as error:
        raise ConnectionLostError(error.message) from None
    if told.error is not None:
        raise told.error.error()
    return told


def _write(fd: int, data: bytes, name: Place) -> None:
    view = memoryview(data)
    while view:
        view = view[attempt("standard output" if isinstance(name, int) else name, os.write, fd, view) :]
