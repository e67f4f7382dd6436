"""Nothing of deleted material is left on the disk: `kmsd.store.residue`, and what `purge` and every opening do."""

# ruff: noqa: ASYNC221, ASYNC240 - one thing after the other is what these tests are about
from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import pytest

from kmsd.store.base import Change, Delete, Insert, Replace, StoreFormatError, StoreUnavailableError
from kmsd.store.rows import MaterialRow
from kmsd.store.sql import SqlStore
from kmsd.store.transfer import SNAPSHOT_NAME
from tests.store.rows import KEY_IDS, alias_row, edited, key_row, material_row, opened, unseal

# Lengths of wrapped material: that of a symmetric key, of an RSA key, and one that takes several overflow pages.
SYMMETRIC, RSA, HUGE = 76, 2500, 20_000
# What is looked for of a row: so many bytes of its material at each such distance, and at its end.
_PIECE, _DISTANCE = 12, 500
_PAGE = 4096


def material(number: int, length: int = SYMMETRIC, version: int = 1) -> MaterialRow:
    """The only material of a key, unlike any other's."""
    key_id = f"{number:08}-0000-4000-8000-000000000000"
    wrapped = hashlib.shake_256(f"{number}/{version}".encode()).digest(length)
    return msgspec.structs.replace(material_row(key_id, version=version), wrapped=wrapped)


def left_of(rows: Iterable[MaterialRow], folder: Path) -> list[str]:
    """Which of these rows something is left of, in any file of the folder: of the material, or of the row around it."""
    files = [one.read_bytes() for one in folder.iterdir()]
    return [row.key_id for row in rows if any(piece in file for piece in pieces_of(row) for file in files)]


def pieces_of(row: MaterialRow) -> list[bytes]:
    begins = [*range(0, len(row.wrapped) - _PIECE, _DISTANCE), len(row.wrapped) - _PIECE]
    return [row.wrapped[at : at + _PIECE] for at in begins] + [row.material_id.encode()]


def wrapped_in(path: Path) -> dict[str, bytes]:
    """The content of each row of material in a closed store."""
    with edited(path) as connection:
        return dict(connection.execute("SELECT key_id, content FROM material"))


async def commit(store: SqlStore, *changes: Change) -> None:
    await store.commit(None, changes)


async def fill(store: SqlStore, rows: Sequence[MaterialRow]) -> None:
    await commit(store, *map(Insert, rows))


@pytest.mark.parametrize("length", [SYMMETRIC, RSA, HUGE])
async def test_deleted_material_is_gone_and_its_neighbours_are_untouched(path: Path, length: int) -> None:
    """From the file and the log, whether it fits into a page or not; other material is there to the byte."""
    rows = [material(number, length) for number in range(30)]
    deleted, kept = rows[10:20:2], rows[:10] + rows[11:20:2] + rows[20:]
    async with opened(path) as store:
        await fill(store, rows)
    before = wrapped_in(path)
    async with opened(path) as store:
        await commit(store, *map(Delete, deleted))
        assert left_of(deleted, path.parent)

        await store.purge()

        assert left_of(deleted, path.parent) == []
        assert [await store.material(row.key_id, 1) for row in kept] == kept
        assert await store.verify_all() == len(kept) + 1
    assert wrapped_in(path) == {row.key_id: before[row.key_id] for row in kept}
    assert left_of(deleted, path.parent) == []
    assert len(left_of(kept, path.parent)) == len(kept)


async def test_a_purge_leaves_no_log_and_may_be_repeated(path: Path) -> None:
    """There is no shared memory either; and a store that was never written to can be purged as well."""
    async with opened(path) as store:
        await store.purge()
        await fill(store, [material(1)])
        await store.purge()
        await store.purge()

        assert {one.name: one.stat().st_size > 0 for one in path.parent.iterdir()} == {
            "store.sqlite": True,
            "store.sqlite-wal": False,
        }


async def test_a_purge_changes_nothing_that_is_there(path: Path) -> None:
    """Rows, state row and what is remembered of commits stay, and commits go on; the store may be sealed meanwhile."""
    async with opened(path) as store:
        await store.commit("m", [Insert(material(1)), Insert(key_row()), Insert(alias_row())])
        await store.commit("n", [Delete(material(1))])
        report = await store.check_state()
        store.seal()

        await store.purge()

        unseal(store)
        assert await store.check_state() == report
        assert await store.committed(["m", "n"]) == {"m", "n"}
        await store.commit("o", [Insert(material(1))])
        assert (await store.check_state()).findings == ()


