"""Operations on the service itself, which are ours."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated

from msgspec import Meta

from kmsd.api.calendar import ClockState
from kmsd.api.operation import MAX_FRAME_BYTES, Cost, Operation
from kmsd.api.shapes import Request, Response, Structure


class SealState(enum.StrEnum):
    """Whether the daemon holds keys."""

    SEALED = "sealed"
    UNSEALED = "unsealed"


class PinSetting(enum.StrEnum):
    """Whether the daemon can find the token's PIN by itself."""

    NONE = "none"
    CONFIGURED = "configured"


class RecoverySetting(enum.StrEnum):
    """What opens the keys when the token is lost."""

    NONE = "none"
    SHARES = "shares"


class TokenStatus(Structure, frozen=True, kw_only=True):
    """The token as it was seen at the last job; `mechanisms` are PKCS#11's names without CKM_."""

    label: str
    manufacturer: str
    model: str
    serial: str
    firmware: str
    mechanisms: list[str] = []


class ProtectionStatus(Structure, frozen=True, kw_only=True):
    """A protection of one kind of the daemon's processes: `state` is on, off or unavailable (the kernel has it not)."""

    process: str
    protection: str
    state: str
    reason: str


class BackupStatus(Structure, frozen=True, kw_only=True):
    """The newest backup that was kept; `store_sequence` is the number of the store's last commit in it."""

    created: dt.datetime
    store_sequence: int
    length: int
    sha256: str


class StatusRequest(Request, frozen=True, kw_only=True):
    """Status has no members."""


class StatusResponse(Response, frozen=True, kw_only=True):
    """What Status answers; `started` is when the daemon began to serve.

    `unseal_failure` tells why the daemon is sealed: what came of the last attempt, or that the token was lost; nothing
    when it was sealed on request, or nobody has tried. `pin` tells whether it can unseal itself, `recovery` whether
    shares can unseal it without the token; that is not known before the store was looked at. `store_sequence` is the
    number of commits of the store so far, 0 before it is known; `last_backup`, and whether the host's `clock` is
    believed, are known from the first unsealing on.
    """

    state: SealState
    version: str
    account: str
    region: str
    started: dt.datetime
    secret_memory: str
    secret_memory_used_bytes: int
    secret_memory_limit_bytes: int
    audit_sync: str
    audit_sequence: int
    connections: int
    file_streams: int
    token: TokenStatus | None = None
    hardening: list[ProtectionStatus] = []
    unseal_failure: str | None = None
    pin: PinSetting = PinSetting.NONE
    recovery: RecoverySetting | None = None
    store_sequence: int = 0
    last_backup: BackupStatus | None = None
    clock: ClockState | None = None


class GetAuditRecordsRequest(Request, frozen=True, kw_only=True):
    """Members of GetAuditRecords: without `after_sequence` or `since` the newest records.

    `since` begins at or shortly before the first record that was written then or later, as clocks may step back; what
    follows is asked for with `after_sequence`, which overrides it.
    """

    after_sequence: Annotated[int, Meta(ge=0)] | None = None
    since: Annotated[dt.datetime, Meta(tz=True)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class GetAuditRecordsResponse(Response, frozen=True, kw_only=True):
    """What GetAuditRecords answers: lines of the trail as they stand there, oldest first.

    Asked for records behind a number or a time, it also tells the number up to which retention may have dropped some.
    """

    records: list[str]
    truncated: bool = False
    dropped_until: int = 0


class GetAuditAnchorRequest(Request, frozen=True, kw_only=True):
    """GetAuditAnchor has no members."""


class AuditAnchor(Structure, frozen=True, kw_only=True):
    """A checkpoint of the trail, as kmsd/audit/FORMAT.md has it: what to keep elsewhere."""

    seq: int
    prev: str
    event_time: str
    key_id: str
    signature: str


class GetAuditAnchorResponse(Response, frozen=True, kw_only=True):
    """What GetAuditAnchor answers: the audit key's raw public key and its id, and the last checkpoint.

    Each is absent as long as there is none, or none is known to a daemon that was not unsealed since its start.
    """

    public_key: bytes | None = None
    key_id: str | None = None
    anchor: AuditAnchor | None = None


class SealRequest(Request, frozen=True, kw_only=True):
    """Seal has no members."""


class SealResponse(Response, frozen=True, kw_only=True):
    """What Seal answers."""

    state: SealState


class UnsealRequest(Request, frozen=True, kw_only=True):
    """Members of Unseal: with `configured` the daemon takes the PIN from its own source, and the caller sends none.

    With `shares` the caller sends recovery shares instead of a PIN, and the token is not needed. With `accept_changes`
    records that are not as kmsd left them are accepted as they are: store, audit trail and token may tell of different
    histories after one of them was put back.
    """

    configured: bool = False
    shares: bool = False
    accept_changes: bool = False


class UnsealResponse(Response, frozen=True, kw_only=True):
    """What Unseal answers: the state before; the outcome comes over the descriptor."""

    state: SealState


STATUS = Operation(
    name="Status",
    summary="Tell whether the daemon is sealed, and how it is.",
    request=StatusRequest,
    response=StatusResponse,
    cost=Cost.STATUS,
    works_sealed=True,
    audit_fields=(),
)
GET_AUDIT_RECORDS = Operation(
    name="GetAuditRecords",
    summary="Read the audit trail.",
    request=GetAuditRecordsRequest,
    response=GetAuditRecordsResponse,
    cost=Cost.STATUS,
    works_sealed=True,
    reply_bytes=MAX_FRAME_BYTES,  # several records of the largest size
    audit_fields=("after_sequence", "since", "limit"),
)
GET_AUDIT_ANCHOR = Operation(
    name="GetAuditAnchor",
    summary="Get the audit key's public part and the last checkpoint of the audit trail, to verify it elsewhere.",
    request=GetAuditAnchorRequest,
    response=GetAuditAnchorResponse,
    cost=Cost.STATUS,
    works_sealed=True,
    audit_fields=(),
)
SEAL = Operation(
    name="Seal",
    summary="Wipe all keys from memory, until somebody unseals the daemon or it is started again.",
    request=SealRequest,
    response=SealResponse,
    cost=Cost.STORE,
    read_only=False,
    works_sealed=True,
    audit_fields=(),
    audit_response=("state",),
)
UNSEAL = Operation(
    name="Unseal",
    summary="Bring the keys into memory with the token's PIN, or recovery shares, which is sent over the descriptor.",
    request=UnsealRequest,
    response=UnsealResponse,
    cost=Cost.TOKEN,
    read_only=False,
    works_sealed=True,
    descriptors=1,
    audit_fields=("configured", "shares", "accept_changes"),
)

OPERATIONS = (STATUS, GET_AUDIT_RECORDS, GET_AUDIT_ANCHOR, SEAL, UNSEAL)
