"""What one audit record says, and its JSON.

The member names are CloudTrail's where CloudTrail has them (FORMAT.md lists all). A record is made by the service from
the declared audit fields of an operation; plaintext, keys, ciphertext and PINs are bytes, and bytes cannot enter one:
JSON's own types are all that is accepted, checked when the record is made, where the mistake is.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

# A declared audit field is at most a few levels deep (a list of tags, each a map); more is a mistake, and bounding it
# keeps a hostile structure from exhausting the stack.
MAX_DEPTH = 8

# kmsd's own messages are a sentence or two; a longer one repeats what the caller sent.
MAX_MESSAGE_CHARACTERS = 1024

# What `cut` keeps of each text, in characters. A character takes at most 12 bytes of a line (two escaped surrogates),
# so that what remains of any record stays below 190,000 bytes. A Linux user name has at most 32, an ARN some 100, and a
# path PATH_MAX.
_NAME_CHARACTERS = 256
_ARN_CHARACTERS = 512
_PATH_CHARACTERS = 4096
_RESOURCES = 16


class Kind(enum.StrEnum):
    """What a record stands for; the value is its `eventType`."""

    REQUEST = "ApiCall"  # a request that was answered, or refused
    INTENT = "ApiCallIntent"  # a mutation is about to be committed
    OUTCOME = "ApiCallOutcome"  # what became of that mutation
    BEGIN = "FileBegin"  # a file worker is about to get its key
    END = "FileEnd"  # what became of that file
    SYSTEM = "ServiceEvent"  # kmsd itself, on nobody's request


# Which kind of record settles which.
SETTLES = {Kind.OUTCOME: Kind.INTENT, Kind.END: Kind.BEGIN}


class Actor(
    msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="Unix", rename={"user": "userName"}
):  # gc: scalars only, so no reference cycle is possible
    """Who did it, as the kernel says; becomes `userIdentity`.

    `pid` is 0 for a process of another PID namespace. `user` is None for a uid that passwd does not know, `unit` and
    `exe` when they could not be determined. `unit` is a system unit, or "user-unit:UID/NAME" of a user's manager.
    """

    uid: int
    gid: int
    user: str | None
    pid: int
    unit: str | None
    exe: str | None


class Record(msgspec.Struct, frozen=True):
    """One thing that happened.

    `resources` are the ARNs of the keys it touched. `request_parameters` and `response_elements` hold declared audit
    fields under their lowerCamel names. `decision` names the rule that allowed or refused it; it and `details`, what
    CloudTrail has no member for, become `additionalEventData`. `error_code` is None on success. A line has at most
    `MAX_MESSAGE_CHARACTERS` of `error_message`.

    Raises TypeError, naming the member and never its value, for a value that is not JSON (bytes above all).
    """

    kind: Kind
    event_name: str
    actor: Actor | None
    request_id: str
    read_only: bool
    resources: tuple[str, ...] = ()
    request_parameters: dict[str, Any] | None = None
    response_elements: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    decision: str | None = None
    details: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.request_parameters is not None:
            _check_members(self.request_parameters, ((), "requestParameters"), MAX_DEPTH)
        if self.response_elements is not None:
            _check_members(self.response_elements, ((), "responseElements"), MAX_DEPTH)
        if self.details is not None:
            _check_members(self.details, ((), "additionalEventData"), MAX_DEPTH)


class Resource(msgspec.Struct, frozen=True, gc=False, rename={"arn": "ARN"}):
    """A key that a record is about, in CloudTrail's form."""

    arn: str


class Intent(
    msgspec.Struct,
    frozen=True,
    rename={"kind": "eventType", "event_name": "eventName", "request_id": "requestID", "actor": "userIdentity"},
):
    """An intent or begin record that nothing has settled (yet); `seq` is its place in the trail."""

    seq: int
    kind: Kind
    event_name: str
    request_id: str
    actor: Actor | None
    resources: tuple[str, ...]