async def test_a_log_that_outgrew_itself_tells_nothing(path: Path) -> None:
    """SQLite writes the log from its beginning again when it is long: what was behind is cut off as well."""
    deleted = [material(number, RSA) for number in range(28)]
    async with opened(path) as store:
        await fill(store, deleted)
        for number in range(12):  # 6 MB, of which 4 are a log that is written again
            await commit(store, *(Insert(key_row(f"{number}/{one}", policy="p" * 25_000)) for one in range(20)))
            await commit(store, *map(Delete, deleted[number * 2 : number * 2 + 2]))
        await commit(store, *map(Delete, deleted[24:]))

        await store.purge()

        assert left_of(deleted, path.parent) == []


async def test_pages_that_became_free_and_were_taken_again_tell_nothing(path: Path) -> None:
    """Whatever takes them, and whether all of them are taken."""
    deleted, later = (
        [material(number, HUGE) for number in range(20)],
        [material(number, RSA) for number in range(50, 60)],
    )
    async with opened(path) as store:
        await fill(store, deleted)
        await commit(store, *map(Delete, deleted))
        await commit(store, *map(Insert, later), *(Insert(key_row(one, policy="x" * 9000)) for one in KEY_IDS))

        await store.purge()

        assert left_of(deleted, path.parent) == []
        assert [await store.material(row.key_id, 1) for row in later] == later


@pytest.mark.parametrize("seed", [57, None])
async def test_whatever_was_done_before_deleted_material_is_gone(path: Path, seed: int | None) -> None:
    """Rows of all lengths come, grow, shrink and go, so that SQLite moves them from page to page."""
    rng = random.Random(seed)
    present: dict[int, MaterialRow] = {}
    gone: list[MaterialRow] = []
    async with opened(path) as store:
        for number in range(60):
            changes: list[Change] = []
            for one in range(number * 8, number * 8 + 8):
                present[one] = material(one, rng.choice((SYMMETRIC, SYMMETRIC, RSA, 900)))
                changes.append(Insert(present[one]))
            for one in rng.sample(sorted(present), min(len(present) - 8, 9)):
                row = present.pop(one)
                gone.append(row)
                if rng.random() < 0.4:
                    present[one] = material(one, rng.choice((SYMMETRIC, RSA, 900)), row.version + 1)
                    changes.append(Replace(present[one]))
                else:
                    changes.append(Delete(row))
            await commit(store, *changes)
        await store.purge()

        # `material_id` stays when a row is replaced.
        replaced = {row.key_id for row in present.values()}
        assert left_of([row for row in gone if row.key_id not in replaced], path.parent) == [], rng
        assert left_of([msgspec.structs.replace(row, material_id="none" * 16) for row in gone], path.parent) == []
        assert [await store.material(row.key_id, 1) for row in present.values()] == list(present.values())
        assert await store.verify_all() == len(present) + 1


def leave_a_copy(path: Path, row: MaterialRow) -> None:
    """Do what SQLite does when it moves a row to another page: leave a copy of it where nothing is allocated."""
    with edited(path) as connection:
        [[root]] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'material'")
    content = bytearray(path.read_bytes())
    page = root
    while content[(page - 1) * _PAGE] == 5:  # down to the rightmost leaf
        page = int.from_bytes(content[(page - 1) * _PAGE + 8 : (page - 1) * _PAGE + 12], "big")
    at = (page - 1) * _PAGE
    end = at + int.from_bytes(content[at + 5 : at + 7], "big")
    begin = end - len(row.wrapped)
    assert not any(content[begin:end])
    content[begin:end] = row.wrapped
    path.write_bytes(content)


