"""Domain keys wrapped by the recovery key, beside what the token wraps.

A recovery wrap has the format of every wrapped secret (`hierarchy`), but label `kmsd/recovery/1` and a binding that
names, in length-prefixed members, the format version, the domain key and its generation (8 bytes, big-endian).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kmsd.api.errors import InvalidCiphertextError, RecoverySharesError
from kmsd.material.committed import CommittedCipher
from kmsd.material.derivation import Label
from kmsd.memory.arena import Arena

_FORMAT = b"\x01"


class RecoveryWrapped(NamedTuple):
    """A domain key as the recovery key opens it."""

    domain_key_id: str
    generation: int
    wrapped: bytes


class RecoveryWrap:
    """Wraps and unwraps domain keys by a recovery key (32 bytes), which is borrowed for each call; for one thread."""

    def __init__(self, arena: Arena, random: Callable[[int], bytes]) -> None:
        self._cipher = CommittedCipher(arena, Label.RECOVERY, random)

    def wrap(self, domain_key_id: str, generation: int, domain_key: memoryview, recovery_key: memoryview) -> bytes:
        """Return the domain key wrapped."""
        binding = _binding(domain_key_id, generation)
        return self._cipher.seal(recovery_key, domain_key, binding=binding, prefix=_FORMAT, suffix=binding)

    def unwrap_into(self, record: RecoveryWrapped, recovery_key: memoryview, into: memoryview) -> None:
        """Write the domain key into `into`; raises RecoverySharesError, always the same, when this key does not fit."""
        binding = _binding(record.domain_key_id, record.generation)
        try:
            # A changed format version is found like any change: it is a part of the AAD.
            self._cipher.open_into(
                recovery_key, record.wrapped, into, binding=binding, prefix_bytes=len(_FORMAT), suffix=binding
            )
        except InvalidCiphertextError:
            raise RecoverySharesError(
                "these recovery shares are not of this store, or its domain keys were changed"
            ) from None


def _binding(domain_key_id: str, generation: int) -> bytes:
    members = (_FORMAT, domain_key_id.encode(), generation.to_bytes(8, "big"))
    return b"".join(len(member).to_bytes(2, "big") + member for member in members)
