"""Domain keys, and the wrapping of everything secret in the store under them.

The token's root key wraps domain keys, a domain key wraps key material and the service's own secrets. A domain key is
only ever the input of KBKDF with label `kmsd/wrap/1`. A wrapped secret is

    version 0x01 (1) | nonce (16) | commitment (32) | ciphertext | tag (16)

and its binding, which is also part of the AAD, names in length-prefixed members the format version, the domain key,
the table, the record, the material number and the spec: a wrapped secret moved to any other place does not open.

A host may have a recovery key, which wraps each domain key a second time (`recovery`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kmsd.api.errors import IntegrityError, InvalidCiphertextError, SealedError
from kmsd.hsm.root import PinSource, Root, WrappedDomainKey
from kmsd.material.committed import OVERHEAD_BYTES, CommittedCipher
from kmsd.material.derivation import Label
from kmsd.material.recovery import RecoveryWrap, RecoveryWrapped
from kmsd.memory.arena import CHUNK_BYTES, Arena, Slot

__all__ = ["DOMAIN_KEY_BYTES", "WRAP_OVERHEAD_BYTES", "Hierarchy", "Place", "RecoveryWrapped"]

_FORMAT = b"\x01"
DOMAIN_KEY_BYTES = 32
WRAP_OVERHEAD_BYTES = len(_FORMAT) + OVERHEAD_BYTES


class Place(NamedTuple):
    """Where a wrapped secret belongs: table, record, material number (0 when it has none) and key spec."""

    table: str
    record: str
    number: int
    spec: str


class Hierarchy:
    """Holds the unwrapped domain keys and wraps secrets under the newest."""

    def __init__(self, arena: Arena, root: Root, random: Callable[[int], bytes]) -> None:
        self._arena = arena
        self._root = root
        self._cipher = CommittedCipher(arena, Label.WRAP, random)
        self._recovery = RecoveryWrap(arena, random)
        self._domain_keys: dict[str, Slot] = {}
        self._current = ""

    @property
    def current_domain_key(self) -> str:
        """The id of the domain key that wraps new secrets; raises SealedError while there is none."""
        if not self._current:
            raise SealedError("kmsd is sealed: an administrator has to unseal it")
        return self._current

    async def create(self, domain_key_id: str, generation: int, pin: PinSource | None = None) -> WrappedDomainKey:
        """Make a domain key in the token's name, keep it and return what the store has to keep of it."""
        slot = self._arena.lease(DOMAIN_KEY_BYTES)
        try:
            record = await self._root.make_domain_key(domain_key_id, generation, slot.view, pin)
        except BaseException:
            slot.release()
            raise
        self._keep([(record, slot)])
        return record

    async def unseal(
        self, records: Sequence[WrappedDomainKey], pin: PinSource | None = None, *, anchor: str | None = None
    ) -> int | None:
        """Unwrap all domain keys through the token in one job; the highest generation wraps from now on.

        Return the sequence that the token holds for the store whose id is `anchor`, None when it holds none.
        """
        slots = [self._arena.lease(DOMAIN_KEY_BYTES) for _ in records]
        try:
            sequence = await self._root.unwrap(records, [slot.view for slot in slots], pin, anchor=anchor)
        except BaseException:
            for slot in slots:
                slot.release()
            raise
        self._keep(list(zip(records, slots, strict=True)))
        return sequence

    async def wrap_for_root(
        self, domain_key_id: str, generation: int, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        """Return a domain key that is held here, wrapped by the token, which may be another than it was made with."""
        return await self._root.wrap_domain_key(domain_key_id, generation, self._domain_key(domain_key_id), pin)

    def wrap_for_recovery(self, domain_key_id: str, generation: int, recovery_key: memoryview) -> bytes:
        """Return a domain key that is in memory, wrapped by the recovery key (32 bytes)."""
        return self._recovery.wrap(domain_key_id, generation, self._domain_key(domain_key_id), recovery_key)

    def unseal_by_recovery(self, records: Sequence[RecoveryWrapped], recovery_key: memoryview) -> None:
        """Unwrap all domain keys without the token; the highest generation wraps from now on.

        Raises RecoverySharesError, always the same, when this key does not open every one of them.
        """
        slots = [self._arena.lease(DOMAIN_KEY_BYTES) for _ in records]
        try:
            for record, slot in zip(records, slots, strict=True):
                self._recovery.unwrap_into(record, recovery_key, slot.view)
        except BaseException:
            for slot in slots:
                slot.release()
            raise
        self._keep(list(zip(records, slots, strict=True)))

    def _keep(self, domain_keys: Sequence[tuple[WrappedDomainKey | RecoveryWrapped, Slot]]) -> None:
        for record, slot in domain_keys:
            self._domain_keys[record.domain_key_id] = slot
        self._current = max((record for record, _ in domain_keys), key=lambda record: record.generation).domain_key_id

    def wrap(self, place: Place, secret: memoryview) -> bytes:
        """Return `secret` wrapped for `place` under the current domain key."""
        domain_key = self._domain_key(self.current_domain_key)
        binding = _binding(self._current, place)
        return self._cipher.seal(domain_key, secret, binding=binding, prefix=_FORMAT, suffix=binding)

    def unwrap(self, place: Place, domain_key_id: str, wrapped: bytes) -> Slot:
        """Return a new slot with the secret that was wrapped for `place`.

        Raises IntegrityError when the record is not what `wrap` made for this place, SealedError while sealed.
        """
        domain_key = self._domain_key(domain_key_id)
        length = len(wrapped) - WRAP_OVERHEAD_BYTES
        if not 0 < length <= CHUNK_BYTES or wrapped[:1] != _FORMAT:
            raise IntegrityError(f"{place.table} record {place.record}: the wrapped secret has no known format")
        slot = self._arena.lease(length)
        try:
            binding = _binding(domain_key_id, place)
            self._cipher.open_into(
                domain_key, wrapped, slot.view, binding=binding, prefix_bytes=len(_FORMAT), suffix=binding
            )
        except InvalidCiphertextError:
            slot.release()
            raise IntegrityError(f"{place.table} record {place.record}: the wrapped secret was changed") from None
        return slot

    def _domain_key(self, domain_key_id: str) -> memoryview:
        slot = self._domain_keys.get(domain_key_id)
        if slot is None:
            if not self._domain_keys:
                raise SealedError("kmsd is sealed: an administrator has to unseal it")
            raise IntegrityError(f"a record names the domain key {domain_key_id}, which the store does not have")
        return slot.view

    def seal(self) -> None:
        """Wipe and forget all domain keys."""
        for slot in self._domain_keys.values():
            slot.release()
        self._domain_keys.clear()
        self._current = ""


def _binding(domain_key_id: str, place: Place) -> bytes:
    members = (_FORMAT, domain_key_id.encode(), place.table.encode(), place.record.encode())
    numbers = (place.number.to_bytes(4, "big"), place.spec.encode())
    return b"".join(len(member).to_bytes(2, "big") + member for member in members + numbers)
