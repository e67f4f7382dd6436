"""From every released schema to the present one: `kmsd.store.migrations`."""

# ruff: noqa: ASYNC221, ASYNC240 - one thing after the other is what these tests are about
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from kmsd.store.base import Delete, Insert, Replace, StateReport, StoreError, StoreFormatError, StoreUnavailableError
from kmsd.store.kinds import KINDS, Kind
from kmsd.store.migrations.stamp import SCHEMA_VERSION
from kmsd.store.migrations.upgrade import upgrade
from kmsd.store.schema import METADATA, column_types
from kmsd.store.sql import SqlStore
from tests.store.rows import (
    KEY_IDS,
    alias_row,
    credential_row,
    default_key_row,
    edited,
    grant_row,
    housekeeping_row,
    key_row,
    material_row,
    opened,
    tombstone_row,
    unseal,
    usage_row,
)

STORES = Path(__file__).parent.parent / "vectors" / "stores"
RELEASED = sorted(int(one.name) for one in STORES.iterdir() if one.is_dir())


@pytest.fixture(params=RELEASED)
def released(request: pytest.FixtureRequest, path: Path) -> int:
    """A store of a released schema, at `path`; the number of the schema."""
    shutil.copy(STORES / str(request.param) / "store.sqlite", path)
    return int(request.param)


def schema_of(path: Path) -> list[tuple[object, ...]]:
    """Every table and index as SQLite has written it down, and the stamp."""
    with edited(path) as connection:
        objects = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()
        stamps = connection.execute("SELECT * FROM pragma_application_id, pragma_user_version").fetchall()
    return objects + stamps


def contents_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of the tables that a store of some schema has, but for the columns that not every schema has."""
    with edited(path) as connection:
        there = {name for [name] in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return {
            kind.table: connection.execute(f"SELECT {columns_of(kind)} FROM {kind.table} ORDER BY 1, 2").fetchall()  # noqa: S608 - our own names
            for kind in KINDS
            if kind.table in there
        }


def due_dates_of(path: Path) -> list[int]:
    with edited(path) as connection:
        return [due_ms for [due_ms] in connection.execute("SELECT due_ms FROM keys")]


def columns_of(kind: Kind[Any]) -> str:
    """The columns that a table has had from its first schema on."""
    return ", ".join(name for name in column_types(kind.table) if name not in kind.later)


def files_of(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


def test_every_schema_before_the_present_one_is_kept() -> None:
    """There is a store of each to test with."""
    assert list(range(1, SCHEMA_VERSION)) == RELEASED


async def test_an_older_store_is_not_opened(released: int, path: Path) -> None:
    """The daemon upgrades nothing by itself: it says what to run, and touches nothing."""
    before = files_of(path.parent)

    with pytest.raises(StoreFormatError, match=f"schema is {released}.*run `kmsd upgrade`"):
        await SqlStore.open(path)

    assert files_of(path.parent) == before


async def test_an_upgraded_store_is_as_a_new_one(released: int, path: Path) -> None:
    """The same tables and indexes as those the present kmsd makes, to the letter, and the rows that were there."""
    contents = contents_of(path)
    async with opened(path.with_name("new.sqlite")):
        pass

    done = upgrade(path)

    assert (done.found, done.copy) == (released, path.with_name(f"store.sqlite.schema-{released}"))
    assert schema_of(path) == schema_of(path.with_name("new.sqlite"))
    assert contents.items() <= contents_of(path).items()
    assert set(due_dates_of(path)) == {0}
    with contextlib.closing(sa.create_engine(f"sqlite:///{path}").connect()) as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA) == []


@pytest.mark.usefixtures("released")
def test_the_store_before_is_kept(path: Path) -> None:
    """A copy that is whole, and its owner's only."""
    schema, contents = schema_of(path), contents_of(path)

    copy = upgrade(path).copy

    assert copy is not None
    assert (schema_of(copy), contents_of(copy)) == (schema, contents)
    assert copy.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("released")
def test_an_upgrade_twice_is_one(path: Path) -> None:
    """The second changes nothing, not even the copy."""
    upgrade(path)
    before = files_of(path.parent)

    done = upgrade(path)

    assert (done.found, done.copy) == (SCHEMA_VERSION, None)
    assert files_of(path.parent) == before


