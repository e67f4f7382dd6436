"""The format of backups: what was written is read, and nothing else is."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kmsd.backup.chunks import CHUNK_BYTES, SEALED_CHUNK_BYTES, ChunkSealer
from kmsd.backup.header import (
    COMMITMENT_BYTES,
    LENGTH_BYTES,
    MAGIC,
    MAX_HEADER_BYTES,
    BackupError,
    BackupHeader,
    DataKey,
    WrappedKey,
    derive_keys,
    serialize,
)
from kmsd.backup.reading import BackupReader

DATA_KEY = memoryview(bytes(range(32)))
HEADER = BackupHeader(
    creation_ms=1_790_000_000_000,
    version="1.2.3",
    account="123456789012",
    region="local-host-1",
    store_id="7c0a4d0e-6a40-4b5e-9d1f-3f2f0c5b8a11",
    store_sequence=41,
    audit_sequence=12,
    audit_hash="ab" * 32,
    domain_keys=(
        WrappedKey(domain_key_id="old", generation=1, wrapped=b"\x01" * 61, recovery_wrapped=b"\x02" * 125),
        WrappedKey(domain_key_id="new", generation=2, wrapped=b"\x03" * 61),
    ),
    data_key=DataKey(backup_id="backup", domain_key_id="new", wrapped=b"\x04" * 97),
)


def written(body: bytes, *, header: BackupHeader = HEADER, step: int = 50_000) -> bytes:
    """A whole backup of `body`, which is sealed in steps of so many bytes."""
    prefix = serialize(header)
    key = memoryview(bytearray(32))
    commitment = derive_keys(DATA_KEY, prefix, key)
    sealer = ChunkSealer(key)
    chunks = [chunk for start in range(0, len(body), step) for chunk in sealer.add(body[start : start + step])]
    return prefix + commitment + b"".join(chunks) + sealer.finish()


def read(backup: bytes) -> tuple[BackupHeader, bytes]:
    """What a reader makes of it; raises BackupError."""
    reader = BackupReader(io.BytesIO(backup).read, "FILE")
    key = memoryview(bytearray(32))
    reader.unlock(DATA_KEY, key)
    return reader.header, b"".join(reader.pieces(key))


@settings(max_examples=30)
@given(size=st.integers(0, 3 * CHUNK_BYTES + 1), step=st.integers(1000, 200_000))
@example(size=0, step=1000)
@example(size=CHUNK_BYTES, step=CHUNK_BYTES)
@example(size=CHUNK_BYTES + 1, step=CHUNK_BYTES)
@example(size=2 * CHUNK_BYTES, step=CHUNK_BYTES)
def test_what_was_written_is_read(size: int, step: int) -> None:
    """Whatever the pieces it came in."""
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]

    assert read(written(body, step=step)) == (HEADER, body)


def test_every_bit_before_the_body_counts() -> None:
    """Magic line, length, header and commitment: with any bit flipped nothing is read, and the file is named."""
    backup = bytearray(written(b"rows"))
    for bit in range(8 * (len(serialize(HEADER)) + COMMITMENT_BYTES)):
        backup[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BackupError, match=r"^FILE: "):
            read(bytes(backup))
        backup[bit // 8] ^= 1 << bit % 8
    assert read(bytes(backup))[1] == b"rows"


@settings(max_examples=60)
@given(place=st.integers(0, 2 * SEALED_CHUNK_BYTES + 15 + 4), bit=st.integers(0, 7))
def test_every_bit_of_the_body_counts(place: int, bit: int) -> None:
    """The chunk in which one is flipped is named."""
    backup = bytearray(BODY_OF_THREE)
    offset = len(backup) - (2 * SEALED_CHUNK_BYTES + 20) + place
    backup[offset] ^= 1 << bit

    with pytest.raises(BackupError, match=f"^FILE: chunk {place // SEALED_CHUNK_BYTES + 1} of its body"):
        read(bytes(backup))


BODY_OF_THREE = written(bytes(2 * CHUNK_BYTES + 4))


def test_a_backup_that_was_cut_is_refused_wherever_it_ends() -> None:
    """At each boundary of a part and of a chunk, and one byte beside it."""
    start = len(MAGIC) + LENGTH_BYTES
    body = len(BODY_OF_THREE) - (2 * SEALED_CHUNK_BYTES + 20)
    boundaries = (0, len(MAGIC), start, body - COMMITMENT_BYTES, body, body + SEALED_CHUNK_BYTES)
    ends = {end + beside for end in (*boundaries, body + 2 * SEALED_CHUNK_BYTES) for beside in (-1, 0, 1)}
    for end in sorted(ends | {len(BODY_OF_THREE) - 1}):
        if end >= 0:
            with pytest.raises(BackupError, match=r"^FILE: "):
                read(BODY_OF_THREE[:end])


def test_nothing_may_follow() -> None:
    """Neither a byte nor a chunk, nor another backup."""
    for more in (b"\0", BODY_OF_THREE[-20:], BODY_OF_THREE):
        with pytest.raises(BackupError, match="does not authenticate"):
            read(BODY_OF_THREE + more)


def test_chunks_stay_in_their_order() -> None:
    """Exchanged, repeated and removed ones do not open."""
    body = len(BODY_OF_THREE) - (2 * SEALED_CHUNK_BYTES + 20)
    head, first = BODY_OF_THREE[:body], BODY_OF_THREE[body : body + SEALED_CHUNK_BYTES]
    second, last = BODY_OF_THREE[body + SEALED_CHUNK_BYTES : -20], BODY_OF_THREE[-20:]
    assert read(head + first + second + last)
    for chunks in ((second, first, last), (first, first, last), (first, last), (second, last), (first, last, second)):
        with pytest.raises(BackupError, match="does not authenticate"):
            read(head + b"".join(chunks))


def test_two_backups_are_not_mixed() -> None:
    """Under one data key even: the body belongs to its header, chunk by chunk."""
    other = written(bytes(2 * CHUNK_BYTES + 4), header=replace(HEADER, store_sequence=42))
    body = 2 * SEALED_CHUNK_BYTES + 20
    assert len(other) == len(BODY_OF_THREE)
    with pytest.raises(BackupError, match="header was changed, or belongs to another backup"):
        read(other[: -body - COMMITMENT_BYTES] + BODY_OF_THREE[-body - COMMITMENT_BYTES :])
    with pytest.raises(BackupError, match="chunk 1 of its body"):
        read(other[:-body] + BODY_OF_THREE[-body:])
    with pytest.raises(BackupError, match="chunk 2 of its body"):
        read(BODY_OF_THREE[: -body + SEALED_CHUNK_BYTES] + other[-body + SEALED_CHUNK_BYTES :])


def test_another_data_key_opens_nothing() -> None:
    """And leaves no key behind."""
    reader = BackupReader(io.BytesIO(BODY_OF_THREE).read, "FILE")
    key = memoryview(bytearray(32))
    with pytest.raises(BackupError, match="another backup"):
        reader.unlock(memoryview(bytes(32)), key)
    assert bytes(key) == bytes(32)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "not a backup of kmsd"),
        (b"age-encryption.org/v1\n", "not a backup of kmsd"),
        (b"kmsd-backup/2\n\0\0\0\1", "takes a newer kmsd"),
        (MAGIC, "truncated"),
        (MAGIC + bytes(4), "header was changed"),
        (MAGIC + (MAX_HEADER_BYTES + 1).to_bytes(4, "big"), "header was changed"),
        (MAGIC + b"\xff\xff\xff\xff", "header was changed"),
        (MAGIC + b"\0\0\0\2{}", "header was changed"),
        (MAGIC + b"\0\0\0\2\xff\xff", "header was changed"),
    ],
    ids=["empty", "foreign", "newer", "cut", "no header", "too long", "4 GiB", "empty header", "no text"],
)
def test_what_is_no_backup_is_told(start: bytes, words: str) -> None:
    """Before anything is made for a length that it announces."""
    with pytest.raises(BackupError, match=words):
        BackupReader(io.BytesIO(start).read, "FILE")


def test_a_header_has_no_other_members() -> None:
    """What this version does not know it must not pass over."""
    body = serialize(HEADER)[len(MAGIC) + LENGTH_BYTES : -1] + b',"more":1}'
    with pytest.raises(BackupError, match="header was changed"):
        BackupReader(io.BytesIO(MAGIC + len(body).to_bytes(4, "big") + body).read, "FILE")


def test_a_header_names_the_key_that_opens_it() -> None:
    """Else nobody could."""
    with pytest.raises(BackupError, match="lacks the key"):
        read(written(b"", header=replace(HEADER, domain_keys=())))


def test_a_header_names_each_key_once() -> None:
    """No token is asked for the same key thousands of times before anything shows that the header is genuine."""
    with pytest.raises(BackupError, match="a domain key twice"):
        BackupReader(io.BytesIO(written(b"", header=replace(HEADER, domain_keys=HEADER.domain_keys * 2))).read, "FILE")


def test_a_header_that_nobody_could_read_is_not_written() -> None:
    """It is refused when it is made."""
    many = tuple(WrappedKey(domain_key_id=f"{n:0100}", generation=n, wrapped=bytes(500)) for n in range(2000))
    with pytest.raises(BackupError, match="1048576"):
        serialize(replace(HEADER, domain_keys=many))


def test_nothing_of_the_rows_can_be_read() -> None:
    """The body shows its length, and nothing else."""
    assert b"alias/payroll" not in written(b"alias/payroll" * 1000)
