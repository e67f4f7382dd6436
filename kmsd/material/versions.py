"""Key material in use: unwrapped on first use into secret memory, the least recently used forgotten first."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from typing import Protocol

from kmsd.api.errors import KeyUnavailableError
from kmsd.material.ciphertext import blob_prefix
from kmsd.material.derivation import Label, derive_into
from kmsd.material.hierarchy import Hierarchy, Place
from kmsd.memory.arena import Arena, ArenaFullError, Slot
from kmsd.store.rows import MaterialRow

TABLE = "material"


class NotLoadedError(Exception):
    """What is needed is not in memory; awaiting `load` brings it, then the same call succeeds."""

    async def load(self) -> None:
        """Bring it into memory."""
        raise NotImplementedError


class MaterialSource(Protocol):
    """Where material rows are read: a part of `kmsd.store.base.Store`."""

    async def material(self, key_id: str, number: int) -> MaterialRow | None:
        """Return the row of material `number` of key `key_id`."""


class Material:
    """One version of a key's secret, in use: `view` is valid until the next await."""

    __slots__ = ("_slot", "material_id", "prefix", "view")

    def __init__(self, slot: Slot, material_id: str, prefix: bytes) -> None:
        self._slot = slot
        self.view = slot.view
        self.material_id = material_id
        self.prefix = prefix

    def release(self) -> None:
        """Wipe the secret."""
        self._slot.release()


class MaterialNotLoadedError(NotLoadedError):
    """Material `number` of key `key_id` is not in memory."""

    def __init__(self, versions: Versions, key_id: str, number: int) -> None:
        super().__init__()
        self._versions = versions
        self._address = (key_id, number)

    async def load(self) -> None:
        """Unwrap it; raises KeyUnavailableError when there is no such material."""
        await self._versions.load(*self._address)


class Versions:
    """A bounded cache of unwrapped material; `capacity` is the number of versions it holds at most."""

    def __init__(self, arena: Arena, hierarchy: Hierarchy, source: MaterialSource, *, capacity: int) -> None:
        self._arena = arena
        self._hierarchy = hierarchy
        self._source = source
        self._capacity = capacity
        self._loaded: OrderedDict[tuple[str, int], Material] = OrderedDict()
        # Which keys were forgotten since each load under way began: it must not bring back what it read before.
        self._loads: list[set[str]] = []

    def get(self, key_id: str, number: int) -> Material:
        """Return material that is in memory; raises MaterialNotLoadedError when it is not."""
        address = (key_id, number)
        material = self._loaded.get(address)
        if material is None:
            raise MaterialNotLoadedError(self, key_id, number)
        self._loaded.move_to_end(address)
        return material

    def create(self, key_id: str, number: int, spec: str, size: int, creation_ms: int) -> MaterialRow:
        """Make fresh random material of `size` bytes and return the row that keeps it, wrapped."""
        with self._make_room_for(size) as slot:
            place = Place(TABLE, key_id, number, spec)
            return MaterialRow(
                key_id=key_id,
                number=number,
                material_id=material_id_of(key_id, slot.view),
                spec=spec,
                domain_key_id=self._hierarchy.current_domain_key,
                wrapped=self._hierarchy.wrap(place, slot.view),
                creation_ms=creation_ms,
                version=1,
            )

    def _make_room_for(self, size: int) -> Slot:
        while True:
            try:
                return self._arena.random(size)
            except ArenaFullError:
                self._forget_oldest()

    async def load(self, key_id: str, number: int) -> None:
        """Unwrap material into memory; raises KeyUnavailableError when the store has no such material.

        Not what is forgotten meanwhile: who needs it looks at the key again, which then is in another state or gone.
        """
        if (key_id, number) in self._loaded:
            return
        forgotten: set[str] = set()
        self._loads.append(forgotten)
        try:
            row = await self._source.material(key_id, number)
        finally:
            self._loads = [one for one in self._loads if one is not forgotten]
        if key_id in forgotten or (key_id, number) in self._loaded:  # another request may have loaded it meanwhile
            return
        if row is None:
            raise KeyUnavailableError(f"key {key_id} has no material number {number}")
        slot = self._unwrap(row)
        self._loaded[key_id, number] = Material(slot, row.material_id, blob_prefix(key_id, number))
        while len(self._loaded) > self._capacity:
            self._forget_oldest()

    def _unwrap(self, row: MaterialRow) -> Slot:
        place = Place(TABLE, row.key_id, row.number, row.spec)
        while True:
            try:
                return self._hierarchy.unwrap(place, row.domain_key_id, row.wrapped)
            except ArenaFullError:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        if not self._loaded:
            raise KeyUnavailableError("the daemon's secret memory is full; raise its memory limit")
        _, oldest = self._loaded.popitem(last=False)
        oldest.release()

    def forget(self, key_id: str) -> None:
        """Wipe all of a key's material."""
        for forgotten in self._loads:
            forgotten.add(key_id)
        for address in [one for one in self._loaded if one[0] == key_id]:
            self._loaded.pop(address).release()

    def seal(self) -> None:
        """Forget everything."""
        for material in self._loaded.values():
            material.release()
        self._loaded.clear()


def material_id_of(key_id: str, secret: memoryview) -> str:
    """Return the public name of key material: 64 hex digits that tell the key and the material, and nothing of it."""
    name = memoryview(bytearray(32))
    derive_into(secret, Label.MATERIAL_ID, uuid.UUID(key_id).bytes, name)
    return name.hex()
