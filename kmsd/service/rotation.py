"""Rotation: new material for a key that stays the same to everybody who uses it.

What is encrypted from then on is encrypted with the new material. Each blob names the material that made it, and all of
a key's material is kept, so that nothing has to be encrypted again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from kmsd.api.rotation import RotationType
from kmsd.api.shapes import KeySpec
from kmsd.material.specs import SPECS
from kmsd.material.versions import Versions
from kmsd.service.key_dates import DAY_MS, dated
from kmsd.service.own_changes import OwnChange, OwnChanges
from kmsd.store.base import Change, Insert, Replace
from kmsd.store.rows import KeyRow, MaterialRow


class Renewal(NamedTuple):
    """A key as it is after a rotation, and its new material; committed together."""

    row: KeyRow
    material: MaterialRow

    @property
    def changes(self) -> list[Change]:
        """What is to be committed; the key's row comes first, so that a rotation that was overtaken is told as such."""
        return [Replace(self.row), Insert(self.material)]

    @property
    def facts(self) -> dict[str, str]:
        """What the trail tells of it."""
        return {"rotationType": self.material.rotation, "keyMaterialId": self.material.material_id}


class Rotation:
    """Gives keys new material.

    `clock` gives seconds since 1970 UTC, `reckoned_ms` the time in milliseconds that has passed for certain.
    """

    def __init__(
        self,
        *,
        versions: Versions,
        changes: OwnChanges,
        clock: Callable[[], float],
        reckoned_ms: Callable[[], int],
    ) -> None:
        self._versions = versions
        self._changes = changes
        self._clock = clock
        self._reckoned_ms = reckoned_ms

    async def rotate(self, row: KeyRow) -> None:
        """Make the next material of a key its current one, on nobody's request.

        However many periods were missed, there is one rotation, and the next is a period after it. Raises ConflictError
        when the key is no longer as `row` tells, and other KmsErrors.
        """
        following_ms = self._reckoned_ms() + row.rotation_days * DAY_MS if row.rotation_days else 0
        row = msgspec.structs.replace(row, rotation_next_ms=following_ms)
        renewal = self._renew(row, RotationType.AUTOMATIC)
        await self._changes.commit(OwnChange("RotateKey", row.key_id, renewal.changes, parameters=renewal.facts))

    def on_demand(self, row: KeyRow) -> Renewal:
        """Return the rotation that somebody asks for; when the key is rotated by itself stays as it is."""
        row = msgspec.structs.replace(row, on_demand_rotations=row.on_demand_rotations + 1)
        return self._renew(row, RotationType.ON_DEMAND)

    def _renew(self, row: KeyRow, why: RotationType) -> Renewal:
        number = row.current_material + 1
        size = SPECS[KeySpec(row.key_spec)].material_bytes
        made = self._versions.create(row.key_id, number, row.key_spec, size, int(self._clock() * 1000))
        renewed = msgspec.structs.replace(row, current_material=number, version=row.version + 1)
        return Renewal(dated(renewed), msgspec.structs.replace(made, rotation=why))
