"""Reading lines back through an open trail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import IntegrityError, LimitExceededError
from kmsd.audit.chain import GENESIS, digest_of
from kmsd.audit.reading import CHUNK_BYTES
from kmsd.audit.record import Kind, Record, encode
from kmsd.audit.writer import SyncMode, Trail

if TYPE_CHECKING:
    from tests.audit.conftest import MakeRecord, OpenTrail

COUNT = 2500


@pytest.fixture(scope="module")
def long_trail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trail, list[str]]]:
    """A trail of several chunks, its lines of very different lengths, one longer than a chunk."""
    path = tmp_path_factory.mktemp("reading") / "audit.log"
    sizes = [CHUNK_BYTES * 2 if number == 1000 else number * 37 % 1500 for number in range(COUNT)]
    digest = GENESIS.digest
    with path.open("wb") as stream:  # as an older kmsd wrote it: a Trail would cut the long one
        for seq, size in enumerate(sizes, 1):
            record = Record(Kind.REQUEST, "Encrypt", None, "r", True, request_parameters={"a": "x" * size})
            line = encode(record, seq, digest, "now")
            stream.write(line)
            digest = digest_of(line)
    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0)
    yield trail, path.read_text().splitlines()
    trail.close()


@given(after_seq=st.integers(0, COUNT + 5), limit=st.integers(0, 50), max_bytes=st.integers(4096, 60_000))
def test_read_gives_the_lines_behind_a_number(
    long_trail: tuple[Trail, list[str]], after_seq: int, limit: int, max_bytes: int
) -> None:
    """The same as counting through the whole file would."""
    trail, lines = long_trail
    expected = bounded(lines[after_seq:][:limit], max_bytes)

    if expected is None:
        with pytest.raises(LimitExceededError, match="record 1001"):
            trail.read(after_seq=after_seq, limit=limit, max_bytes=max_bytes)
    else:
        assert trail.read(after_seq=after_seq, limit=limit, max_bytes=max_bytes) == expected


@given(limit=st.integers(0, 200), max_bytes=st.integers(4096, 60_000))
def test_read_tail_gives_the_last_lines(long_trail: tuple[Trail, list[str]], limit: int, max_bytes: int) -> None:
    """Oldest first."""
    trail, lines = long_trail
    expected = bounded(lines[::-1][:limit], max_bytes) or []

    assert trail.read_tail(limit=limit, max_bytes=max_bytes) == expected[::-1]


def test_the_last_lines_are_read_together(
    open_trail: OpenTrail, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a chunk for each of them: 1,000 short records take two reads or three."""
    trail = open_trail()
    trail.append([make_record()] * 1000)
    reads = []
    pread = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        reads.append(count)
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", counted)

    assert len(trail.read_tail(limit=1000, max_bytes=1 << 20)) == 1000
    assert len(reads) <= 3


def bounded(lines: list[str], max_bytes: int) -> list[str] | None:
    found: list[str] = []
    for line in lines:
        max_bytes -= len(line) + 1
        if max_bytes < 0:
            return found or None
        found.append(line)
    return found


def test_an_empty_trail_has_no_lines(open_trail: OpenTrail) -> None:
    """Rather than an error."""
    trail = open_trail()

    assert trail.read(after_seq=0, limit=10, max_bytes=1000) == []
    assert trail.read_tail(limit=10, max_bytes=1000) == []


def test_a_last_line_longer_than_asked_for_is_said_so(open_trail: OpenTrail, make_record: MakeRecord) -> None:
    """An empty answer would read as the end of the trail."""
    trail = open_trail()
    trail.append([make_record()])

    with pytest.raises(LimitExceededError, match="the last record"):
        trail.read_tail(limit=1, max_bytes=10)


def test_a_line_that_is_no_record_is_not_passed_on(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """Somebody wrote into the file under the running daemon."""
    trail = open_trail()
    trail.append([make_record()] * 3)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'{"seq":2', b'{"xxx":2'))

    with pytest.raises(IntegrityError, match="behind record 0"):
        trail.read(after_seq=0, limit=10, max_bytes=10_000)
