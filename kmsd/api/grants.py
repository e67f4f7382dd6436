"""Operations on grants: permissions on a key that are given and taken away one by one, beside its policy."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, KeyAccess, KeyState, Operation
from kmsd.api.shapes import Empty, EncryptionContext, GrantTokens, KeyIdentifier, Marker, Request, Response, Structure

# AWS's form, with the backslash that systemd escapes characters of unit names by.
PrincipalText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        pattern=r"^[\w+=,.@:/\\-]+\Z",
        description='As in a policy: "user:backup", "unit:nginx.service", or an ARN.',
    ),
]
GrantId = Annotated[str, Meta(min_length=1, max_length=128)]
GrantToken = Annotated[str, Meta(min_length=1, max_length=8192)]
GrantName = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[a-zA-Z0-9:/_-]+\Z")]
# The model's bound; lists of grants are of at most 100, as of aliases.
GrantLimit = Annotated[int, Meta(ge=1, le=100)]


class GrantOperation(enum.StrEnum):
    """What a grant may permit, as AWS KMS has it; of these, what this version's keys can do."""

    DECRYPT = "Decrypt"
    ENCRYPT = "Encrypt"
    GENERATE_DATA_KEY = "GenerateDataKey"
    GENERATE_DATA_KEY_WITHOUT_PLAINTEXT = "GenerateDataKeyWithoutPlaintext"
    RE_ENCRYPT_FROM = "ReEncryptFrom"
    RE_ENCRYPT_TO = "ReEncryptTo"
    CREATE_GRANT = "CreateGrant"
    RETIRE_GRANT = "RetireGrant"
    DESCRIBE_KEY = "DescribeKey"


class GrantConstraints(Structure, frozen=True, kw_only=True):
    """What the encryption context of a request has to be: exactly these pairs, or at least these."""

    encryption_context_subset: EncryptionContext | None = None
    encryption_context_equals: EncryptionContext | None = None


class GrantListEntry(Structure, frozen=True, kw_only=True):
    """A grant in a list; `name` is empty if it has none. `key_id` is the key's ARN."""

    key_id: str
    grant_id: str
    name: str
    creation_date: dt.datetime
    grantee_principal: str
    retiring_principal: str | None = None
    issuing_account: str
    operations: list[GrantOperation]
    constraints: GrantConstraints | None = None


class CreateGrantRequest(Request, frozen=True, kw_only=True):
    """Members of CreateGrant; one with a name that is asked for again alike is the same grant."""

    key_id: KeyIdentifier
    grantee_principal: PrincipalText
    operations: Annotated[list[GrantOperation], Meta(min_length=1, max_length=32)]
    retiring_principal: PrincipalText | None = None
    constraints: GrantConstraints | None = None
    grant_tokens: GrantTokens = []
    name: GrantName | None = None
    dry_run: bool = False


class CreateGrantResponse(Response, frozen=True, kw_only=True):
    """What CreateGrant answers; the token names the grant and permits nothing."""

    grant_token: str
    grant_id: str


class ListGrantsRequest(Request, frozen=True, kw_only=True):
    """Members of ListGrants: all grants of a key, one of them, or those of a grantee."""

    key_id: KeyIdentifier
    limit: GrantLimit = 50
    marker: Marker | None = None
    grant_id: GrantId | None = None
    grantee_principal: PrincipalText | None = None


class ListGrantsResponse(Response, frozen=True, kw_only=True):
    """What ListGrants and ListRetirableGrants answer, ordered by grant id."""

    grants: list[GrantListEntry]
    next_marker: str | None = None
    truncated: bool = False


class ListRetirableGrantsRequest(Request, frozen=True, kw_only=True):
    """Members of ListRetirableGrants."""

    retiring_principal: PrincipalText
    limit: GrantLimit = 50
    marker: Marker | None = None


class RetireGrantRequest(Request, frozen=True, kw_only=True):
    """Members of RetireGrant: the grant's token, or its key's ARN and its id."""

    grant_token: GrantToken | None = None
    key_id: KeyIdentifier | None = None
    grant_id: GrantId | None = None
    dry_run: bool = False


class RevokeGrantRequest(Request, frozen=True, kw_only=True):
    """Members of RevokeGrant."""

    key_id: KeyIdentifier
    grant_id: GrantId
    dry_run: bool = False


_ENTRIES_BYTES = 512 * 1024  # 100 grants with constraints of at most some 4 KiB

CREATE_GRANT = Operation(
    name="CreateGrant",
    summary="Permit a principal some operations with a key.",
    request=CreateGrantRequest,
    response=CreateGrantResponse,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=(KeyState.ENABLED, KeyState.UNAVAILABLE, KeyState.UPDATING),
    audit_fields=(
        "key_id",
        "grantee_principal",
        "retiring_principal",
        "operations",
        "constraints",
        "name",
        "dry_run",
    ),
    audit_response=("grant_id",),
)
LIST_GRANTS = Operation(
    name="ListGrants",
    summary="List the grants of a key.",
    request=ListGrantsRequest,
    response=ListGrantsResponse,
    cost=Cost.STORE,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    reply_bytes=_ENTRIES_BYTES,
    audit_fields=("key_id", "limit", "marker", "grant_id", "grantee_principal"),
)
LIST_RETIRABLE_GRANTS = Operation(
    name="ListRetirableGrants",
    summary="List the grants that a principal may retire.",
    request=ListRetirableGrantsRequest,
    response=ListGrantsResponse,
    cost=Cost.STORE,
    reply_bytes=_ENTRIES_BYTES,
    audit_fields=("retiring_principal", "limit", "marker"),
)
RETIRE_GRANT = Operation(
    name="RetireGrant",
    summary="Give up a grant, as who may retire it.",
    request=RetireGrantRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    resolves_keys=False,
    key_access=KeyAccess.ID_OR_ARN,
    audit_fields=("key_id", "grant_id", "dry_run"),
)
REVOKE_GRANT = Operation(
    name="RevokeGrant",
    summary="Take a grant away.",
    request=RevokeGrantRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    audit_fields=("key_id", "grant_id", "dry_run"),
)

OPERATIONS = (CREATE_GRANT, LIST_GRANTS, LIST_RETIRABLE_GRANTS, RETIRE_GRANT, REVOKE_GRANT)
