"""The record and its JSON."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.operation import KeyUsage
from kmsd.audit.record import Actor, Kind, Record, encode

ARN = "arn:aws:kms:local:123456789012:key/0b8ad77e-4ac5-4f3e-9d0a-9f0f6e1a2b3c"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def line_of(record: Record) -> Any:
    return json.loads(encode(record, 1, "0" * 64, "2026-01-01T00:00:00.000Z"))


def test_a_record_has_cloudtrails_member_names() -> None:
    """CloudTrail's names where it has them, nothing for what is absent."""
    record = Record(
        Kind.REQUEST,
        "Encrypt",
        Actor(uid=1000, gid=100, user="alice", pid=42, unit=None, exe="/usr/bin/kms"),
        "r-1",
        read_only=True,
        resources=(ARN,),
        request_parameters={"keyId": "alias/a", "encryptionContext": {"app": "web"}},
        error_code="AccessDeniedException",
        error_message="no",
        decision="default deny",
        details={"grantId": "g-1"},
    )

    line = line_of(record)

    assert line == {
        "seq": 1,
        "prev": "0" * 64,
        "eventTime": "2026-01-01T00:00:00.000Z",
        "eventType": "ApiCall",
        "eventName": "Encrypt",
        "readOnly": True,
        "requestID": "r-1",
        "userIdentity": {
            "type": "Unix",
            "uid": 1000,
            "gid": 100,
            "userName": "alice",
            "pid": 42,
            "unit": None,
            "exe": "/usr/bin/kms",
        },
        "resources": [{"ARN": ARN}],
        "requestParameters": {"keyId": "alias/a", "encryptionContext": {"app": "web"}},
        "errorCode": "AccessDeniedException",
        "errorMessage": "no",
        "additionalEventData": {"grantId": "g-1", "decision": "default deny"},
    }


def test_a_decision_alone_is_additional_event_data() -> None:
    """The rule that decided needs no details beside it."""
    record = Record(Kind.REQUEST, "Encrypt", None, "r-1", read_only=True, decision="key policy")

    assert line_of(record)["additionalEventData"] == {"decision": "key policy"}


@given(text=TEXT, parameters=st.dictionaries(TEXT, JSON, max_size=3))
def test_whatever_strings_say_a_record_is_one_line_of_ascii(text: str, parameters: dict[str, Any]) -> None:
    """Line and paragraph separators, controls and directions included; and they can be read back."""
    actor = Actor(uid=1, gid=1, user=text, pid=0, unit=text, exe=text)
    record = Record(Kind.REQUEST, text, actor, text, True, (text,), parameters, {text: text}, text, text, text)

    line = encode(record, 7, "0" * 64, "now")

    assert len(line.decode().splitlines()) == 1
    assert line.isascii()
    assert all(byte >= 0x20 for byte in line[:-1])
    read = json.loads(line)
    assert read["requestParameters"] == parameters
    assert read["userIdentity"]["exe"] == read["eventName"] == read["errorMessage"] == text


@given(st.text(st.characters(categories=["Cs", "L", "Cc"]), min_size=1))
def test_a_path_that_is_not_utf8_is_recorded(odd: str) -> None:
    """PEP 383 gives such bytes as lone surrogates; the record spells them out."""
    actor = Actor(uid=1, gid=1, user=None, pid=1, unit=None, exe=f"/{odd}")
    record = Record(Kind.REQUEST, "Encrypt", actor, "r-1", True, request_parameters={"tags": [{odd: odd}]})

    exe = line_of(record)["userIdentity"]["exe"]

    assert exe == f"/{odd}".encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    "value",
    [
        b"secret",
        bytearray(b"secret"),
        memoryview(b"secret"),
        Decimal(1),
        dt.datetime.now(dt.UTC),
        {"secret"},
        float("nan"),
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"in": {"side": v}}, lambda v: ("a", [v])])
@pytest.mark.parametrize("member", ["request_parameters", "response_elements", "details"])
def test_only_json_enters_a_record(value: object, wrap: Any, member: str) -> None:
    """Bytes above all; the error names the member and never the value."""
    members: dict[str, Any] = {member: {"plaintext": wrap(value)}}

    with pytest.raises(TypeError, match=r"(requestParameters|responseElements|additionalEventData)\.plaintext") as info:
        Record(Kind.REQUEST, "Encrypt", None, "r-1", True, (), **members)

    assert "secret" not in str(info.value)


def test_member_names_are_strings() -> None:
    """A bytes name would be data as well."""
    with pytest.raises(TypeError, match="bytes, not str"):
        Record(Kind.REQUEST, "Encrypt", None, "r-1", True, request_parameters={b"a": 1})  # type: ignore[dict-item] # the mistake under test


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}])
def test_a_structure_that_is_too_deep_is_refused(wrap: Any) -> None:
    """A hostile structure must not exhaust the stack."""
    value: Any = "x"
    for _ in range(9):
        value = wrap(value)

    with pytest.raises(TypeError, match="nested too deep"):
        Record(Kind.REQUEST, "Encrypt", None, "r-1", True, request_parameters={"a": value})


def test_enumerations_are_recorded_as_their_value() -> None:
    """A string enumeration is a string."""
    record = Record(
        Kind.REQUEST, "CreateKey", None, "", False, request_parameters={"u": KeyUsage.SIGN_VERIFY, "n": 1.5}
    )

    assert line_of(record)["requestParameters"] == {"u": "SIGN_VERIFY", "n": 1.5}
