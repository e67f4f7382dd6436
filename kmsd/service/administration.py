"""The service itself: how it is, and what its audit trail says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import kmsd
from kmsd.api import administration as api
from kmsd.api.calendar import ClockState
from kmsd.api.operation import MAX_FRAME_BYTES, Operation
from kmsd.audit.chain import format_time, seq_of
from kmsd.audit.checkpoint import Checkpoint, key_id_of
from kmsd.hsm.root import TokenInfo
from kmsd.memory.arena import Arena
from kmsd.processes.confinement import Finding
from kmsd.service.call import Call
from kmsd.service.identifiers import Arns
from kmsd.service.unsealing import Unsealing
from kmsd.store.rows import BackupRow

# What a reply of audit records may hold: a frame, less its envelope and the prefix of each record.
_MAX_RECORD_BYTES = MAX_FRAME_BYTES - 16 * 1024

# By how much a clock may have stepped back without records of the time asked for being missed: time services step by
# seconds, and a minute more costs little to read.
_STEP_BACK_SECONDS = 60


class AuditKey(NamedTuple):
    """What vouches for the trail: the audit key's raw public key, and the last checkpoint, as far as they are known."""

    public_key: bytes | None
    last_checkpoint: Checkpoint | None


class ReadableTrail(Protocol):
    """What is told of the audit trail."""

    @property
    def head(self) -> tuple[int, str]:
        """The last line's sequence number and hash."""

    def read(self, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        """Return lines after a sequence number."""

    def read_tail(self, *, limit: int, max_bytes: int) -> list[str]:
        """Return the newest lines."""

    @property
    def reduced_until(self) -> int:
        """The number up to which retention may have dropped records."""

    def seq_before(self, event_time: str) -> int:
        """Return a number behind which all records of `event_time` and later stand, if the clock never stepped back."""


class Administration:
    """Handlers of the service itself.

    `connections` and `streams` count what is under way; `findings` are the self-check's. `token` gives what the token
    said at the last job, `audit_key` what vouches for the trail, `last_backup` the newest backup that was kept, and
    `clock` whether the host's clock is believed.
    """

    def __init__(
        self,
        *,
        arns: Arns,
        arena: Arena,
        trail: ReadableTrail,
        audit_key: Callable[[], AuditKey],
        audit_sync: str,
        started: dt.datetime,
        token: Callable[[], TokenInfo | None],
        unsealing: Unsealing,
        findings: Sequence[Finding],
        connections: Callable[[], int],
        streams: Callable[[], int],
        store_sequence: Callable[[], int],
        last_backup: Callable[[], BackupRow | None],
        clock: Callable[[], ClockState | None],
    ) -> None:
        self._arns = arns
        self._arena = arena
        self._trail = trail
        self._audit_key = audit_key
        self._audit_sync = audit_sync
        self._started = started
        self._token = token
        self._findings = findings
        self._unsealing = unsealing
        self._connections = connections
        self._streams = streams
        self._store_sequence = store_sequence
        self._last_backup = last_backup
        self._clock = clock

    async def status(self, call: Call, request: api.StatusRequest) -> api.StatusResponse:  # noqa: ARG002 - handlers share one form
        """Tell how the daemon is."""
        token = self._token()
        return api.StatusResponse(
            state=api.SealState.SEALED if self._unsealing.sealed else api.SealState.UNSEALED,
            version=kmsd.__version__,
            account=self._arns.account,
            region=self._arns.region,
            started=self._started,
            secret_memory=self._arena.kind,
            secret_memory_used_bytes=self._arena.used_bytes,
            secret_memory_limit_bytes=self._arena.limit_bytes,
            audit_sync=self._audit_sync,
            audit_sequence=self._trail.head[0],
            connections=self._connections(),
            file_streams=self._streams(),
            token=None
            if token is None
            else api.TokenStatus(
                label=token.label,
                manufacturer=token.manufacturer,
                model=token.model,
                serial=token.serial,
                firmware=token.firmware,
                mechanisms=list(token.mechanisms),
            ),
            unseal_failure=self._unsealing.failure,
            recovery=_recovery(there=self._unsealing.has_recovery),
            pin=api.PinSetting.CONFIGURED if self._unsealing.configured else api.PinSetting.NONE,
            store_sequence=self._store_sequence(),
            last_backup=_backup_status(self._last_backup()),
            clock=self._clock(),
            hardening=[
                api.ProtectionStatus(process=one.process, protection=one.protection, state=one.state, reason=one.reason)
                for one in self._findings
            ],
        )

    async def get_audit_records(
        self,
        call: Call,  # noqa: ARG002 - handlers share one form
        request: api.GetAuditRecordsRequest,
    ) -> api.GetAuditRecordsResponse:
        """Give lines of the trail as they stand there; reading them is itself recorded."""
        newest, _ = self._trail.head
        after = request.after_sequence
        if after is None and request.since is not None:
            after = self._trail.seq_before(format_time(request.since.timestamp() - _STEP_BACK_SECONDS))
        if after is None:
            return api.GetAuditRecordsResponse(
                records=self._trail.read_tail(limit=request.limit, max_bytes=_MAX_RECORD_BYTES)
            )
        records = self._trail.read(after_seq=after, limit=request.limit, max_bytes=_MAX_RECORD_BYTES)
        # By its number: where retention dropped records the numbers go on without them.
        last = seq_of(records[-1].encode()) if records else None
        return api.GetAuditRecordsResponse(
            records=records,
            truncated=last is not None and last < newest,
            dropped_until=self._trail.reduced_until,
        )

    async def get_audit_anchor(
        self,
        call: Call,  # noqa: ARG002 - handlers share one form
        request: api.GetAuditAnchorRequest,  # noqa: ARG002
    ) -> api.GetAuditAnchorResponse:
        """Give what others need to verify the trail without this daemon's word."""
        public_key, last = self._audit_key()
        return api.GetAuditAnchorResponse(
            public_key=public_key,
            key_id=None if public_key is None else key_id_of(public_key),
            anchor=None
            if last is None
            else api.AuditAnchor(
                seq=last.seq,
                prev=last.prev,
                event_time=last.event_time,
                key_id=last.key_id,
                signature=last.signature,
            ),
        )


def _recovery(*, there: bool | None) -> api.RecoverySetting | None:
    if there is None:
        return None
    return api.RecoverySetting.SHARES if there else api.RecoverySetting.NONE


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.STATUS: Administration.status,
    api.GET_AUDIT_RECORDS: Administration.get_audit_records,
    api.GET_AUDIT_ANCHOR: Administration.get_audit_anchor,
}


def _backup_status(row: BackupRow | None) -> api.BackupStatus | None:
    if row is None:
        return None
    return api.BackupStatus(
        created=dt.datetime.fromtimestamp(row.creation_ms / 1000, dt.UTC),
        store_sequence=row.store_sequence,
        length=row.length,
        sha256=row.sha256,
    )
