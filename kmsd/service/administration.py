"""The service itself: how it is, and what its audit trail says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import kmsd
from kmsd.api import administration as api
from kmsd.api.operation import MAX_FRAME_BYTES, Operation
from kmsd.hsm.root import TokenInfo
from kmsd.memory.arena import Arena
from kmsd.processes.confinement import Finding
from kmsd.service.call import Call
from kmsd.service.identifiers import Arns
from kmsd.service.unsealing import Unsealing

# What a reply of audit records may hold: a frame, less its envelope and the prefix of each record.
_MAX_RECORD_BYTES = MAX_FRAME_BYTES - 16 * 1024


class ReadableTrail(Protocol):
    """What is told of the audit trail."""

    @property
    def head(self) -> tuple[int, str]:
        """The last line's sequence number and hash."""

    def read(self, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        """Return lines after a sequence number."""

    def read_tail(self, *, limit: int, max_bytes: int) -> list[str]:
        """Return the newest lines."""


class Administration:
    """Handlers of the service itself.

    `connections` and `streams` count what is under way; `findings` are the self-check's. `token` gives what the token
    said at the last job.
    """

    def __init__(
        self,
        *,
        arns: Arns,
        arena: Arena,
        trail: ReadableTrail,
        audit_sync: str,
        started: dt.datetime,
        token: Callable[[], TokenInfo | None],
        unsealing: Unsealing,
        findings: Sequence[Finding],
        connections: Callable[[], int],
        streams: Callable[[], int],
    ) -> None:
        self._arns = arns
        self._arena = arena
        self._trail = trail
        self._audit_sync = audit_sync
        self._started = started
        self._token = token
        self._findings = findings
        self._unsealing = unsealing
        self._connections = connections
        self._streams = streams

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
        if request.after_sequence is None:
            return api.GetAuditRecordsResponse(
                records=self._trail.read_tail(limit=request.limit, max_bytes=_MAX_RECORD_BYTES)
            )
        after = request.after_sequence
        records = self._trail.read(after_seq=after, limit=request.limit, max_bytes=_MAX_RECORD_BYTES)
        return api.GetAuditRecordsResponse(records=records, truncated=after + len(records) < newest)


def _recovery(*, there: bool | None) -> api.RecoverySetting | None:
    if there is None:
        return None
    return api.RecoverySetting.SHARES if there else api.RecoverySetting.NONE


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.STATUS: Administration.status,
    api.GET_AUDIT_RECORDS: Administration.get_audit_records,
}
