"""Checkpoints: what a signature says about a trail, and how it is checked (pure).

A checkpoint is a record of the trail, `SignAuditTrail`, whose signature covers its own number, the hash of the line
before it and its time. Since each line covers the one before, it vouches for the whole trail up to itself. The same
five members kept anywhere else are an *anchor*: with it nobody can cut off the trail's end, or write it anew, unseen.

The signature is Ed25519 (RFC 8032) by the audit key, over

    kmsd-audit-checkpoint/1 LF | seq LF | prev LF | eventTime LF

in ASCII, each as it stands in the line. `keyId` is the start of the SHA-256 of the raw public key (16 hex digits).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# The name of the record.
CHECKPOINT = "SignAuditTrail"

_DOMAIN = "kmsd-audit-checkpoint/1"
# Enough to tell keys apart; a signature that verifies is what proves anything.
_KEY_ID_DIGITS = 16


class CheckpointForgedError(Exception):
    """A checkpoint does not carry the audit key's signature."""


class Signer(Protocol):
    """The audit key in use."""

    @property
    def key_id(self) -> str:
        """The id of its public key."""

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) of a message."""


class Checkpoint(msgspec.Struct, frozen=True, rename={"event_time": "eventTime", "key_id": "keyId"}):
    """A signed place in a trail, and what is kept of it as an anchor; `signature` is base64."""

    seq: int
    prev: str
    event_time: str
    key_id: str
    signature: str


def sign(signer: Signer, seq: int, prev: str, event_time: str) -> Checkpoint:
    """Return the checkpoint that is line `seq`, behind the line whose hash is `prev`, written at `event_time`."""
    signature = base64.b64encode(signer.sign(message(seq, prev, event_time))).decode("ascii")
    return Checkpoint(seq, prev, event_time, signer.key_id, signature)


def check(checkpoint: Checkpoint, public_key: bytes) -> None:
    """Check a checkpoint's signature with the raw public key (32 bytes); raises CheckpointForgedError."""
    if checkpoint.key_id != key_id_of(public_key):
        raise CheckpointForgedError(f"it is signed by the key {checkpoint.key_id}, not by {key_id_of(public_key)}")
    try:
        signature = base64.b64decode(checkpoint.signature, validate=True)
        signed = message(checkpoint.seq, checkpoint.prev, checkpoint.event_time)
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except (InvalidSignature, binascii.Error, UnicodeEncodeError):
        raise CheckpointForgedError("its signature is not that of the audit key") from None


def message(seq: int, prev: str, event_time: str) -> bytes:
    """Return what is signed."""
    return f"{_DOMAIN}\n{seq}\n{prev}\n{event_time}\n".encode("ascii")


def key_id_of(public_key: bytes) -> str:
    """Return the id of a raw public key."""
    return hashlib.sha256(public_key).hexdigest()[:_KEY_ID_DIGITS]
