"""Keyed multiset hashes: a short value that stands for all rows of a table, and is brought up to date row by row.

The construction is MSet-Add-Hash (Clarke, Devadas, van Dijk, Gassend, Suh, "Incremental Multiset Hash Functions and
Their Application to Memory Integrity Checking", ASIACRYPT 2003):

    H(M) = ( PRF(mask, nonce) + sum of PRF(row, m) over all m in M ) mod 2^256, and the nonce

PRF is BLAKE2b with 32 bytes of output in its keyed mode (RFC 7693, section 2.5); purpose and table are its salt and
personalization. m is a row's place (`kmsd.store.places`), which includes the row's MAC. It is more than the MAC, since
MACs are verified only when a row is read: a row that somebody renamed, MAC and all, would be one that is missing.

Why the masks: whoever reads the file twice would see by how much a sum grew, which is what single rows add to it. From
enough of these he picks rows (ones that were there once, whose MACs are right) that add up to any sum he wants: that is
the generalized birthday problem, and Wagner's algorithm ("A Generalized Birthday Problem", CRYPTO 2002) solves it for
sums of 256 bits with far fewer than 2^128 steps when many rows may be combined. Under a mask, fresh with each commit,
a sum shows nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kmsd.api.errors import SealedError

NONCE_BYTES = 16
_BYTES = 32
MODULUS = 1 << 8 * _BYTES
# At most 16 bytes each (RFC 7693's parameter block for BLAKE2b); a table's name is the personalization.
_ROW, _MASK = b"row", b"mask"


class MultisetHasher:
    """Makes the sums and their masks while it holds the set key.

    The key is only borrowed, and is used by no call longer than that call: hashlib wipes what it knows of it when an
    object goes. As with the MAC key, one thread does everything.
    """

    def __init__(self) -> None:
        self._key: memoryview | None = None

    def unseal(self, set_key: memoryview) -> None:
        """Use `set_key` (32 bytes) from now on."""
        self._key = set_key

    def seal(self) -> None:
        """Forget the key."""
        self._key = None

    def sum_of(self, table: str, places: Iterable[bytes]) -> int:
        """Return what rows add to the sum of their table; raises SealedError."""
        keyed = hashlib.blake2b(digest_size=_BYTES, key=self._held_key(), salt=_ROW, person=table.encode())
        # A copy takes half the time of a new object, whose constructor reads its arguments by name.
        copy, digests = keyed.copy, []
        for one in places:
            row = copy()
            row.update(one)
            digests.append(row.digest())
        number = int.from_bytes
        return sum([number(digest, "big") for digest in digests]) % MODULUS

    def masked(self, table: str, total: int, nonce: bytes) -> bytes:
        """Return a sum as it is stored; raises SealedError. No two sums of a table may have the same nonce."""
        return ((total + self._mask(table, nonce)) % MODULUS).to_bytes(_BYTES, "big")

    def unmasked(self, table: str, stored: bytes, nonce: bytes) -> int:
        """Return the sum that `masked` made this of; raises SealedError."""
        return (int.from_bytes(stored, "big") - self._mask(table, nonce)) % MODULUS

    def _mask(self, table: str, nonce: bytes) -> int:
        mask = hashlib.blake2b(nonce, digest_size=_BYTES, key=self._held_key(), salt=_MASK, person=table.encode())
        return int.from_bytes(mask.digest(), "big")

    def _held_key(self) -> memoryview:
        if self._key is None:
            raise SealedError("the store is sealed; an administrator has to unseal it")
        return self._key