async def test_a_store_that_had_no_state_row_tells_so(path: Path) -> None:
    """Nothing is known of its rows until they are accepted; that is not what a removed state row looks like."""
    shutil.copy(STORES / "1" / "store.sqlite", path)
    upgrade(path)
    async with opened(path, mac_key=None) as store:
        unseal(store)
        report = await store.check_state()

        assert (report.findings, report.adopted, report.sequence) == ((), True, 0)

        await store.accept_state(0)
        report = await store.check_state()

        assert (report.findings, report.adopted, report.sequence) == ((), False, 1)
    with edited(path) as connection:
        connection.execute("DELETE FROM state")
    async with opened(path, mac_key=None) as store:
        unseal(store)
        report = await store.check_state()

    assert not report.adopted
    assert report.findings[0] == "the state row is missing"


@pytest.fixture(params=[schema for schema in RELEASED if schema > 1])
async def counted(request: pytest.FixtureRequest, path: Path) -> StateReport:
    """A store with a state row, of an older schema but under the tests' keys, at `path`; what its check told before."""
    new = path.with_name("new.sqlite")
    async with opened(new) as store:
        await store.commit("m", [Insert(key_row()), Insert(material_row()), Insert(alias_row())])
        await store.commit("n", [Delete(alias_row()), Insert(key_row(KEY_IDS[1]))])
        report = await store.check_state()
    shutil.copy(STORES / str(request.param) / "store.sqlite", path)
    tables = contents_of(path)
    with edited(path) as connection:
        connection.execute("ATTACH ? AS new", [str(new)])
        for kind in KINDS:
            if kind.table in tables:
                connection.execute(f"DELETE FROM {kind.table}")  # noqa: S608 - our own names
                connection.execute(f"INSERT INTO {kind.table} SELECT {columns_of(kind)} FROM new.{kind.table}")  # noqa: S608 - our own names
    new.unlink()
    return report


async def test_a_state_row_goes_on_counting(counted: StateReport, path: Path) -> None:
    """It knows nothing of the new tables, which are empty: it is as true as before, and nobody has to accept it.

    Nor did keys change by being given a column for when something falls due, as nothing does.
    """
    upgrade(path)

    async with opened(path) as store:
        assert await store.check_state() == counted
        assert await store.keys(after=None, limit=9) == [key_row(), key_row(KEY_IDS[1])]
        await store.commit("o", [Insert(row) for row in (grant_row(), default_key_row(), credential_row())])
        await store.commit("p", [Insert(row) for row in (usage_row(), tombstone_row(), housekeeping_row())])
        await store.commit("q", [Replace(key_row(due_ms=7, version=2)), Delete(key_row(KEY_IDS[1]))])
        report = await store.check_state()

        assert (report.findings, report.store_id, report.sequence) == ((), counted.store_id, 5)


@pytest.mark.usefixtures("counted")
async def test_an_upgrade_hides_nothing(path: Path) -> None:
    """What was done to the rows before is found after it, and so is what tables have that were not there."""
    with edited(path) as connection:
        connection.execute("DELETE FROM material")
    upgrade(path)
    with edited(path) as connection:
        connection.execute("INSERT INTO default_keys VALUES ('unit:a.service', 1, x'', x'')")
        connection.execute("INSERT INTO tombstones VALUES ('hidden', 1, x'', x'')")
        connection.execute("UPDATE keys SET due_ms = 1 WHERE rowid = 1")

    async with opened(path, mac_key=None) as store:
        unseal(store)
        report = await store.check_state()

    assert {
        "material: 1 row is missing (0 there, 1 recorded)",
        "default_keys: 1 row is too many (1 there, 0 recorded)",
        "tombstones: 1 row is too many (1 there, 0 recorded)",
        "keys: rows were edited, or exchanged for others, or earlier ones were put back",
    } <= {*report.findings}


