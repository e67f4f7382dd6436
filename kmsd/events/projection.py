"""Which records of the audit trail are events, and what these say: one table, and nothing is remembered (pure).

A record makes one event or none, and what it makes depends on its line alone. So whoever projects the same trail has
the same events, with the same ids: nothing is lost by a crash, and nothing is told that is not on record.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from kmsd.api.events import Event, Severity

# AWS's own name for the service in an event, and ours for what AWS does not tell.
_AWS, _OURS = "aws.kms", "kmsd"
# Of records (kmsd/audit/FORMAT.md): what became of a change, and what kmsd did by itself.
_OUTCOME, _SYSTEM = "ApiCallOutcome", "ServiceEvent"
# EventBridge tells times in seconds: of "2026-11-26T02:31:05.123Z" this much, and the Z.
_SECONDS_CHARACTERS = 19
# A record of a request is no event, and most records are of requests. What tells them stands behind numbers, hash and
# time, of at most 170 characters together.
_REQUEST = '"eventType":"ApiCall",'
_START_CHARACTERS = 200


class Told(NamedTuple):
    """What an event says of a record; members of `details` that are None are left out."""

    detail_type: str
    severity: Severity
    message: str
    details: Mapping[str, Any] = {}
    source: str = _OURS


class TrailRecord(msgspec.Struct, frozen=True, rename="camel"):
    """What is read of a record's line."""

    seq: int
    event_time: str
    event_type: str
    event_name: str
    user_identity: dict[str, Any] | None = None
    resources: list[dict[str, str]] = []
    request_parameters: dict[str, Any] | None = None
    response_elements: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    additional_event_data: dict[str, Any] | None = None

    @property
    def arns(self) -> list[str]:
        """The ARNs of the keys that it is about."""
        return [resource["ARN"] for resource in self.resources if "ARN" in resource]

    @property
    def key_id(self) -> str:
        """The id of the key that it is about, "" if it is about none."""
        return self.arns[0].rpartition("/")[2] if self.arns else ""

    @property
    def by(self) -> str:
        """Who did it: a user, a uid that has no name, or kmsd itself."""
        identity = self.user_identity or {}
        return str(identity.get("userName") or (f"uid {identity['uid']}" if "uid" in identity else "kmsd"))

    @property
    def unit(self) -> str | None:
        """The systemd unit whose process it was, if that is known."""
        return (self.user_identity or {}).get("unit")

    def said(self, name: str) -> Any:
        """Return what it says under a name: of the outcome, of the request, or beside them; None if nothing."""
        for members in (self.response_elements, self.request_parameters, self.additional_event_data):
            if members is not None and name in members:
                return members[name]
        return None

    @property
    def happened(self) -> bool:
        """Whether it tells of something that was done, also where the answer to who asked for it failed."""
        details = self.additional_event_data or {}
        return self.event_type == _SYSTEM or self.error_code is None or details.get("committed") is True


_DECODER = msgspec.json.Decoder(TrailRecord)


class Projection:
    """Makes events of records for one account and region."""

    def __init__(self, account: str, region: str) -> None:
        self._account = account
        self._region = region

    def event_of(self, line: str) -> Event | None:
        """Return the event of a record's line, which has no line feed, or None."""
        if line.find(_REQUEST, 0, _START_CHARACTERS) >= 0:
            return None
        try:
            record = _DECODER.decode(line)
        except msgspec.DecodeError:
            return None  # the first line of a reduced file, or none of kmsd's: verifying the trail tells
        told = _told_of(record)
        if told is None:
            return None
        details = {
            "sequence": record.seq,
            "severity": told.severity,
            "message": told.message,
            "key-id": record.key_id or None,
            **told.details,
        }
        return Event(
            version="0",
            id=id_of(line),
            detail_type=told.detail_type,
            source=told.source,
            account=self._account,
            time=event_time(record.event_time),
            region=self._region,
            resources=record.arns,
            detail={name: value for name, value in details.items() if value is not None},
        )

    def trouble(self, reason: str, since: str) -> Event:
        """Return the event that no record can make: the trail cannot be written, since a time as in its records."""
        message = (
            f"the audit trail cannot be written: {reason}. Nothing is answered until it can: look at its disk and its "
            "files"
        )
        return Event(
            version="0",
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self._account} {since} {reason}")),
            detail_type="Audit Trail In Trouble",
            source=_OURS,
            account=self._account,
            time=event_time(since),
            region=self._region,
            resources=[],
            detail={"severity": Severity.CRITICAL, "message": message, "reason": reason},
        )


