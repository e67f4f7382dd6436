"""The audit key: an Ed25519 key that signs checkpoints of the trail, and nothing else.

Its seed is a secret of the store, wrapped under a domain key; its public half stands beside it in clear, so that it can
be told while the daemon is sealed. The library's key object exists for one signature (some 40 us with loading).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsd.audit.checkpoint import key_id_of
from kmsd.material.hierarchy import Hierarchy, Place
from kmsd.memory.arena import Arena, Slot
from kmsd.store.rows import SecretRow

NAME = "audit"
# An Ed25519 private key is a seed of this size (RFC 8032, section 5.1.5).
_SEED_BYTES = 32
_PLACE = Place("secrets", NAME, 0, "ED25519")


class AuditKey:
    """A `kmsd.audit.checkpoint.Signer`, until it is released."""

    def __init__(self, seed: Slot) -> None:
        self._seed = seed
        self.public = self._load().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = key_id_of(self.public)

    @classmethod
    def generate(cls, arena: Arena) -> AuditKey:
        """Return a new key."""
        return cls(arena.random(_SEED_BYTES))

    @classmethod
    def unwrap(cls, row: SecretRow, hierarchy: Hierarchy) -> AuditKey:
        """Return the key of a row; raises IntegrityError when it was changed."""
        seed = hierarchy.unwrap(_PLACE, row.domain_key_id, row.wrapped)
        try:
            return cls(seed)
        except BaseException:
            seed.release()
            raise

    def row(self, hierarchy: Hierarchy) -> SecretRow:
        """Return what the store keeps of it."""
        return SecretRow(
            name=NAME,
            domain_key_id=hierarchy.current_domain_key,
            wrapped=hierarchy.wrap(_PLACE, self._seed.view),
            public=self.public,
            version=1,
        )

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) of a message."""
        return self._load().sign(message)

    def release(self) -> None:
        """Wipe the seed."""
        self._seed.release()

    def _load(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._seed.view)
