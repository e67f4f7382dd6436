"""Finding a time in a file of the trail."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.audit.chain import GENESIS, digest_of
from kmsd.audit.reading import CHUNK_BYTES
from kmsd.audit.record import Kind, Record, encode
from kmsd.audit.since import seq_before
from kmsd.audit.writer import SyncMode, Trail
from tests.support.written_trail import Key, signed_trail, time_of

COUNT = 2000


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A file of several chunks, one line longer than a chunk; two lines each second, and a time in a parameter."""
    path, digest = tmp_path_factory.mktemp("since") / "file", GENESIS.digest
    with path.open("wb") as stream:
        for seq in range(1, COUNT + 1):
            text = '{"seq":1,' * 30_000 if seq == 900 else "x" * (seq * 37 % 1500)
            record = Record(Kind.REQUEST, "Encrypt", None, "r", True, request_parameters={"a": text})
            line = encode(record, seq, digest, time_of(seq // 2))
            stream.write(line)
            digest = digest_of(line)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@given(second=st.integers(0, COUNT // 2 + 5))
def test_reading_behind_the_number_misses_nothing_and_little_else(descriptor: int, second: int) -> None:
    """All records of the time and later follow, and before them at most what two chunks hold."""
    first = max(2 * second, 1)  # the first record of that second

    found = seq_before(descriptor, 0, os.fstat(descriptor).st_size, time_of(second)) or 0

    assert found < first
    skipped = min(first, COUNT) - found
    assert skipped <= 2 * CHUNK_BYTES // 700 or found < 900 <= first


def test_a_part_of_a_file_is_searched_alone(descriptor: int) -> None:
    """And an empty one has no such number."""
    assert seq_before(descriptor, 0, 0, time_of(1)) is None
    assert seq_before(descriptor, 0, 300, time_of(0)) is None
    assert seq_before(descriptor, 0, 300, time_of(1)) == 1


def test_a_trail_is_searched_across_its_files(tmp_path: Path) -> None:
    """From the newest to the one that has the time; also what retention left of one."""
    written = signed_trail(Key())
    written.reduce("audit.log.000000000001-000000000012")
    for name, lines in written.files.items():
        (tmp_path / name).write_bytes(b"".join(lines))
    trail = Trail.open(tmp_path / "audit.log", sync=SyncMode.OS, clock=lambda: 1790000000.0)

    # Each file is smaller than a chunk, so that its first record is the one before.
    assert [trail.seq_before(time_of(second)) for second in (30, 20, 11, 0)] == [25, 13, 1, 0]
    assert trail.reduced_until == 12
    trail.close()
