"""The header of a backup: what it is of, and what opens it. Pure: no I/O.

A header is public, and nothing in it is trusted until `derive_keys` has found the commitment that follows it to be
that of the data key: the body's key depends on every byte before the body.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from cryptography.hazmat.primitives import constant_time, hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta

# The line by which a backup is known, and of which kind it is.
MAGIC = b"kmsd-backup/1\n"
_FAMILY = b"kmsd-backup/"
LENGTH_BYTES = 4
# A domain key takes some 500 bytes, so this is room for 2,000 of them: one a day for five years.
MAX_HEADER_BYTES = 1024 * 1024
DATA_KEY_BYTES = 32
COMMITMENT_BYTES = 32

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
StoreId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]


class BackupError(RuntimeError):
    """The file is no backup, or is not what was written, or cannot be opened; the message names the file."""


class WrappedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A domain key as the store keeps it: wrapped by the token's root key and, unless empty, by the recovery key."""

    domain_key_id: Name
    generation: Count
    wrapped: bytes
    recovery_wrapped: bytes = b""


class DataKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The key of the body, wrapped under a domain key for the place `backup_id`."""

    backup_id: Name
    domain_key_id: Name
    wrapped: bytes


class BackupHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What a backup says of itself before anything in it is opened.

    `creation_ms` is in milliseconds since 1970 UTC. `store_sequence` numbers the store's last commit in it, and
    `audit_sequence` and `audit_hash` are the audit trail's last line when it was made.
    """

    creation_ms: Count
    version: Name
    account: Name
    region: Name
    store_id: StoreId
    store_sequence: Count
    audit_sequence: Count
    audit_hash: Digest
    domain_keys: tuple[WrappedKey, ...]
    data_key: DataKey


class ParsedHeader(NamedTuple):
    """A header, and all bytes of the file up to its end."""

    header: BackupHeader
    prefix: bytes


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(BackupHeader)


def serialize(header: BackupHeader) -> bytes:
    """Return the file's beginning up to the header's end; raises BackupError for a header that is too long."""
    body = _encoder.encode(header)
    if len(body) > MAX_HEADER_BYTES:
        raise BackupError(f"the backup's header would have {len(body)} of {MAX_HEADER_BYTES} bytes")
    return MAGIC + len(body).to_bytes(LENGTH_BYTES, "big") + body


def body_length(start: bytes, name: str) -> int:
    """Return the header's length, which the file's first `len(MAGIC) + LENGTH_BYTES` bytes announce."""
    magic, length = start[: len(MAGIC)], int.from_bytes(start[len(MAGIC) :], "big")
    if magic != MAGIC:
        if magic.startswith(_FAMILY):
            told = magic.decode("ascii", "replace").strip()
            raise BackupError(f"{name}: the backup has the format {told!r}, which takes a newer kmsd to read")
        raise BackupError(f"{name}: this is not a backup of kmsd")
    if len(start) < len(MAGIC) + LENGTH_BYTES:
        raise BackupError(f"{name}: the backup ends inside its header: it was truncated")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise BackupError(f"{name}: the backup's header was changed: it has {length} bytes")
    return length


def parse(start: bytes, body: bytes, name: str) -> ParsedHeader:
    """Return the header in `body`, which `start` announced. Raises BackupError."""
    try:
        header = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # `from None`: a decoder's message may quote what it read.
        raise BackupError(f"{name}: the backup's header was changed: it cannot be read") from None
    names = {key.domain_key_id for key in header.domain_keys}
    if len(names) < len(header.domain_keys):
        # A token takes its time for each, and nothing shows yet that the header is ours.
        raise BackupError(f"{name}: the backup's header was changed: it has a domain key twice")
    if header.data_key.domain_key_id not in names:
        raise BackupError(f"{name}: the backup's header was changed: it lacks the key that opens the backup")
    return ParsedHeader(header, start + body)


def derive_keys(data_key: memoryview, prefix: bytes, into: memoryview) -> bytes:
    """Derive the body's key into `into` (32 bytes) and return the public commitment to it and to `prefix`.

    HKDF with SHA-512, as in encrypted files (`kmsd/envelope/FORMAT.md`); the salt is SHA-256 of all bytes up to the
    header's end, so that another header has another key.
    """
    digest = hashes.Hash(hashes.SHA256())
    digest.update(prefix)
    salt = digest.finalize()
    HKDF(hashes.SHA512(), DATA_KEY_BYTES, salt=salt, info=b"kmsd-backup/1 key").derive_into(data_key, into)
    return HKDF(hashes.SHA512(), COMMITMENT_BYTES, salt=salt, info=b"kmsd-backup/1 commitment").derive(data_key)


def is_commitment(found: bytes, expected: bytes) -> bool:
    """Compare commitments in constant time."""
    return constant_time.bytes_eq(found, expected)
