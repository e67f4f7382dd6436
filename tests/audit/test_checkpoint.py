"""Checkpoints: only the audit key can sign one, and only for its place in the trail."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsd.audit.checkpoint import Checkpoint, CheckpointForgedError, check, key_id_of, sign


class Key:
    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = key_id_of(self.public)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


PLACE = (7, "ab" * 32, "2026-09-21T14:13:20.125Z")


def test_a_checkpoint_verifies_with_the_public_key() -> None:
    """What the audit key signed is accepted, also after a way through JSON."""
    key = Key()

    checkpoint = sign(key, *PLACE)

    check(msgspec.json.decode(msgspec.json.encode(checkpoint), type=Checkpoint), key.public)


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"prev": "cd" * 32},
        {"prev": "\u00e9" * 64},
        {"event_time": "2026-09-21T14:13:20.126Z"},
        {"signature": "AAAA"},
        {"signature": "no base64!"},
        {"key_id": "0" * 16},
    ],
)
def test_a_changed_checkpoint_is_refused(change: dict[str, object]) -> None:
    """A checkpoint moved to another place or time, or with another signature, is forged."""
    key = Key()

    with pytest.raises(CheckpointForgedError):
        check(msgspec.structs.replace(sign(key, *PLACE), **change), key.public)


def test_another_keys_checkpoint_is_refused() -> None:
    """Neither another key's id nor another key's signature under our id is accepted."""
    key, other = Key(), Key()
    theirs = sign(other, *PLACE)

    for forged in (theirs, msgspec.structs.replace(theirs, key_id=key.key_id)):
        with pytest.raises(CheckpointForgedError):
            check(forged, key.public)
