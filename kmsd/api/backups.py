"""Backups of the store: the operation, and what is said over the descriptor that it answers with.

`kmsd/wire/PROTOCOL.md` specifies the conversation, `kmsd/backup/FORMAT.md` the file that its pieces make up. Every
datagram is one msgpack map.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kmsd.api.errors import ProtocolError
from kmsd.api.failure import Failure
from kmsd.api.operation import Cost, Operation
from kmsd.api.shapes import Request, Response

# What a piece may hold; the kernel takes 200 KiB in one datagram (net.core.wmem_default).
MAX_PIECE_BYTES = 128 * 1024
# A piece with its map around it; errors are shorter.
MAX_DATAGRAM_BYTES = MAX_PIECE_BYTES + 1024

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class CreateBackupRequest(Request, frozen=True, kw_only=True):
    """CreateBackup has no members."""


class CreateBackupResponse(Response, frozen=True, kw_only=True):
    """What CreateBackup answers: the backup's name in its own header; the file comes over the descriptor."""

    backup_id: str


CREATE_BACKUP = Operation(
    name="CreateBackup",
    summary="Make a backup of all keys, which only the token or the recovery shares open.",
    request=CreateBackupRequest,
    response=CreateBackupResponse,
    cost=Cost.STORE,
    read_only=False,
    descriptors=1,
    audit_fields=(),
)

OPERATIONS = (CREATE_BACKUP,)


class Sent(msgspec.Struct, frozen=True):
    """All pieces were sent: how many bytes they are, and their SHA-256 in hex; `store_sequence` is what they hold."""

    length: Count
    sha256: str
    store_sequence: Count


class Recorded(msgspec.Struct, frozen=True):
    """The daemon has taken note that the backup is kept."""


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One datagram of the daemon: exactly one member is there."""

    piece: bytes | None = None
    sent: Sent | None = None
    recorded: Recorded | None = None
    error: Failure | None = None


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The client's one datagram: the backup with this SHA-256 is on its disk, under its name."""

    sha256: str


_encoder = msgspec.msgpack.Encoder()
_told = msgspec.msgpack.Decoder(Told)
_kept = msgspec.msgpack.Decoder(Kept)


def encode(message: Told | Kept) -> bytes:
    """Return the datagram of `message`."""
    return _encoder.encode(message)


def decode_told(datagram: bytes) -> Told:
    """Return what the daemon said; raises ProtocolError."""
    try:
        told = _told.decode(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # `from None`: the decoder's message may quote the piece.
        raise ProtocolError("the daemon said something unknown about the backup") from None
    if told == Told():
        raise ProtocolError("the daemon said nothing about the backup")
    return told


def decode_kept(datagram: bytes) -> Kept:
    """Return what the client said; raises ProtocolError."""
    try:
        return _kept.decode(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ProtocolError("the client said something unknown about the backup") from None
