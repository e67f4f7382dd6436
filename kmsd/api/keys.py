"""Operations on keys and aliases."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, KeyAccess, KeyState, KeyUsage, Operation
from kmsd.api.shapes import (
    AliasListEntry,
    AliasName,
    Description,
    Empty,
    GrantTokens,
    KeyIdentifier,
    KeyListEntry,
    KeyMetadata,
    KeyOrigin,
    KeySpec,
    Limit,
    Marker,
    PolicyText,
    Request,
    Response,
    Tag,
)


class CreateKeyRequest(Request, frozen=True, kw_only=True):
    """Members of CreateKey; without `policy` the key gets the default key policy."""

    policy: PolicyText | None = None
    description: Description = ""
    key_usage: KeyUsage = KeyUsage.ENCRYPT_DECRYPT
    key_spec: KeySpec = KeySpec.SYMMETRIC_DEFAULT
    origin: KeyOrigin = KeyOrigin.AWS_KMS
    bypass_policy_lockout_safety_check: bool = False
    tags: Annotated[list[Tag], Meta(max_length=50)] = []
    multi_region: bool = False


class CreateKeyResponse(Response, frozen=True, kw_only=True):
    """What CreateKey answers."""

    key_metadata: KeyMetadata


class DescribeKeyRequest(Request, frozen=True, kw_only=True):
    """Members of DescribeKey."""

    key_id: KeyIdentifier
    grant_tokens: GrantTokens = []


class DescribeKeyResponse(Response, frozen=True, kw_only=True):
    """What DescribeKey answers."""

    key_metadata: KeyMetadata


class ListKeysRequest(Request, frozen=True, kw_only=True):
    """Members of ListKeys."""

    limit: Limit = 100
    marker: Marker | None = None


class ListKeysResponse(Response, frozen=True, kw_only=True):
    """What ListKeys answers, ordered by key id."""

    keys: list[KeyListEntry]
    next_marker: str | None = None
    truncated: bool = False


class EnableKeyRequest(Request, frozen=True, kw_only=True):
    """Members of EnableKey and DisableKey."""

    key_id: KeyIdentifier


class UpdateKeyDescriptionRequest(Request, frozen=True, kw_only=True):
    """Members of UpdateKeyDescription."""

    key_id: KeyIdentifier
    description: Description


class CreateAliasRequest(Request, frozen=True, kw_only=True):
    """Members of CreateAlias; the target is a key id or key ARN."""

    alias_name: AliasName
    target_key_id: KeyIdentifier


class UpdateAliasRequest(Request, frozen=True, kw_only=True):
    """Members of UpdateAlias; the target is a key id or key ARN."""

    alias_name: AliasName
    target_key_id: KeyIdentifier


class DeleteAliasRequest(Request, frozen=True, kw_only=True):
    """Members of DeleteAlias."""

    alias_name: AliasName


class ListAliasesRequest(Request, frozen=True, kw_only=True):
    """Members of ListAliases; with `key_id` only that key's aliases."""

    key_id: KeyIdentifier | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    marker: Marker | None = None


class ListAliasesResponse(Response, frozen=True, kw_only=True):
    """What ListAliases answers, ordered by name."""

    aliases: list[AliasListEntry]
    next_marker: str | None = None
    truncated: bool = False


CREATE_KEY = Operation(
    name="CreateKey",
    summary="Make a key.",
    request=CreateKeyRequest,
    response=CreateKeyResponse,
    cost=Cost.STORE,
    read_only=False,
    # 131,072 characters of policy are what AWS's model lets through before the quota of 32,768 bytes answers; kmsd
    # lets that much of ASCII in too, so that the answer is the same LimitExceededException.
    frame_bytes=192 * 1024,
    audit_fields=(
        "policy",
        "description",
        "key_usage",
        "key_spec",
        "origin",
        "bypass_policy_lockout_safety_check",
        "tags",
        "multi_region",
    ),
    audit_response=("key_metadata",),
)
DESCRIBE_KEY = Operation(
    name="DescribeKey",
    summary="Tell a key's metadata.",
    request=DescribeKeyRequest,
    response=DescribeKeyResponse,
    cost=Cost.STORE,
    key="key_id",
    key_access=KeyAccess.ANY,
    audit_fields=("key_id",),
)
LIST_KEYS = Operation(
    name="ListKeys",
    summary="List all keys.",
    request=ListKeysRequest,
    response=ListKeysResponse,
    cost=Cost.STORE,
    reply_bytes=256 * 1024,  # 1,000 keys of some 140 bytes each
    audit_fields=("limit", "marker"),
)
# AWS KMS, developer guide, key states.
_TO_BE_SWITCHED = (KeyState.ENABLED, KeyState.DISABLED, KeyState.UNAVAILABLE)
ENABLE_KEY = Operation(
    name="EnableKey",
    summary="Let a key be used again.",
    request=EnableKeyRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=_TO_BE_SWITCHED,
    audit_fields=("key_id",),
)
DISABLE_KEY = Operation(
    name="DisableKey",
    summary="Let a key not be used until it is enabled again.",
    request=EnableKeyRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=_TO_BE_SWITCHED,
    audit_fields=("key_id",),
)
# AWS KMS, developer guide, key states: what changes a key's surroundings works unless the key is to be destroyed.
_NOT_TO_BE_DESTROYED = tuple(state for state in KeyState if state is not KeyState.PENDING_DELETION)
UPDATE_KEY_DESCRIPTION = Operation(
    name="UpdateKeyDescription",
    summary="Change what is said of a key.",
    request=UpdateKeyDescriptionRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=_NOT_TO_BE_DESTROYED,
    audit_fields=("key_id", "description"),
)
CREATE_ALIAS = Operation(
    name="CreateAlias",
    summary="Give a key a name.",
    request=CreateAliasRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="target_key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=_NOT_TO_BE_DESTROYED,
    audit_fields=("alias_name", "target_key_id"),
)
UPDATE_ALIAS = Operation(
    name="UpdateAlias",
    summary="Let an alias name another key.",
    request=UpdateAliasRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    # The target; the key that the alias named before is authorized as well.
    key="target_key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=_NOT_TO_BE_DESTROYED,
    audit_fields=("alias_name", "target_key_id"),
)
DELETE_ALIAS = Operation(
    name="DeleteAlias",
    summary="Remove a name of a key.",
    request=DeleteAliasRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    # The alias names the key, which is authorized in every state.
    resolves_keys=False,
    audit_fields=("alias_name",),
)
LIST_ALIASES = Operation(
    name="ListAliases",
    summary="List aliases, all of them or one key's.",
    request=ListAliasesRequest,
    response=ListAliasesResponse,
    cost=Cost.STORE,
    reply_bytes=128 * 1024,  # 100 aliases of at most some 700 bytes each
    audit_fields=("key_id", "limit", "marker"),
)

OPERATIONS = (
    CREATE_KEY,
    DESCRIBE_KEY,
    LIST_KEYS,
    ENABLE_KEY,
    DISABLE_KEY,
    UPDATE_KEY_DESCRIPTION,
    CREATE_ALIAS,
    UPDATE_ALIAS,
    DELETE_ALIAS,
    LIST_ALIASES,
)