@pytest.mark.parametrize("count", [1, 200])
async def test_the_copy_of_a_row_that_sqlite_moved_is_gone(path: Path, count: int) -> None:
    """SQLite's `secure_delete` overlooks these copies; opening the store removes them, and so does a purge."""
    rows = [material(number) for number in range(count)]
    async with opened(path) as store:
        await fill(store, rows)
    leave_a_copy(path, material(999))
    with edited(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    before = wrapped_in(path)
    assert left_of([material(999)], path.parent)

    async with opened(path) as store:
        assert left_of([material(999)], path.parent) == []
        assert (await store.check_state()).findings == ()
        assert await store.verify_all() == count + 1
        await commit(store, Delete(rows[0]))
        await store.purge()
        assert left_of([rows[0], material(999)], path.parent) == []
    assert wrapped_in(path) == {key_id: one for key_id, one in before.items() if key_id != rows[0].key_id}


# Ends the process at one of the moments between which it can be killed: after the commit that deletes, and in a purge
# that has to write the table anew.
KILLED = """
import asyncio, os, pathlib, signal, sys
import kmsd.store.database as database, kmsd.store.residue as residue
from kmsd.store.base import Delete
from tests.store.rows import opened
from tests.store.test_purge import material
path, moment = pathlib.Path(sys.argv[1]), sys.argv[2]
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def then_kill(function):
    def run(*arguments):
        function(*arguments)
        kill()
    return run
def plan():
    real = database.Database._execute
    class_ = database.Database
    match moment:
        case "before the log is moved": class_._cut_log = kill
        case "the table is written": residue.remove = then_kill(residue.remove)
        case "the table is committed":
            class_._execute = lambda self, text: (real(self, text), kill()) if text == "COMMIT" else real(self, text)
async def main():
    async with opened(path) as store:
        await store.commit(None, [Delete(material(number)) for number in range(10, 50)])
        residue.is_there = lambda *_: True
        plan()
        await store.purge()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "moment",
    [
        "before the log is moved",
        "the table is written",
        "the table is committed",
    ],
)
async def test_a_purge_that_was_killed_is_made_up_by_the_next_opening(path: Path, moment: str) -> None:
    """What was deleted stays deleted and is gone from the disk; everything else is there, once."""
    rows = [material(number) for number in range(100)]
    deleted, kept = rows[10:50], rows[:10] + rows[50:]
    async with opened(path) as store:
        await fill(store, rows)

    child = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False)

    assert child.returncode == -signal.SIGKILL
    async with opened(path) as store:
        assert left_of(deleted, path.parent) == []
        assert (await store.check_state()).findings == ()
        assert [await store.material(row.key_id, 1) for row in rows] == [
            None if row in deleted else row for row in rows
        ]
        assert await store.verify_all() == len(kept) + 1
    assert {one.name for one in path.parent.iterdir()} == {path.name}


async def test_a_snapshot_has_what_its_commit_had(path: Path) -> None:
    """One made before the material was deleted still has it, which its owner has to know; a later one does not."""
    row = material(1)
    async with opened(path) as store:
        await fill(store, [row, material(2)])
        earlier = await store.snapshot(path.with_name(SNAPSHOT_NAME))
        await commit(store, Delete(row))
        await store.purge()
        later = await store.snapshot(path.with_name(SNAPSHOT_NAME))
        streams = [b"".join([batch async for batch in one.batches()]) for one in (earlier, later)]
        for one in (earlier, later):
            await one.close()

        assert [row.wrapped in stream for stream in streams] == [True, False]
        assert left_of([row], path.parent) == []


async def test_damaged_pages_are_reported_when_the_store_is_opened(path: Path) -> None:
    """Whatever they say, the search ends."""
    async with opened(path) as store:
        await fill(store, [material(number) for number in range(200)])
    with edited(path) as connection:
        [[root]] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'material'")
    whole = path.read_bytes()
    at = (root - 1) * _PAGE
    # No page of a table; one that is its own child; one that is not there.
    for begin, edit in ((at, b"\x07"), (at + 8, root.to_bytes(4, "big")), (at + 8, b"\x7f\xff\xff\xff")):
        content = bytearray(whole)
        content[begin : begin + len(edit)] = edit
        path.write_bytes(content)

        with pytest.raises(StoreFormatError, match="damaged"):
            await SqlStore.open(path)


async def test_a_purge_of_a_closed_store_is_refused(path: Path) -> None:
    """As everything else is."""
    async with opened(path) as store:
        await store.close()
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.purge()
