"""Checking a trail off-line."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.audit.chain import GENESIS, MAX_READ_LINE_BYTES, Head, digest_of, link
from kmsd.audit.record import Kind, Record
from kmsd.audit.verify import LOOKAHEAD_LINES, MARK, ChainBrokenError, Fault, read_lines, verify


def chain(count: int, start: Head = GENESIS, name: str = "Encrypt") -> list[bytes]:
    records = [Record(Kind.REQUEST, name, None, f"r-{number}", read_only=True) for number in range(count)]
    return link(start, records, "now")[0]


LINES = chain(12)


def broken(lines: list[bytes]) -> tuple[Fault, int, int]:
    with pytest.raises(ChainBrokenError) as info:
        verify(lines)
    return info.value.fault, info.value.line, info.value.seq


def test_an_untouched_trail_verifies() -> None:
    """And the report says where it starts and ends, to compare with a head noted elsewhere."""
    report = verify(iter(LINES))

    assert (report.lines, report.first_seq, report.last_seq) == (12, 1, 12)
    assert report.last_hash == digest_of(LINES[-1])
    assert report.open_intents == ()


def test_an_empty_trail_verifies() -> None:
    """It ends where every trail begins."""
    report = verify([])

    assert (report.lines, report.first_seq, report.last_seq, report.last_hash) == (0, 0, 0, "0" * 64)


def test_a_part_of_a_trail_verifies_on_its_own_word_or_behind_a_known_head() -> None:
    """As after a rotation, or through GetAuditRecords."""
    part = LINES[4:8]

    assert verify(part, start=None).first_seq == 5
    assert verify(part, start=Head(4, digest_of(LINES[3]))).last_seq == 8
    with pytest.raises(ChainBrokenError):
        verify(part, start=Head(4, "0" * 64))
    with pytest.raises(ChainBrokenError):
        verify(part)


def test_an_edited_line_is_named() -> None:
    """Its successor has the hash it had."""
    edited = LINES[4].replace(b"Encrypt", b"Decrypt")

    assert broken([*LINES[:4], edited, *LINES[5:]]) == (Fault.EDITED, 5, 5)


def test_an_edited_prev_or_seq_is_named() -> None:
    """The members of the chain itself are covered as well."""
    prev = LINES[4].replace(digest_of(LINES[3]).encode(), b"f" * 64)
    seq = LINES[4].replace(b'"seq":5', b'"seq":7')

    assert broken([*LINES[:4], prev, *LINES[5:]]) == (Fault.EDITED, 5, 5)
    assert broken([*LINES[:4], seq, *LINES[5:]]) == (Fault.EDITED, 5, 5)
    assert broken([LINES[0].replace(b"0" * 64, b"1" * 64), *LINES[1:]]) == (Fault.EDITED, 1, 1)


def test_a_line_that_is_no_record_any_more_is_named() -> None:
    """Overwritten by something else."""
    assert broken([*LINES[:4], b"garbage\n", *LINES[5:]]) == (Fault.EDITED, 5, 5)
    assert broken([*LINES[:4], b"garbage\n", b"more\n"]) == (Fault.EDITED, 5, 5)


@pytest.mark.parametrize("count", [1, 3])
def test_removed_lines_are_named(count: int) -> None:
    """The number of the first one."""
    assert broken(LINES[:4] + LINES[4 + count :]) == (Fault.REMOVED, 5, 5)


def test_a_removed_start_is_named() -> None:
    """A trail begins with record 1."""
    assert broken(LINES[1:]) == (Fault.REMOVED, 1, 1)


@pytest.mark.parametrize("between", [1, 5, LOOKAHEAD_LINES])
def test_reordered_lines_are_named(between: int) -> None:
    """Where the first stands that does not belong there."""
    lines = chain(LOOKAHEAD_LINES + 10)
    lines[4 : 5 + between] = [*lines[5 : 5 + between], lines[4]]

    assert broken(lines) == (Fault.REORDERED, 5, 6)


def test_an_inserted_line_is_named() -> None:
    """A copy, one with a right number, one of another trail, or no record at all."""
    other = chain(12, name="Decrypt")

    assert broken([*LINES[:5], LINES[4], *LINES[5:]]) == (Fault.INSERTED, 6, 5)
    assert broken([*LINES[:4], other[4], *LINES[4:]]) == (Fault.INSERTED, 5, 5)
    assert broken([*LINES[:4], other[8], *LINES[4:]]) == (Fault.INSERTED, 5, 9)
    assert broken([*LINES[:4], b"garbage\n", *LINES[4:]]) == (Fault.INSERTED, 5, 5)


def test_an_inserted_line_that_is_rightly_linked_shows_at_the_next() -> None:
    """The record that it pushed aside comes with a number that is taken."""
    (forged,) = chain(1, Head(4, digest_of(LINES[3])), name="Decrypt")

    assert broken([*LINES[:4], forged, *LINES[4:]]) == (Fault.INSERTED, 6, 5)


def test_a_torn_last_line_is_named() -> None:
    """As a kill or a power cut leaves it."""
    assert broken([*LINES[:4], LINES[4][:-1]]) == (Fault.TORN, 5, 5)
    assert broken([*LINES[:4], LINES[4][:30]]) == (Fault.TORN, 5, 5)


def test_a_line_without_end_is_read_in_bounded_pieces() -> None:
    """A hostile file cannot make the verifier hold more than one line."""
    stream = io.BytesIO(LINES[0] + b"x" * (2 * MAX_READ_LINE_BYTES) + b"\n")

    with pytest.raises(ChainBrokenError, match="line 2, seq 2: edited: longer than"):
        verify(read_lines(stream))


@given(data=st.data())
def test_any_change_before_the_last_line_is_found(data: st.DataObject) -> None:
    """Nothing but the tail, which no chain can guard, can be changed without a ChainBrokenError at or near it."""
    lines = list(LINES)
    place = data.draw(st.integers(0, len(lines) - 2))
    change = data.draw(st.sampled_from(["flip", "remove", "copy", "swap"]))
    if change == "flip":
        raw = bytearray(lines[place])
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        lines[place : place + 1] = list(read_lines(io.BytesIO(bytes(raw))))
    elif change == "remove":
        del lines[place]
    elif change == "copy":
        lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines[place])
    else:
        lines[place], lines[-1] = lines[-1], lines[place]

    with pytest.raises(ChainBrokenError) as info:
        verify(read_lines(io.BytesIO(b"".join(lines))))

    if change in {"flip", "remove"}:
        assert abs(info.value.line - (place + 1)) <= 1


def test_open_intents_are_those_that_nothing_settles() -> None:
    """An outcome settles an intent and an end a begin, by request id."""
    kinds = [
        (Kind.INTENT, "a"),
        (Kind.INTENT, "b"),
        (Kind.BEGIN, "a"),
        (Kind.BEGIN, "c"),
        (Kind.OUTCOME, "a"),
        (Kind.END, "c"),
        (Kind.OUTCOME, "unknown"),
    ]
    records = [Record(kind, "X", None, request_id, False, (f"arn:{request_id}",)) for kind, request_id in kinds]

    found = verify(link(GENESIS, records, "now")[0]).open_intents

    assert [(intent.seq, intent.kind, intent.request_id, intent.resources) for intent in found] == [
        (2, Kind.INTENT, "b", ("arn:b",)),
        (3, Kind.BEGIN, "a", ("arn:a",)),
    ]


def test_a_mark_without_its_members_is_not_believed() -> None:
    """A part that starts at a mark needs what the mark repeats."""
    marks = [
        Record(Kind.SYSTEM, MARK, None, "", False, details=details)
        for details in (None, {"openIntents": 1}, {"openIntents": [{"seq": 1}]})
    ]

    for (line,) in itertools.chain.from_iterable([link(GENESIS, [mark], "now")[:1] for mark in marks]):
        with pytest.raises(ChainBrokenError, match="openIntents"):
            verify([line], start=None)
