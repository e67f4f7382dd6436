"""Which records are events, and what they say: `kmsd.events.projection`."""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

import kmsd.events
from kmsd.api.events import Event, Severity, decode_event, encode_event
from kmsd.audit.chain import GENESIS, digest_of, link
from kmsd.audit.record import Actor, Kind, Record
from kmsd.events.projection import PROJECTED, Projection, id_of

ACCOUNT, REGION = "123456789012", "local-host-1"
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{KEY_ID}"
ALICE = Actor(uid=1000, gid=1000, user="alice", pid=7, unit="web.service", exe="/usr/bin/web")
CONTAINER = Actor(uid=524288, gid=524288, user=None, pid=8, unit=None, exe=None)
PROJECTION = Projection(ACCOUNT, REGION)
DOCUMENT = Path(kmsd.events.__path__[0], "EVENTS.md").read_text()


def line_of(record: Record) -> str:
    [line], _ = link(GENESIS, [record], "2026-11-26T02:31:05.999Z")
    return line[:-1].decode()


def event_of(record: Record) -> Event | None:
    return PROJECTION.event_of(line_of(record))


def change(name: str, *, actor: Actor | None = ALICE, kind: Kind = Kind.OUTCOME, **members: Any) -> Record:
    return Record(kind, name, actor, "request", read_only=False, resources=(ARN,), **members)


def system(name: str, *, error: str | None = None, **details: Any) -> Record:
    message = None if error is None else "why"
    return Record(
        Kind.SYSTEM, name, None, "", read_only=False, error_code=error, error_message=message, details=details
    )


# (record, detail-type, severity, further members of the detail)
EVENTS: list[tuple[Record, str, Severity, dict[str, Any]]] = [
    (change("RotateKey", actor=None), "KMS CMK Rotation", Severity.INFO, {"key-id": KEY_ID, "by": "kmsd"}),
    (change("RotateKeyOnDemand"), "KMS CMK Rotation", Severity.INFO, {"key-id": KEY_ID, "by": "alice"}),
    (change("DeleteKey", actor=None), "KMS CMK Deletion", Severity.WARNING, {"key-id": KEY_ID}),
    (
        change(
            "ScheduleKeyDeletion",
            actor=CONTAINER,
            request_parameters={"keyId": KEY_ID, "pendingWindowInDays": 7},
            response_elements={"keyId": ARN, "deletionDate": "2026-12-03T00:00:00Z", "keyState": "PendingDeletion"},
        ),
        "Key Deletion Scheduled",
        Severity.WARNING,
        {"key-id": KEY_ID, "by": "uid 524288", "deletion-date": "2026-12-03T00:00:00Z", "pending-window-in-days": 7},
    ),
    (
        change("ScheduleKeyDeletion", details={"settledAtStart": True}),
        "Key Deletion Scheduled",
        Severity.WARNING,
        {"key-id": KEY_ID, "by": "alice"},
    ),
    (change("CancelKeyDeletion"), "Key Deletion Cancelled", Severity.NOTICE, {"key-id": KEY_ID, "by": "alice"}),
    (
        change("WarnOfKeyDeletion", actor=None, request_parameters={"deletionDate": "2026-12-03T00:00:00Z"}),
        "Key Deletion Near",
        Severity.WARNING,
        {"key-id": KEY_ID, "deletion-date": "2026-12-03T00:00:00Z"},
    ),
    (
        change("KeyUsedWhilePendingDeletion", kind=Kind.SYSTEM, details={"operation": "Decrypt", "count": 3}),
        "Key Used While Pending Deletion",
        Severity.WARNING,
        {"key-id": KEY_ID, "by": "alice", "unit": "web.service", "operation": "Decrypt", "count": 3},
    ),
    (Record(Kind.OUTCOME, "Seal", ALICE, "", read_only=False), "Sealed", Severity.WARNING, {"by": "alice"}),
    (Record(Kind.OUTCOME, "Unseal", ALICE, "", read_only=False), "Unsealed", Severity.NOTICE, {"by": "alice"}),
    (system("Unseal", storeSequence=5), "Unsealed", Severity.NOTICE, {"by": "kmsd"}),
    (
        Record(Kind.OUTCOME, "Unseal", ALICE, "", read_only=False, error_code="TokenPinIncorrectException"),
        "Unseal Failed",
        Severity.ERROR,
        {"by": "alice", "error-code": "TokenPinIncorrectException"},
    ),
    (
        system("UnsealFailed", error="TokenException", attempt=1, triedAgain=True),
        "Unseal Failed",
        Severity.ERROR,
        {"by": "kmsd", "error-code": "TokenException"},
    ),
    (
        system("UnsealFailed", error="TokenPinIncorrectException", attempt=3, triedAgain=False),
        "Unseal Failed",
        Severity.ERROR,
        {"by": "kmsd", "error-code": "TokenPinIncorrectException"},
    ),
    (
        system("Start", version="7", missingProtections=["daemon: seccomp"]),
        "Started",
        Severity.NOTICE,
        {"version": "7"},
    ),
    (system("Stop", version="7"), "Stopped", Severity.NOTICE, {}),
    (
        system("AuditTrouble", since="a", until="b", reason="no space left"),
        "Audit Trail Well Again",
        Severity.WARNING,
        {"since": "a", "until": "b", "reason": "no space left"},
    ),
    (system("TokenLost", error="TokenException", sealed=True), "Token Lost", Severity.ERROR, {"sealed": True}),
    (system("TokenBack"), "Token Back", Severity.NOTICE, {}),
    (
        system("ClockInDoubt", state="ahead", clock="a", certain="b"),
        "Clock In Doubt",
        Severity.ERROR,
        {"state": "ahead", "clock": "a", "certain": "b"},
    ),
    (system("ClockBelieved"), "Clock Believed", Severity.NOTICE, {}),
    (
        Record(Kind.OUTCOME, "ConfirmClock", ALICE, "", read_only=False, response_elements={"before": "a"}),
        "Clock Confirmed",
        Severity.NOTICE,
        {"by": "alice", "before": "a"},
    ),
]