def event_time(record_time: str) -> str:
    """Return the time of an event, of the time that its record bears."""
    return f"{record_time[:_SECONDS_CHARACTERS]}Z"


def id_of(line: str) -> str:
    """Return the id of the event of a record's line: the start of the line's SHA-256, by which the trail is chained."""
    digest = hashlib.sha256(f"{line}\n".encode("ascii", "backslashreplace")).digest()
    # RFC 9562, 5.8: version 8 is for what is made in a way of its own.
    return str(uuid.UUID(int=(int.from_bytes(digest[:16]) & ~(0xF000 << 64) & ~(0xC000 << 48)) | 8 << 76 | 2 << 62))


def _told_of(record: TrailRecord) -> Told | None:
    if record.event_type not in {_OUTCOME, _SYSTEM}:
        return None
    table = _DONE if record.happened else _FAILED
    tell = table.get(record.event_name)
    return None if tell is None else tell(record)


def _rotation(record: TrailRecord) -> Told:
    key = record.key_id
    return Told(
        "KMS CMK Rotation",
        Severity.INFO,
        f"key {key} was rotated by {record.by}: what was encrypted before still decrypts",
        {"by": record.by},
        source=_AWS,
    )


def _deletion(record: TrailRecord) -> Told:
    return Told(
        "KMS CMK Deletion",
        Severity.WARNING,
        f"key {record.key_id} was destroyed: nothing that was encrypted under it can be read again",
        source=_AWS,
    )


def _deletion_scheduled(record: TrailRecord) -> Told:
    key, date = record.key_id, record.said("deletionDate")
    when = "" if date is None else f" on {date}"
    return Told(
        "Key Deletion Scheduled",
        Severity.WARNING,
        f"key {key} was given up by {record.by}: it cannot be used any more, and is destroyed{when}. To keep it: "
        f"kms key cancel-deletion {key}",
        {"by": record.by, "deletion-date": date, "pending-window-in-days": record.said("pendingWindowInDays")},
    )


def _deletion_cancelled(record: TrailRecord) -> Told:
    key = record.key_id
    return Told(
        "Key Deletion Cancelled",
        Severity.NOTICE,
        f"key {key} is kept, {record.by} says so. It is disabled; to use it again: kms key enable {key}",
        {"by": record.by},
    )


def _deletion_near(record: TrailRecord) -> Told:
    key, date = record.key_id, record.said("deletionDate")
    when = "soon" if date is None else f"on {date}"
    return Told(
        "Key Deletion Near",
        Severity.WARNING,
        f"key {key} is destroyed {when}: nothing that was encrypted under it can be read afterwards. To see what still "
        f"uses it: kms key last-use {key}. To keep it: kms key cancel-deletion {key}",
        {"deletion-date": date},
    )


def _used_while_pending(record: TrailRecord) -> Told:
    key, operation, count = record.key_id, record.said("operation"), record.said("count") or 1
    who = record.by if record.unit is None else f"{record.by} ({record.unit})"
    return Told(
        "Key Used While Pending Deletion",
        Severity.WARNING,
        f"{who} still uses key {key}, which is to be destroyed: {operation} was refused, {count} "
        f"{'use' if count == 1 else 'uses'} since this was told last. To keep the key: kms key cancel-deletion {key}",
        {"by": record.by, "unit": record.unit, "operation": operation, "count": count},
    )


def _sealed(record: TrailRecord) -> Told:
    return Told(
        "Sealed",
        Severity.WARNING,
        f"kmsd was sealed by {record.by}: nothing is encrypted or decrypted until an administrator runs kms unseal",
        {"by": record.by},
    )


def _unsealed(record: TrailRecord) -> Told | None:
    if record.said("already"):
        return None
    return Told("Unsealed", Severity.NOTICE, f"kmsd was unsealed by {record.by}", {"by": record.by})


