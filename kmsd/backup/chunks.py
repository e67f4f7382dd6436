"""The body of a backup: chunks of AES-256-GCM in the manner of age's payload (STREAM). Pure: no I/O.

Every chunk but the last has exactly `CHUNK_BYTES` of plaintext, the last has 1 to that many (0 only if the body is
empty). The nonce of a chunk is its number from 0 (11 bytes, big-endian), and 1 for the last chunk, 0 for others. So a
chunk that was changed, moved, repeated or taken from another backup does not open, and a body that ends early has a
last chunk that is not the last. A key serves one backup only.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
_NUMBER_BYTES = 11


class ChunkSealer:
    """Seals a body piece by piece. `key` (32 bytes) is borrowed for the sealer's life, never copied."""

    def __init__(self, key: memoryview) -> None:
        self._key = key
        self._number = 0
        self._pending = bytearray()

    def add(self, plaintext: bytes) -> Iterator[bytes]:
        """Take more of the body and yield the chunks that are complete."""
        self._pending += plaintext
        # A full chunk waits until more comes: it may be the last.
        while len(self._pending) > CHUNK_BYTES:
            chunk = bytes(self._pending[:CHUNK_BYTES])
            del self._pending[:CHUNK_BYTES]
            yield self._seal(chunk, last=False)

    def finish(self) -> bytes:
        """Return the last chunk."""
        return self._seal(bytes(self._pending), last=True)

    def _seal(self, plaintext: bytes, *, last: bool) -> bytes:
        sealed = AESGCM(self._key).encrypt(_nonce(self._number, last=last), plaintext, None)
        self._number += 1
        return sealed


class ChunkChangedError(Exception):
    """Chunk `number`, from 1, does not authenticate in its place."""

    def __init__(self, number: int) -> None:
        super().__init__(f"chunk {number} does not authenticate")
        self.number = number


class ChunkOpener:
    """Opens the chunks of one body in order. `key` is borrowed for the opener's life, never copied."""

    def __init__(self, key: memoryview) -> None:
        self._key = key
        self._number = 0

    def open(self, sealed: bytes, *, last: bool) -> bytes:
        """Return the plaintext of the next chunk; raises ChunkChangedError."""
        number = self._number + 1
        # Only the one chunk of an empty body may be empty.
        if len(sealed) < TAG_BYTES or (len(sealed) == TAG_BYTES and self._number):
            raise ChunkChangedError(number)
        try:
            plaintext = AESGCM(self._key).decrypt(_nonce(self._number, last=last), sealed, None)
        except InvalidTag:
            raise ChunkChangedError(number) from None
        self._number = number
        return plaintext


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big") + bytes([last])
