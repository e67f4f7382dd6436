"""Lines and how they hang together."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.audit.chain import (
    GENESIS,
    MAX_LINE_BYTES,
    MAX_READ_LINE_BYTES,
    Head,
    MalformedLineError,
    digest_of,
    format_time,
    link,
    parse,
    seq_of,
)
from kmsd.audit.record import Actor, Kind, Record, encode
from kmsd.audit.verify import verify

RECORD = Record(Kind.REQUEST, "Encrypt", None, "r-1", read_only=True)


def test_each_line_has_the_hash_of_the_whole_line_before() -> None:
    """Line feed included, as sha256sum sees it; the first has zeros."""
    lines, head = link(GENESIS, [RECORD] * 3, "now")

    read = [json.loads(line) for line in lines]
    assert [line["seq"] for line in read] == [1, 2, 3]
    assert [line["prev"] for line in read] == ["0" * 64, *(hashlib.sha256(line).hexdigest() for line in lines[:2])]
    assert head == Head(3, hashlib.sha256(lines[2]).hexdigest())


def test_batches_make_the_same_chain_as_single_records() -> None:
    """What is written together does not show."""
    together, head = link(GENESIS, [RECORD] * 2, "now")

    first, middle = link(GENESIS, [RECORD], "now")
    second, end = link(middle, [RECORD], "now")

    assert (first + second, end) == (together, head)


def test_of_a_record_too_long_for_a_line_what_matters_is_kept() -> None:
    """Nobody who asks for much can keep the trail from being read; the rest is there as a hash."""
    members: dict[str, Any] = {
        "decision": "a rule",
        "error_code": "Denied",
        "error_message": "m" * 2000,
        "details": {"b": 1},
    }
    actor = Actor(1000, 1000, "alice", 42, "web.service", "/usr/bin/web")
    short = Record(Kind.INTENT, "PutKeyPolicy", actor, "r-1", False, ("arn",), **members)
    record = msgspec.structs.replace(short, request_parameters={"policy": "\x01" * 50_000}, details={"a": 1})

    lines, head = link(GENESIS, [RECORD, record, RECORD], "now")

    assert verify(lines).last_hash == head.digest
    whole = encode(record, 2, digest_of(lines[0]), "now")
    details = {"truncated": True, "bytes": len(whole), "sha256": digest_of(whole), "decision": "a rule"}
    expected = json.loads(encode(short, 2, digest_of(lines[0]), "now")) | {"additionalEventData": details}
    assert json.loads(lines[1]) == expected
    assert expected["errorMessage"] == "m" * 1024


@pytest.mark.parametrize("character", ["x", "\x01", "\U0001f511", "\udc80"], ids=ascii)
def test_no_record_has_a_longer_line(character: str) -> None:
    """Whatever it consists of."""
    text = character * 100_000
    actor = Actor(2**32, 2**32, text, 2**32, text, text)
    record = Record(
        Kind.OUTCOME, text, actor, text, False, (text,) * 100, {"a": text}, {"a": text}, text, text, text, {"a": text}
    )

    (line,), _ = link(GENESIS, [record], "now")

    assert len(line) <= MAX_LINE_BYTES


def test_a_longer_line_of_an_older_trail_is_read() -> None:
    """It was written when lines could be longer."""
    record = Record(Kind.REQUEST, "Encrypt", None, "", True, request_parameters={"a": "x" * 2 * MAX_LINE_BYTES})

    assert parse(encode(record, 1, GENESIS.digest, "now")).seq == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"seq":1', "line feed"),
        (b"\n", "not a record"),
        (b"[]\n", "not a record"),
        (b'{"seq":1}\n', "not a record"),
        (b'{"seq":"1","prev":"0"}\n', "not a record"),
        (b"[" * 100_000 + b"\n", "not a record"),
        (b"\xff\xfe\n", "not a record"),
        (b" " * (MAX_READ_LINE_BYTES + 1), "longer"),
    ],
    ids=range(8),
)
def test_what_is_no_record_is_said_to_be_none(line: bytes, what: str) -> None:
    """Whatever lies in the file."""
    with pytest.raises(MalformedLineError, match=what):
        parse(line)


@given(st.binary(max_size=60))
def test_parsing_fails_in_one_way_only(line: bytes) -> None:
    """Arbitrary bytes raise nothing else."""
    with pytest.raises(MalformedLineError):
        parse(line + b"\n")


@given(st.integers(0, 253_370_764_800_000))  # to the year 9999
def test_times_are_iso_8601_in_utc_with_milliseconds(milliseconds: int) -> None:
    """As CloudTrail writes them, and finer."""
    text = format_time((milliseconds + 0.5) / 1000)

    read = dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=dt.UTC)
    assert (read - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(milliseconds=1) == milliseconds


def test_the_number_is_seen_at_the_start_of_a_line() -> None:
    """Without reading the rest of it."""
    (line,), _ = link(Head(41, "0" * 64), [RECORD], "now")

    assert seq_of(line[:40]) == 42
    assert seq_of(b'{"prev":"') is None