@pytest.mark.parametrize(("record", "detail_type", "severity", "members"), EVENTS, ids=lambda value: str(value)[:40])
def test_a_record_is_told(record: Record, detail_type: str, severity: Severity, members: dict[str, Any]) -> None:
    """With what the table says, and a sentence for people."""
    event = event_of(record)

    assert event is not None
    assert (event.detail_type, event.severity, event.sequence) == (detail_type, severity, 1)
    assert event.source == ("aws.kms" if detail_type.startswith("KMS ") else "kmsd")
    assert event.resources == list(record.resources)
    assert event.message
    assert "None" not in event.message
    rest = {name: value for name, value in event.detail.items() if name not in {"sequence", "severity", "message"}}
    assert rest == members


def test_the_envelope_is_eventbridge_s() -> None:
    """Nothing is missing and nothing is beside it; times are in seconds."""
    line = line_of(change("RotateKey"))
    event = PROJECTION.event_of(line)
    assert event is not None

    assert list(msgspec_members(encode_event(event))) == [
        *("version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail")
    ]
    assert (event.version, event.account, event.region) == ("0", ACCOUNT, REGION)
    assert event.time == "2026-11-26T02:31:05Z"
    assert decode_event(encode_event(event)) == event


def msgspec_members(line: bytes) -> dict[str, Any]:
    import msgspec

    members: dict[str, Any] = msgspec.json.decode(line)
    return members


def test_the_id_is_the_record_s_own_hash() -> None:
    """So anybody can find the record of an event, and no two records have the same."""
    line = line_of(change("RotateKey"))
    made = uuid.UUID(id_of(line))

    assert (made.version, made.variant) == (8, uuid.RFC_4122)
    digest = hashlib.sha256(f"{line}\n".encode()).hexdigest()
    assert digest == digest_of(f"{line}\n".encode())
    assert (made.hex[:12], made.hex[13:16], made.hex[17:]) == (digest[:12], digest[13:16], digest[17:32])


@pytest.mark.parametrize(
    "record",
    [
        change("ScheduleKeyDeletion", kind=Kind.INTENT),
        change("ScheduleKeyDeletion", kind=Kind.REQUEST, error_code="AccessDeniedException"),
        change("ScheduleKeyDeletion", error_code="StorageException", details={"committed": False}),
        change("RotateKey", error_code="KMSInternalException", details={"settledAtStart": True}),
        Record(Kind.OUTCOME, "Unseal", ALICE, "", read_only=False, details={"already": True}),
        system("UnsealFailed", error="TokenException", attempt=2, triedAgain=True),
        change("CreateKey"),
        change("Encrypt", kind=Kind.REQUEST),
        system("Mark", openIntents=[]),
        change("EncryptFile", kind=Kind.END),
    ],
    ids=lambda record: f"{record.kind} {record.event_name}",
)
def test_other_records_are_not(record: Record) -> None:
    """What only begins, what failed, what nobody has to know at once."""
    assert event_of(record) is None


def test_what_was_done_is_told_although_its_answer_failed() -> None:
    """The key is to be destroyed, whatever its administrator was told."""
    event = event_of(change("ScheduleKeyDeletion", error_code="StorageException", details={"committed": True}))

    assert event is not None


@pytest.mark.parametrize("line", ["", "{", "[]", '{"seq":"x"}', '{"kept":1}', "é"])
def test_what_is_no_record_is_no_event(line: str) -> None:
    """As the first line of a reduced file."""
    assert PROJECTION.event_of(line) is None


def test_trouble_has_no_number() -> None:
    """It is on no record."""
    event = PROJECTION.trouble("no space left", "2026-11-26T02:31:05.999Z")

    assert (event.sequence, event.severity, event.time) == (0, Severity.CRITICAL, "2026-11-26T02:31:05Z")
    assert event.id != PROJECTION.trouble("no space left", "2026-11-26T02:31:06.999Z").id


def test_the_document_has_the_table() -> None:
    """Each event with its severity, and the record that it comes from."""
    row = r"^\| `([A-Z][A-Za-z ]+)`(?: \(`aws.kms`\))? \| (\w+) \| ([^|]*) \| ([^|]*)\|$"
    documented = {found[0]: found for found in re.findall(row, DOCUMENT, re.MULTILINE)}

    assert {detail_type for _, detail_type, _, _ in EVENTS} == set(documented) - {"Audit Trail In Trouble"}
    for record, detail_type, severity, members in EVENTS:
        _, documented_severity, records, documented_members = documented[detail_type]
        assert documented_severity == severity
        assert f"`{record.event_name}`" in records
        assert set(members) - {"key-id"} <= set(re.findall(r"`([a-z-]+)`", documented_members))


def test_every_row_of_the_table_is_tested() -> None:
    """A new event needs a line above, and one in the document."""
    assert {record.event_name for record, *_ in EVENTS} == PROJECTED
