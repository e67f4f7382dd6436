"""Ciphertext blobs, version 1.

    version 0x01 (1) | key id (16) | material number (4) | nonce (16) | commitment (32) | ciphertext | tag (16)

Numbers are big-endian. The binding of the derivation is version, key id, material number and the canonical encryption
context; the AAD is everything before the ciphertext, then the canonical encryption context. `material.committed` says
how the three derived values are used.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kmsd.api.encryption_context import serialize
from kmsd.api.errors import InvalidCiphertextError
from kmsd.material.committed import OVERHEAD_BYTES, CommittedCipher
from kmsd.material.derivation import Label
from kmsd.memory.arena import Arena

VERSION = 0x01
_KEY_ID_BYTES = 16
_NUMBER_BYTES = 4
PREFIX_BYTES = 1 + _KEY_ID_BYTES + _NUMBER_BYTES
# What a blob adds to its plaintext.
BLOB_OVERHEAD_BYTES = PREFIX_BYTES + OVERHEAD_BYTES


class BlobAddress(NamedTuple):
    """Which material made a blob, as its public header says, before anything is authenticated."""

    key_id: str
    number: int


def blob_prefix(key_id: str, number: int) -> bytes:
    """Return the first bytes of every blob made with material `number` of key `key_id`."""
    return bytes((VERSION,)) + uuid.UUID(key_id).bytes + number.to_bytes(_NUMBER_BYTES, "big")


def address_of(blob: bytes) -> BlobAddress:
    """Read a blob's public header; raises InvalidCiphertextError for what cannot be a blob of a known version."""
    if len(blob) <= BLOB_OVERHEAD_BYTES or blob[0] != VERSION:
        raise InvalidCiphertextError
    key_id = str(uuid.UUID(bytes=blob[1 : 1 + _KEY_ID_BYTES]))
    return BlobAddress(key_id, int.from_bytes(blob[1 + _KEY_ID_BYTES : PREFIX_BYTES], "big"))


class BlobCipher:
    """Makes and opens ciphertext blobs; for one thread."""

    def __init__(self, arena: Arena, random: Callable[[int], bytes]) -> None:
        self._cipher = CommittedCipher(arena, Label.ENCRYPT, random)

    def encrypt(self, secret: memoryview, prefix: bytes, plaintext: memoryview, context: Mapping[str, str]) -> bytes:
        """Return the blob of `plaintext` under material `secret`, whose `blob_prefix` is `prefix`."""
        canonical = serialize(context)
        return self._cipher.seal(secret, plaintext, binding=prefix + canonical, prefix=prefix, suffix=canonical)

    def decrypt_into(self, secret: memoryview, blob: bytes, context: Mapping[str, str], into: memoryview) -> int:
        """Decrypt `blob` to the beginning of `into` and return the plaintext's length in bytes.

        Raises InvalidCiphertextError, always the same, when anything about the blob or the context is not right.
        """
        length = len(blob) - BLOB_OVERHEAD_BYTES
        if not 0 < length <= len(into):
            raise InvalidCiphertextError
        canonical = serialize(context)
        self._cipher.open_into(
            secret,
            blob,
            into[:length],
            binding=blob[:PREFIX_BYTES] + canonical,
            prefix_bytes=PREFIX_BYTES,
            suffix=canonical,
        )
        return length
