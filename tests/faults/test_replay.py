"""What a replay of disk calls leaves: at least what was synced, and at most what was written."""

from __future__ import annotations

import os
import random

from tests.faults.replay import PAGE_BYTES, Disk
from tests.support.faulty_disk import Call, Entry

FILE = 5
FOLDER = 6


def disk_of(*calls: Entry, seed: int = 0, name: str = "f") -> Disk:
    """A folder `d`, empty at first, behind these calls."""
    disk = Disk(["d"], {}, random.Random(seed))
    disk.replay([opened(FILE, f"d/{name}"), opened(FOLDER, "d"), *calls])
    return disk


def opened(fd: int, path: str) -> Entry:
    return Entry(Call.OPEN, fd, os.O_RDWR, path.encode())


def written(offset: int, data: bytes) -> Entry:
    return Entry(Call.WRITE, FILE, offset, data)


def synced(fd: int) -> tuple[Entry, Entry]:
    return Entry(Call.SYNC_BEGIN, fd, 0, b""), Entry(Call.SYNC, fd, 0, b"")


def left(*calls: Entry, cuts: int = 200) -> set[bytes | None]:
    """All contents of the file, None where it has no name, that so many power cuts leave."""
    return {disk_of(*calls, seed=seed).after_cut().get("d/f") for seed in range(cuts)}


def test_what_is_synced_is_there() -> None:
    """With its name, if that was synced in its folder."""
    assert left(written(0, b"ab"), *synced(FILE), *synced(FOLDER)) == {b"ab"}
    assert left(written(0, b"ab"), *synced(FILE)) == {b"ab", None}


def test_what_is_not_synced_may_be_there() -> None:
    """Each write by itself: a hole reads as zeros."""
    found = left(*synced(FOLDER), written(0, b"ab"), written(2, b"cd"))
    assert {b"", b"ab", b"abcd", b"\0\0cd"} <= found


def test_a_write_that_came_while_a_sync_was_under_way_is_not_synced_by_it() -> None:
    """Only what was there when it began."""
    begun, over = synced(FILE)
    assert {b"ab", b"abcd"} <= left(*synced(FOLDER), written(0, b"ab"), begun, written(2, b"cd"), over)


def test_pages_are_written_back_one_by_one() -> None:
    """Of a write over two pages either may be there alone; a page may end at a sector."""
    found = left(*synced(FOLDER), written(0, b"x" * 2 * PAGE_BYTES))
    assert bytes(PAGE_BYTES) + b"x" * PAGE_BYTES in found
    assert any(content and content.rstrip(b"\0") == b"x" * 512 for content in found)


def test_what_a_failed_sync_lost_no_later_one_brings_back() -> None:
    """Unless it is written once more."""
    failed = Entry(Call.SYNC_BEGIN, FILE, 0, b""), Entry(Call.SYNC_FAILED, FILE, 0, b"")
    later = (written(2, b"cd"), *synced(FILE))
    assert left(*synced(FOLDER), written(0, b"ab"), *failed, *later) == {b"abcd", b"\0\0cd"}
    assert left(*synced(FOLDER), written(0, b"ab"), *failed, written(0, b"ab"), *later) == {b"abcd"}


def test_a_new_name_replaces_the_old_one_or_does_not() -> None:
    """A rename that was not synced leaves one of the two files under the name."""
    calls = (
        written(0, b"old"),
        *synced(FILE),
        *synced(FOLDER),
        opened(7, "d/g"),
        Entry(Call.WRITE, 7, 0, b"new"),
        Entry(Call.SYNC_BEGIN, 7, 0, b""),
        Entry(Call.SYNC, 7, 0, b""),
        Entry(Call.RENAME, -1, 0, b"d/g\0d/f"),
    )
    assert left(*calls) == {b"old", b"new"}
    assert left(*calls, *synced(FOLDER)) == {b"new"}


def test_the_process_sees_everything() -> None:
    """Whatever is synced."""
    shortened = Entry(Call.TRUNCATE, FILE, 3, b"")
    assert disk_of(written(0, b"abcd"), shortened).files == {"d/f": b"abc"}
    assert disk_of(written(0, b"abcd"), Entry(Call.UNLINK, -1, 0, b"d/f")).files == {}