# Ends the process at one of the moments between which an upgrade can be killed.
KILLED = """
import os, pathlib, sys
import kmsd.store.database as database, kmsd.store.migrations.upgrade as upgrade
path, moment = pathlib.Path(sys.argv[1]), sys.argv[2]
def ending(function, before):
    def end(*arguments):
        if not before:
            function(*arguments)
        os._exit(9)
    return end
execute = database.Database._execute
def on(text, before):
    def run(self, statement):
        (ending(execute, before) if statement == text else execute)(self, statement)
    return run
match moment:
    case "before the copy": upgrade._copy = ending(upgrade._copy, True)
    case "copied, not named": pathlib.Path.replace = ending(pathlib.Path.replace, True)
    case "after the copy": upgrade._copy = ending(upgrade._copy, False)
    case "between revisions and stamp": upgrade.stamp = ending(upgrade.stamp, True)
    case "before the commit": database.Database._execute = on("COMMIT", True)
    case "after the commit": database.Database._execute = on("COMMIT", False)
upgrade.upgrade(path)
"""
MOMENTS = [
    "before the copy",
    "copied, not named",
    "after the copy",
    "between revisions and stamp",
    "before the commit",
    "after the commit",
]


def test_an_upgrade_may_be_killed_anywhere(released: int, path: Path) -> None:
    """Whatever was left, the next one ends with the new schema, the old rows, and a whole copy."""
    contents, schema = contents_of(path), schema_of(path)
    original = path.read_bytes()
    for moment in MOMENTS:
        for one in path.parent.iterdir():
            one.unlink()
        path.write_bytes(original)

        child = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False)

        assert child.returncode == 9
        done = upgrade(path)
        assert (done.copy is None) is (moment == "after the commit")
        assert contents.items() <= contents_of(path).items()
        copy = path.with_name(f"store.sqlite.schema-{released}")
        assert (schema_of(copy), contents_of(copy)) == (schema, contents)
        assert {one.name for one in path.parent.iterdir()} == {path.name, copy.name}


async def refusal(path: Path) -> str:
    """Why the store at `path` is not upgraded; nothing of it changed."""
    before = files_of(path.parent) if path.parent.exists() else {}
    with pytest.raises(StoreError) as refused:
        upgrade(path)
    assert str(path) in str(refused.value)
    if path.parent.exists():
        assert files_of(path.parent) == before
    return str(refused.value)


@pytest.mark.usefixtures("released")
async def test_a_damaged_store_is_not_upgraded(path: Path) -> None:
    """Damage has to be looked at first: it would only be carried along."""
    content = bytearray(path.read_bytes())
    content[-4096:] = b"\xff" * 4096
    path.write_bytes(content)

    assert "damaged" in await refusal(path)


async def test_what_is_no_older_store_is_not_upgraded(path: Path) -> None:
    """No file, an empty one, text, another application's, a newer schema: each is named, and none is touched."""
    assert "there is none" in await refusal(path)
    path.touch()
    assert "empty" in await refusal(path)
    path.write_bytes(b"my notes\n" * 1000)
    assert "no store" in await refusal(path)
    path.unlink()
    with edited(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    assert "another application" in await refusal(path)
    path.unlink()
    async with opened(path):
        pass
    with edited(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert "newer kmsd" in await refusal(path)


async def test_a_running_daemon_keeps_its_store(path: Path) -> None:
    """Whoever has the store open is not upgraded under its feet."""
    async with opened(path) as store:
        await store.commit("m", [])
        with pytest.raises(StoreUnavailableError, match="in use"):
            upgrade(path)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a store, and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.root
async def test_without_room_for_a_copy_nothing_is_changed(full_disk: Path) -> None:
    """The message names the copy; with room, the upgrade works."""
    path = full_disk / "store.sqlite"
    shutil.copy(STORES / "1" / "store.sqlite", path)
    contents = contents_of(path)

    with pytest.raises(StoreUnavailableError, match=r"store\.sqlite\.schema-1 cannot be written: .*full"):
        upgrade(path)

    assert contents_of(path) == contents
    subprocess.run(["mount", "-o", "remount,size=4m", full_disk], check=True)
    assert upgrade(path).found == 1


def test_only_an_upgrade_loads_alembic(path: Path) -> None:
    """Opening a store does not pay for it."""
    program = (
        "import asyncio, pathlib, sys; from kmsd.store.sql import SqlStore\n"
        "asyncio.run(SqlStore.open(pathlib.Path(sys.argv[1])))\n"
        "sys.exit('alembic' in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
