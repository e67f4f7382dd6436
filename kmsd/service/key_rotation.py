"""What people ask for about rotation: a period, new material now, and what there was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kmsd.api import rotation as api
from kmsd.api.errors import InvalidMarkerError, LimitExceededError
from kmsd.api.operation import KeyState, Operation
from kmsd.api.shapes import Empty, KeyManager
from kmsd.service.calendar import moment
from kmsd.service.call import Call
from kmsd.service.default_key_care import ROTATION_MS
from kmsd.service.key_changes import KeyChanges, check_changeable
from kmsd.service.key_dates import DAY_MS
from kmsd.service.pagination import after, cut
from kmsd.service.records import KeyRecord
from kmsd.service.rotation import Rotation
from kmsd.store.base import Store
from kmsd.store.rows import MaterialRow

# AWS KMS quota: on-demand rotations of one key.
ON_DEMAND_ROTATIONS_PER_KEY = 25
# The number of a key's first material, which no rotation made.
_FIRST_MATERIAL = 1
# A number of material, as markers have it; in a ciphertext blob it has four bytes.
_NUMBER = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


class KeyRotation:
    """Handlers of rotation; `latest_ms` gives the time in milliseconds from which dates in the future are counted."""

    def __init__(self, *, store: Store, changes: KeyChanges, rotation: Rotation, latest_ms: Callable[[], int]) -> None:
        self._store = store
        self._changes = changes
        self._rotation = rotation
        self._latest_ms = latest_ms

    async def enable(self, call: Call, request: api.EnableKeyRotationRequest, key: KeyRecord) -> Empty:
        """Have the key rotated by itself; another period begins now, the same one goes on."""
        days = request.rotation_period_in_days
        next_ms = key.row.rotation_next_ms
        if days != key.row.rotation_days:
            next_ms = self._latest_ms() + days * DAY_MS
        await self._changes.make(call, key, rotation_days=days, rotation_next_ms=next_ms)
        return Empty()

    async def disable(self, call: Call, request: api.DisableKeyRotationRequest, key: KeyRecord) -> Empty:  # noqa: ARG002 - handlers share one form
        """Have the key rotated on demand only."""
        await self._changes.make(call, key, rotation_days=0, rotation_next_ms=0)
        return Empty()

    async def status(
        self,
        call: Call,  # noqa: ARG002 - handlers share one form
        request: api.GetKeyRotationStatusRequest,  # noqa: ARG002
        key: KeyRecord,
    ) -> api.GetKeyRotationStatusResponse:
        """Tell when the key is rotated next; default keys are every year, and a key that is to be destroyed never."""
        row = key.row
        days, next_ms = row.rotation_days, row.rotation_next_ms
        if row.key_manager == KeyManager.AWS and (material := await self._current(key)) is not None:
            days, next_ms = ROTATION_MS // DAY_MS, material.creation_ms + ROTATION_MS
        # AWS KMS: the status of a key that is pending deletion is false, and as before when that is cancelled.
        if not days or key.state is KeyState.PENDING_DELETION:
            return api.GetKeyRotationStatusResponse(key_rotation_enabled=False, key_id=key.key_id)
        return api.GetKeyRotationStatusResponse(
            key_rotation_enabled=True,
            key_id=key.key_id,
            rotation_period_in_days=days,
            next_rotation_date=moment(next_ms),
        )

    async def _current(self, key: KeyRecord) -> MaterialRow | None:
        return await self._store.material(key.key_id, key.row.current_material)

    async def rotate(
        self,
        call: Call,
        request: api.RotateKeyOnDemandRequest,  # noqa: ARG002 - handlers share one form
        key: KeyRecord,
    ) -> api.RotateKeyOnDemandResponse:
        """Give the key new material now; of two who ask at once, one is told that he was overtaken."""
        check_changeable(key)
        if key.row.on_demand_rotations >= ON_DEMAND_ROTATIONS_PER_KEY:
            raise LimitExceededError(
                f"{key.arn} was rotated on demand {ON_DEMAND_ROTATIONS_PER_KEY} times, which is the limit: "
                "rotate it by a period, or make a new key"
            )
        renewal = self._rotation.on_demand(key.row)
        # Before the commit, so that the record names the material also when it is not known whether that happened.
        call.noted = renewal.facts
        await self._changes.commit(call, key, renewal.changes)
        return api.RotateKeyOnDemandResponse(key_id=key.key_id)

    async def list(
        self,
        call: Call,  # noqa: ARG002 - handlers share one form
        request: api.ListKeyRotationsRequest,
        key: KeyRecord,
    ) -> api.ListKeyRotationsResponse:
        """List the key's rotations, and with them its first material if that is asked for."""
        rotations_only = request.include_key_material is api.IncludeKeyMaterial.ROTATIONS_ONLY
        last = max(_number(after(request.marker)), _FIRST_MATERIAL if rotations_only else 0)
        rows = await self._store.materials(key.key_id, after=last, limit=request.limit + 1)
        # A rotation since the key was looked up is not one of the key as it is told of here.
        rows = [row for row in rows if row.number <= key.row.current_material]
        shown, page = cut(rows, request.limit, lambda row: str(row.number))
        return api.ListKeyRotationsResponse(
            rotations=[_entry(row, key) for row in shown], next_marker=page.next_marker, truncated=page.truncated
        )


def _number(marked: str | None) -> int:
    if marked is None:
        return 0
    if not _NUMBER.fullmatch(marked):
        raise InvalidMarkerError("the marker was not made by this operation")
    return int(marked)


def _entry(row: MaterialRow, key: KeyRecord) -> api.RotationsListEntry:
    is_current = row.number == key.row.current_material
    state = api.KeyMaterialState.CURRENT if is_current else api.KeyMaterialState.NON_CURRENT
    if row.number == _FIRST_MATERIAL:
        return api.RotationsListEntry(key_id=key.key_id, key_material_id=row.material_id, key_material_state=state)
    return api.RotationsListEntry(
        key_id=key.key_id,
        key_material_id=row.material_id,
        key_material_state=state,
        rotation_date=moment(row.creation_ms),
        # Material that says nothing is a default key's, made before material said why there is more than one.
        rotation_type=api.RotationType(row.rotation or api.RotationType.AUTOMATIC),
    )


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.ENABLE_KEY_ROTATION: KeyRotation.enable,
    api.DISABLE_KEY_ROTATION: KeyRotation.disable,
    api.GET_KEY_ROTATION_STATUS: KeyRotation.status,
    api.ROTATE_KEY_ON_DEMAND: KeyRotation.rotate,
    api.LIST_KEY_ROTATIONS: KeyRotation.list,
}
