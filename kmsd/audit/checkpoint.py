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

_FORGED = "its signature is not that of the audit key"


class CheckpointForgedError(Exception):
    """A checkpoint, or something else that the audit key signs, does not carry its signature."""


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
    try:
        signed = message(checkpoint.seq, checkpoint.prev, checkpoint.event_time)
    except UnicodeEncodeError:
        raise CheckpointForgedError(_FORGED) from None
    check_signature(signed, checkpoint.key_id, checkpoint.signature, public_key)


def check_signature(signed: bytes, key_id: str, signature: str, public_key: bytes) -> None:
    """Check that the audit key signed a message; `signature` is base64. Raises CheckpointForgedError."""
    if key_id != key_id_of(public_key):
        raise CheckpointForgedError(f"it is signed by the key {key_id}, not by {key_id_of(public_key)}")
    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public_key).verify(raw, signed)
    except (InvalidSignature, ValueError):  # ValueError: no base64, or not of ASCII characters
        raise CheckpointForgedError(_FORGED) from None


def message(seq: int, prev: str, event_time: str) -> bytes:
    """Return what is signed."""
    return f"{_DOMAIN}\n{seq}\n{prev}\n{event_time}\n".encode("ascii")


def key_id_of(public_key: bytes) -> str:
    """Return the id of a raw public key."""
    return hashlib.sha256(public_key).hexdigest()[:_KEY_ID_DIGITS]
