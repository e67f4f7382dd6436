"""The format of a wrapped domain key, and what it is bound to. Pure.

    version 0x01 (1) | IV (12) | ciphertext (32) | tag (16)

AES-256-GCM under the root key, with a fresh random IV for each wrap (NIST SP 800-38D 8.2.2: fine below 2^32 wraps; a
token wraps a handful in its life). The associated data names where the key belongs, so that a wrapped key does not
open under another id or generation:

    version 0x01 (1) | length of the id (2) | domain key id (UTF-8) | generation (8)

Integers are big-endian.
"""

from __future__ import annotations

from typing import NamedTuple

from kmsd.hsm.root import DOMAIN_KEY_BYTES, WrappedDomainKey, WrappedKeyInvalidError

VERSION = b"\x01"
# The IV size for which GCM needs no extra hashing, and the full tag (NIST SP 800-38D 5.2.1).
IV_BYTES = 12
TAG_BYTES = 16
WRAPPED_BYTES = len(VERSION) + IV_BYTES + DOMAIN_KEY_BYTES + TAG_BYTES
# Ids are UUIDs (36 characters); the bound keeps a damaged row from making a request that no datagram holds.
MAX_ID_BYTES = 128


class Sealed(NamedTuple):
    """The parts of a wrapped key: `body` is ciphertext and tag, as PKCS#11's C_Encrypt returns them."""

    iv: bytes
    body: bytes


def join(sealed: Sealed) -> bytes:
    """Return the wrapped key made of these parts."""
    return VERSION + sealed.iv + sealed.body


def split(record: WrappedDomainKey) -> Sealed:
    """Return the parts of a wrapped key; raises WrappedKeyInvalidError when it does not have this format."""
    if record.wrapped[:1] != VERSION:
        raise WrappedKeyInvalidError(
            f"domain key {record.domain_key_id!r}: unknown format version; was it written by a newer kmsd?"
        )
    if len(record.wrapped) != WRAPPED_BYTES:
        raise WrappedKeyInvalidError(
            f"domain key {record.domain_key_id!r}: the wrapped key has {len(record.wrapped)} bytes instead of "
            f"{WRAPPED_BYTES}; restore the store from a backup"
        )
    body = len(VERSION) + IV_BYTES
    return Sealed(record.wrapped[len(VERSION) : body], record.wrapped[body:])


def associated_data(domain_key_id: str, generation: int) -> bytes:
    """Return what a wrap is bound to; raises ValueError for an id or generation that the format cannot hold."""
    name = domain_key_id.encode()
    if not 0 < len(name) <= MAX_ID_BYTES:
        raise ValueError(f"a domain key id has 1 to {MAX_ID_BYTES} bytes, not {len(name)}")
    if not 0 <= generation < 1 << 64:
        raise ValueError(f"generation {generation} does not fit into 64 bits")
    return VERSION + len(name).to_bytes(2, "big") + name + generation.to_bytes(8, "big")
