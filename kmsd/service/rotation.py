"""Rotation: new material for a key that stays the same to everybody who uses it.

What is encrypted from then on is encrypted with the new material. Each blob names the material that made it, and all of
a key's material is kept, so that nothing has to be encrypted again.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kmsd.api.shapes import KeySpec
from kmsd.material.specs import SPECS
from kmsd.material.versions import Versions
from kmsd.service.own_changes import OwnChange, OwnChanges
from kmsd.store.base import Insert, Replace
from kmsd.store.rows import KeyRow


class Rotation:
    """Gives keys new material; `clock` gives seconds since 1970 UTC."""

    def __init__(self, *, versions: Versions, changes: OwnChanges, clock: Callable[[], float]) -> None:
        self._versions = versions
        self._changes = changes
        self._clock = clock

    async def rotate(self, row: KeyRow) -> None:
        """Make the next material of a key its current one, on nobody's request.

        Raises ConflictError when the key is no longer as `row` tells, and other KmsErrors.
        """
        number = row.current_material + 1
        size = SPECS[KeySpec(row.key_spec)].material_bytes
        material = self._versions.create(row.key_id, number, row.key_spec, size, int(self._clock() * 1000))
        rotated = msgspec.structs.replace(row, current_material=number, version=row.version + 1)
        change = OwnChange(
            "RotateKey",
            row.key_id,
            [Replace(rotated), Insert(material)],
            parameters={"rotationType": "AUTOMATIC", "keyMaterialId": material.material_id},
        )
        await self._changes.commit(change)
