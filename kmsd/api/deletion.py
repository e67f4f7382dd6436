"""Operations on the deletion of keys, and on what tells whether a key is still in use."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, KeyAccess, KeyState, Operation
from kmsd.api.shapes import KeyIdentifier, Request, Response, Structure

# The days that may lie between asking for a key's deletion and its destruction. AWS KMS's model has 1 to 365, its
# service 7 to 30; what lies between the two is told by the handler.
PendingWindow = Annotated[int, Meta(ge=1, le=365)]
SHORTEST_WINDOW_DAYS = 7
LONGEST_WINDOW_DAYS = 30
DEFAULT_WINDOW_DAYS = 30


class ScheduleKeyDeletionRequest(Request, frozen=True, kw_only=True):
    """Members of ScheduleKeyDeletion."""

    key_id: KeyIdentifier
    pending_window_in_days: PendingWindow = DEFAULT_WINDOW_DAYS


class ScheduleKeyDeletionResponse(Response, frozen=True, kw_only=True):
    """What ScheduleKeyDeletion answers; `key_id` is the key's ARN."""

    key_id: str
    deletion_date: dt.datetime
    key_state: KeyState
    pending_window_in_days: int


class CancelKeyDeletionRequest(Request, frozen=True, kw_only=True):
    """Members of CancelKeyDeletion."""

    key_id: KeyIdentifier


class CancelKeyDeletionResponse(Response, frozen=True, kw_only=True):
    """What CancelKeyDeletion answers: the ARN of the key, which is disabled now."""

    key_id: str


class GetKeyLastUsageRequest(Request, frozen=True, kw_only=True):
    """Members of GetKeyLastUsage."""

    key_id: KeyIdentifier


class KeyLastUsage(Structure, frozen=True, kw_only=True):
    """The last use of a key.

    `operation` is the operation's own name. AWS's KeyLastUsageTrackingOperation does not have EncryptFile, DecryptFile,
    CreateCredential and GetCredential, which are uses here as well.
    """

    operation: str
    timestamp: dt.datetime
    kms_request_id: str = ""


class MaterialUsage(Structure, frozen=True, kw_only=True):
    """What was done with one version of a key's material; ours, AWS tells nothing of versions."""

    number: int
    encrypted: int
    decrypted: int
    last_used: dt.datetime


class GetKeyLastUsageResponse(Response, frozen=True, kw_only=True):
    """What GetKeyLastUsage answers; without `key_last_usage` the key was not used since tracking began.

    `uses` and `material` are ours: how many uses there were by operation, and by version of the material. A ReEncrypt
    is a use of each of its two keys. Behind a kill some uses are known from the audit trail only, which does not tell
    of versions, and some may be counted twice.
    """

    key_id: str
    tracking_start_date: dt.datetime
    key_creation_date: dt.datetime
    key_last_usage: KeyLastUsage | None = None
    uses: dict[str, int] = {}
    material: list[MaterialUsage] = []


SCHEDULE_KEY_DELETION = Operation(
    name="ScheduleKeyDeletion",
    summary="Let a key not be used any more, and destroy it after 7 to 30 days.",
    request=ScheduleKeyDeletionRequest,
    response=ScheduleKeyDeletionResponse,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    # AWS KMS, developer guide, key states.
    usable_in=(
        KeyState.ENABLED,
        KeyState.DISABLED,
        KeyState.PENDING_IMPORT,
        KeyState.UNAVAILABLE,
        KeyState.CREATING,
    ),
    audit_fields=("key_id", "pending_window_in_days"),
    audit_response=("key_id", "deletion_date", "key_state", "pending_window_in_days"),
)
CANCEL_KEY_DELETION = Operation(
    name="CancelKeyDeletion",
    summary="Keep a key that was to be destroyed; it is disabled until it is enabled.",
    request=CancelKeyDeletionRequest,
    response=CancelKeyDeletionResponse,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=(KeyState.PENDING_DELETION,),
    audit_fields=("key_id",),
    audit_response=("key_id",),
)
GET_KEY_LAST_USAGE = Operation(
    name="GetKeyLastUsage",
    summary="Tell when a key was used last, and how often.",
    request=GetKeyLastUsageRequest,
    response=GetKeyLastUsageResponse,
    cost=Cost.STORE,
    reply_bytes=512 * 1024,  # some 100 bytes for each version of the material, of which there are few
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    audit_fields=("key_id",),
)

OPERATIONS = (SCHEDULE_KEY_DELETION, CANCEL_KEY_DELETION, GET_KEY_LAST_USAGE)