def _unseal_failed(record: TrailRecord) -> Told | None:
    # Of attempts that kmsd repeats by itself the first tells, and the last.
    if (record.said("attempt") or 1) > 1 and record.said("triedAgain"):
        return None
    why = record.error_message or record.error_code
    goes_on = " kmsd tries again by itself." if record.said("triedAgain") else ""
    return Told(
        "Unseal Failed",
        Severity.ERROR,
        f"{record.by} could not unseal kmsd: {why}.{goes_on} To see how the token is: kms status",
        {"by": record.by, "error-code": record.error_code},
    )


def _started(record: TrailRecord) -> Told:
    absent = record.said("missingProtections") or []
    without = f", without: {', '.join(map(str, absent))}" if isinstance(absent, list) and absent else ""
    return Told(
        "Started",
        Severity.NOTICE,
        f"kmsd {record.said('version')} has started{without}",
        {"version": record.said("version")},
    )


def _stopped(record: TrailRecord) -> Told:
    return Told("Stopped", Severity.NOTICE, f"kmsd {record.said('version')} has stopped, as it was told to")


def _audit_well_again(record: TrailRecord) -> Told:
    since, until, reason = (record.said(name) for name in ("since", "until", "reason"))
    return Told(
        "Audit Trail Well Again",
        Severity.WARNING,
        f"the audit trail could not be written from {since} to {until}, and nothing was answered: {reason}. It can be "
        "written again",
        {"since": since, "until": until, "reason": reason},
    )


def _token_lost(record: TrailRecord) -> Told:
    sealed = record.said("sealed") is True
    then = "kmsd has sealed itself" if sealed else "kmsd goes on with the keys that it has, but cannot be unsealed"
    return Told(
        "Token Lost",
        Severity.ERROR,
        f"the token is gone: {record.error_message}. {then}. Plug it in again, or see kms status",
        {"sealed": sealed},
    )


def _token_back(record: TrailRecord) -> Told:  # noqa: ARG001 - all rows of the table have one form
    return Told("Token Back", Severity.NOTICE, "the token is there again")


def _clock_in_doubt(record: TrailRecord) -> Told:
    state, clock, certain = (record.said(name) for name in ("state", "clock", "certain"))
    return Told(
        "Clock In Doubt",
        Severity.ERROR,
        f"the host's clock says {clock}, and kmsd reckons {certain}: until they agree, what falls due does so by the "
        "earlier of the two. If the clock is right: kms clock confirm",
        {"state": state, "clock": clock, "certain": certain},
    )


def _clock_believed(record: TrailRecord) -> Told:
    return Told(
        "Clock Believed",
        Severity.NOTICE,
        "the host's clock and the time that is certain agree again",
        {"clock": record.said("clock"), "certain": record.said("certain")},
    )


def _clock_confirmed(record: TrailRecord) -> Told:
    return Told(
        "Clock Confirmed",
        Severity.NOTICE,
        f"{record.by} says that the host's clock is right: what is due by it happens",
        {"by": record.by, "before": record.said("before"), "after": record.said("after")},
    )


_DONE: dict[str, Callable[[TrailRecord], Told | None]] = {
    "RotateKey": _rotation,
    "RotateKeyOnDemand": _rotation,
    "DeleteKey": _deletion,
    "ScheduleKeyDeletion": _deletion_scheduled,
    "CancelKeyDeletion": _deletion_cancelled,
    "WarnOfKeyDeletion": _deletion_near,
    "KeyUsedWhilePendingDeletion": _used_while_pending,
    "Seal": _sealed,
    "Unseal": _unsealed,
    "UnsealFailed": _unseal_failed,
    "Start": _started,
    "Stop": _stopped,
    "AuditTrouble": _audit_well_again,
    "TokenLost": _token_lost,
    "TokenBack": _token_back,
    "ClockInDoubt": _clock_in_doubt,
    "ClockBelieved": _clock_believed,
    "ConfirmClock": _clock_confirmed,
}
_FAILED: dict[str, Callable[[TrailRecord], Told | None]] = {"Unseal": _unseal_failed}

# The names of all records that may be events.
PROJECTED = frozenset({*_DONE, *_FAILED})
