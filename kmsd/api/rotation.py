"""Operations on rotation: new material for a key, by its period or on demand."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, KeyAccess, KeyState, Operation
from kmsd.api.shapes import Empty, KeyIdentifier, Limit, Marker, Request, Response, Structure

# AWS KMS: EnableKeyRotation.
RotationPeriod = Annotated[int, Meta(ge=90, le=2560)]
DEFAULT_ROTATION_DAYS = 365


class RotationType(enum.StrEnum):
    """Why a key was rotated."""

    AUTOMATIC = "AUTOMATIC"
    ON_DEMAND = "ON_DEMAND"


class KeyMaterialState(enum.StrEnum):
    """Whether material encrypts what is new."""

    CURRENT = "CURRENT"
    NON_CURRENT = "NON_CURRENT"


class IncludeKeyMaterial(enum.StrEnum):
    """What ListKeyRotations lists: rotations, or the key's first material as well."""

    ALL_KEY_MATERIAL = "ALL_KEY_MATERIAL"
    ROTATIONS_ONLY = "ROTATIONS_ONLY"


class EnableKeyRotationRequest(Request, frozen=True, kw_only=True):
    """Members of EnableKeyRotation."""

    key_id: KeyIdentifier
    rotation_period_in_days: RotationPeriod = DEFAULT_ROTATION_DAYS


class DisableKeyRotationRequest(Request, frozen=True, kw_only=True):
    """Members of DisableKeyRotation."""

    key_id: KeyIdentifier


class GetKeyRotationStatusRequest(Request, frozen=True, kw_only=True):
    """Members of GetKeyRotationStatus."""

    key_id: KeyIdentifier


class GetKeyRotationStatusResponse(Response, frozen=True, kw_only=True):
    """What GetKeyRotationStatus answers; period and next date are there while rotation is enabled."""

    key_rotation_enabled: bool
    key_id: str
    rotation_period_in_days: int | None = None
    next_rotation_date: dt.datetime | None = None


class RotateKeyOnDemandRequest(Request, frozen=True, kw_only=True):
    """Members of RotateKeyOnDemand."""

    key_id: KeyIdentifier


class RotateKeyOnDemandResponse(Response, frozen=True, kw_only=True):
    """What RotateKeyOnDemand answers."""

    key_id: str


class ListKeyRotationsRequest(Request, frozen=True, kw_only=True):
    """Members of ListKeyRotations."""

    key_id: KeyIdentifier
    include_key_material: IncludeKeyMaterial = IncludeKeyMaterial.ROTATIONS_ONLY
    limit: Limit = 100
    marker: Marker | None = None


class RotationsListEntry(Structure, frozen=True, kw_only=True):
    """Material of a key; the first has neither date nor type."""

    key_id: str
    key_material_id: str
    key_material_state: KeyMaterialState
    rotation_date: dt.datetime | None = None
    rotation_type: RotationType | None = None


class ListKeyRotationsResponse(Response, frozen=True, kw_only=True):
    """What ListKeyRotations answers, oldest first."""

    rotations: list[RotationsListEntry]
    next_marker: str | None = None
    truncated: bool = False


ENABLE_KEY_ROTATION = Operation(
    name="EnableKeyRotation",
    summary="Have a key rotated by itself every so many days.",
    request=EnableKeyRotationRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    # AWS KMS, developer guide, key states.
    usable_in=(KeyState.ENABLED,),
    audit_fields=("key_id", "rotation_period_in_days"),
)
DISABLE_KEY_ROTATION = Operation(
    name="DisableKeyRotation",
    summary="Have a key no longer rotated by itself.",
    request=DisableKeyRotationRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=(KeyState.ENABLED,),
    audit_fields=("key_id",),
)
GET_KEY_ROTATION_STATUS = Operation(
    name="GetKeyRotationStatus",
    summary="Tell whether and when a key is rotated by itself.",
    request=GetKeyRotationStatusRequest,
    response=GetKeyRotationStatusResponse,
    cost=Cost.STORE,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    audit_fields=("key_id",),
)
ROTATE_KEY_ON_DEMAND = Operation(
    name="RotateKeyOnDemand",
    summary="Give a key new material now; what was encrypted before still decrypts.",
    request=RotateKeyOnDemandRequest,
    response=RotateKeyOnDemandResponse,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=(KeyState.ENABLED,),
    audit_fields=("key_id",),
    audit_response=("key_id",),
)
LIST_KEY_ROTATIONS = Operation(
    name="ListKeyRotations",
    summary="List the rotations of a key.",
    request=ListKeyRotationsRequest,
    response=ListKeyRotationsResponse,
    cost=Cost.STORE,
    reply_bytes=512 * 1024,  # 1,000 entries of some 300 bytes each
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    audit_fields=("key_id", "include_key_material", "limit", "marker"),
)

OPERATIONS = (
    ENABLE_KEY_ROTATION,
    DISABLE_KEY_ROTATION,
    GET_KEY_ROTATION_STATUS,
    ROTATE_KEY_ON_DEMAND,
    LIST_KEY_ROTATIONS,
)