class _Line(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """All members of a line, in their order; gc: lives for one call, so that it cannot be part of a cycle."""

    seq: int
    prev: str
    event_time: str
    event_type: Kind
    event_name: str
    read_only: bool
    request_id: str = msgspec.field(name="requestID")
    user_identity: Actor | None = None
    resources: tuple[Resource, ...] = ()
    request_parameters: dict[str, Any] | None = None
    response_elements: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    additional_event_data: dict[str, Any] | None = None


_ENCODER = msgspec.json.Encoder()


def encode(record: Record, seq: int, prev: str, event_time: str) -> bytes:
    """Return the record's line: one JSON object of ASCII characters, and a line feed.

    Everything else is escaped: JSON itself escapes what ends a line in a file, and escaping the rest too keeps U+2028
    from ending a line elsewhere, and control and direction characters of a hostile request from a reader's terminal.
    One pass over one struct, because this is on the path of every request: putting the first three members in front of
    an encoded record costs 0.4 us more of about 1.7.
    """
    details = record.details
    if record.decision is not None:
        details = {"decision": record.decision} if details is None else {**details, "decision": record.decision}
    line = _Line(
        seq,
        prev,
        event_time,
        record.kind,
        record.event_name,
        record.read_only,
        record.request_id,
        record.actor,
        tuple(map(Resource, record.resources)),
        record.request_parameters,
        record.response_elements,
        record.error_code,
        record.error_message and record.error_message[:MAX_MESSAGE_CHARACTERS],
        details,
    )
    try:
        encoded = _ENCODER.encode(line) + b"\n"
    except UnicodeEncodeError:
        # A path or a user name that is not UTF-8 carries its odd bytes as lone surrogates (PEP 383).
        return _escape(_well_formed(msgspec.to_builtins(line)))
    if encoded.isascii():
        return encoded
    return _escape(msgspec.json.decode(encoded))


def cut(record: Record, whole: bytes) -> Record:
    """Return what is kept of a record whose line, `whole`, is too long for the trail.

    That is who did what to which keys, which rule decided and how it ended, each within bounds, and the length and
    SHA-256 of `whole` instead of the parameters and the reply. Its line is below `chain.MAX_LINE_BYTES` for any record.
    """
    actor = record.actor
    return Record(
        record.kind,
        record.event_name[:_NAME_CHARACTERS],
        actor and Actor(actor.uid, actor.gid, _name(actor.user), actor.pid, _name(actor.unit), _path(actor.exe)),
        record.request_id[:_NAME_CHARACTERS],
        record.read_only,
        tuple([arn[:_ARN_CHARACTERS] for arn in record.resources[:_RESOURCES]]),
        error_code=_name(record.error_code),
        error_message=record.error_message,
        decision=record.decision and record.decision[:MAX_MESSAGE_CHARACTERS],
        details={"truncated": True, "bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()},
    )


def _name(text: str | None) -> str | None:
    return text and text[:_NAME_CHARACTERS]


def _path(text: str | None) -> str | None:
    return text and text[:_PATH_CHARACTERS]


def _escape(line: Any) -> bytes:
    return json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def _well_formed(value: Any) -> Any:
    """Return `value` with each lone surrogate spelled out, which every JSON reader accepts."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_well_formed(key): _well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_well_formed(item) for item in value]
    return value


def _check_members(members: Mapping[Any, Any], path: tuple[Any, ...], depth: int) -> None:
    if depth == 0:
        raise _refused(path, "nested too deep for an audit record")
    for name, value in members.items():
        if type(name) is not str:
            raise _refused(path, f"a member's name is {type(name).__name__}, not str")
        kind = type(value)
        if kind is str:  # by far the most frequent, then encryption contexts: no call for the one, one for the other
            continue
        if kind is dict:
            _check_members(value, (path, name), depth - 1)
        else:
            _check(value, (path, name), depth)


def _check(value: Any, path: tuple[Any, ...], depth: int) -> None:
    if value is None or isinstance(value, str | int):  # bool and the string enumerations included
        return
    if isinstance(value, float) and math.isfinite(value):
        return
    if isinstance(value, dict):
        _check_members(value, path, depth - 1)
    elif isinstance(value, list | tuple):
        if depth == 1:
            raise _refused(path, "nested too deep for an audit record")
        for item in value:
            _check(item, (path, "[]"), depth - 1)
    else:
        raise _refused(path, f"{type(value).__name__} does not belong in an audit record")


def _refused(path: tuple[Any, ...], why: str) -> TypeError:
    """Return the error for the member at `path`: pairs of the path to it and its name, joined only when needed."""
    names: list[str] = []
    while path:
        path, name = path
        names.append(name)
    return TypeError(f"{'.'.join(reversed(names))}: {why}")
