"""What somebody who can write the store's file can do to its rows, and how it is noticed."""

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kmsd.api.errors import IntegrityError
from kmsd.store.base import Delete, Insert, Replace, RowChangedError, StateReport, StoreError, StoreFormatError
from kmsd.store.kinds import KINDS, STATE
from kmsd.store.rows import AnchorRow, BackupRow, StateRow
from kmsd.store.schema import STATEMENTS
from kmsd.store.sealing import Record
from kmsd.store.sql import SqlStore
from tests.store.rows import (
    KEY_IDS,
    SET_KEY,
    alias_row,
    credential_row,
    default_key_row,
    domain_key_row,
    edited,
    grant_row,
    hide_from_index,
    housekeeping_row,
    key_row,
    material_row,
    opened,
    secret_row,
    settings_row,
    tombstone_row,
    unseal,
    usage_row,
)

ONE, TWO, THREE = KEY_IDS[:3]


def anchor_row(version: int = 1) -> AnchorRow:
    return AnchorRow(
        seq=version, prev="0" * 64, event_time="2026-01-01T00:00:00.000Z", key_id="k", signature="s", version=version
    )


def backup_row() -> BackupRow:
    return BackupRow(creation_ms=1, store_sequence=1, sha256="0" * 64, length=1, version=1)


async def filled(path: Path) -> Path:
    """Make a store at `path`, and return a copy of it as it was before its last commit."""
    async with opened(path) as store:
        await store.commit(
            "first",
            [
                Insert(key_row(ONE)),
                Insert(key_row(TWO, due_ms=5)),
                Insert(material_row(number=1)),
                Insert(material_row(number=2)),
                Insert(alias_row("alias/a")),
                Insert(alias_row("alias/gone")),
                Insert(grant_row()),
                Insert(grant_row("b" * 64, TWO)),
                Insert(default_key_row()),
                Insert(credential_row()),
                Insert(usage_row()),
                Insert(tombstone_row(THREE)),
                Insert(tombstone_row("gone")),
                Insert(housekeeping_row()),
                Insert(domain_key_row()),
                Insert(secret_row()),
                Insert(settings_row()),
                Insert(anchor_row()),
                Insert(backup_row()),
            ],
        )
    older = path.with_name("older.sqlite")
    shutil.copy(path, older)
    async with opened(path) as store:
        await store.commit(
            "second",
            [
                Replace(key_row(ONE, key_state="Disabled", due_ms=9, version=2)),
                Delete(alias_row("alias/gone")),
                Delete(grant_row()),
                Replace(default_key_row(version=2)),
                Replace(credential_row(version=2)),
                Replace(usage_row(version=2)),
                Replace(tombstone_row(THREE, version=2)),
                Replace(housekeeping_row(version=2)),
                Insert(key_row(THREE)),
                Replace(anchor_row(version=2)),
            ],
        )
    return older


async def checked(path: Path) -> StateReport:
    async with opened(path, mac_key=None) as store:
        unseal(store)
        return await store.check_state()


@dataclass(frozen=True)
class Tampering:
    """What somebody does, with the store before its last commit at hand as `older`, and what is found."""

    what: str
    sql: str
    finding: str


EXCHANGED = "{}: rows were edited, or exchanged for others, or earlier ones were put back"

TAMPERINGS = [
    Tampering(
        "a row is removed",
        "DELETE FROM keys WHERE key_id = '{TWO}'",
        "keys: 1 row is missing (2 there, 3 recorded)",
    ),
    Tampering("all rows of a table are removed", "DELETE FROM material", "material: 2 rows are missing (0 there, 2 re"),
    Tampering(
        "an earlier version is put back",
        "DELETE FROM keys WHERE key_id = '{ONE}'; INSERT INTO keys SELECT * FROM older.keys WHERE key_id = '{ONE}'",
        EXCHANGED.format("keys"),
    ),
    Tampering(
        "a deleted row is put back",
        "INSERT INTO aliases SELECT * FROM older.aliases WHERE name = 'alias/gone'",
        "aliases: 1 row is too many (2 there, 1 recorded)",
    ),
    Tampering(
        "a deleted row is put in the place of another",
        "DELETE FROM aliases; INSERT INTO aliases SELECT * FROM older.aliases WHERE name = 'alias/gone'",
        EXCHANGED.format("aliases"),
    ),
    Tampering(
        "a row is renamed with its MAC",
        "UPDATE keys SET key_id = 'hidden' WHERE key_id = '{TWO}'",
        "the record of keys 'hidden' does not authenticate",
    ),
    Tampering(
        "a row's key becomes a blob, which no search finds",
        "UPDATE aliases SET name = CAST(name AS BLOB)",
        EXCHANGED.format("aliases"),
    ),
    Tampering(
        "two rows swap their names",
        "UPDATE keys SET key_id = 'x' WHERE key_id = '{ONE}'; UPDATE keys SET key_id = '{ONE}' WHERE key_id = '{TWO}';"
        "UPDATE keys SET key_id = '{TWO}' WHERE key_id = 'x'",
        EXCHANGED.format("keys"),
    ),
    Tampering(
        "two rows swap what they hold",
        "UPDATE material SET (content, mac) = "
        "(SELECT content, mac FROM material AS m WHERE m.number != material.number)",
        EXCHANGED.format("material"),
    ),
    Tampering("a MAC is edited", "UPDATE secrets SET mac = zeroblob(32)", EXCHANGED.format("secrets")),
    Tampering("a MAC becomes text", "UPDATE secrets SET mac = 'text'", EXCHANGED.format("secrets")),
    Tampering(
        "a lookup column leads elsewhere",
        "UPDATE aliases SET key_id = '{TWO}'",
        "the record of aliases 'alias/a' disagrees with the columns beside it",
    ),
    Tampering("a lookup column is no number", "UPDATE keys SET creator_uid = x'00'", EXCHANGED.format("keys")),
    Tampering(
        "a revoked grant is put back",
        "INSERT INTO grants SELECT * FROM older.grants WHERE key_id = '{ONE}'",
        "grants: 1 row is too many (2 there, 1 recorded)",
    ),
    Tampering(
        "a grant is given to somebody else",
        "UPDATE grants SET grantee = 'uid:1001'",
        "the record of grants",
    ),
    Tampering(
        "a default key goes to another account",
        "UPDATE default_keys SET owner = 'uid:1000/user:mallory'",
        "the record of default_keys 'uid:1000/user:mallory' does not authenticate",
    ),
    Tampering(
        "a credential goes to another unit",
        "UPDATE credentials SET unit = 'mallory.service'",
        "the record of credentials 'mallory.service/tls-key' does not authenticate",
    ),
    Tampering(
        "an earlier credential is put back",
        "DELETE FROM credentials; INSERT INTO credentials SELECT * FROM older.credentials",
        EXCHANGED.format("credentials"),
    ),
    Tampering("what falls due does not", "UPDATE keys SET due_ms = 0", EXCHANGED.format("keys")),
    Tampering("a key falls due that does not", "UPDATE keys SET due_ms = 1 WHERE key_id = '{THREE}'", "keys: rows"),
    Tampering("a key falls due later", "UPDATE keys SET due_ms = due_ms + 1 WHERE due_ms = 5", "keys: rows"),
    Tampering("when a key falls due becomes text", "UPDATE keys SET due_ms = 'due_ms=5'", "keys: rows"),
    Tampering(
        "the time that was sure to have passed is put back",
        "DELETE FROM housekeeping; INSERT INTO housekeeping SELECT * FROM older.housekeeping",
        EXCHANGED.format("housekeeping"),
    ),
    Tampering(
        "uses of a key are forgotten",
        "DELETE FROM usage; INSERT INTO usage SELECT * FROM older.usage",
        EXCHANGED.format("usage"),
    ),
    Tampering("a tombstone is removed", "DELETE FROM tombstones WHERE key_id = 'gone'", "tombstones: 1 row is missing"),
    Tampering(
        "a row moves to another table",
        "INSERT INTO settings SELECT name, version, content, mac FROM secrets; DELETE FROM secrets",
        "settings: 1 row is too many (2 there, 1 recorded)",
    ),
    Tampering(
        "a separator in a key",
        "UPDATE keys SET key_id = key_id || char(1) || creator_uid WHERE key_id = '{TWO}'",
        EXCHANGED.format("keys"),
    ),
    Tampering(
        "two rows in one",
        "UPDATE material SET key_id = key_id || char(1) || '1' || char(1) || hex(mac) || char(0) || key_id "
        "WHERE number = 2; DELETE FROM material WHERE number = 1",
        "material: 1 row is missing (1 there, 2 recorded)",
    ),
    Tampering(
        "a mutation is told twice",
        "INSERT INTO mutations SELECT 9, 'again', version, content, mac FROM mutations WHERE mutation_id = 'first'",
        "mutations: 1 row is too many (3 there, 2 recorded)",
    ),
    Tampering(
        "a mutation that happened is removed",
        "DELETE FROM mutations WHERE mutation_id = 'first'",
        "mutations: 1 row is missing (1 there, 2 recorded)",
    ),
    Tampering(
        "a mutation is made the newest, so that others are forgotten",
        "UPDATE mutations SET sequence = 1000000 WHERE mutation_id = 'first'",
        EXCHANGED.format("mutations"),
    ),
    Tampering(
        "an earlier anchor is put back",
        "DELETE FROM anchors; INSERT INTO anchors SELECT * FROM older.anchors",
        EXCHANGED.format("anchors"),
    ),
    Tampering("the last backup is forgotten", "DELETE FROM backups", "backups: 1 row is missing (0 there, 1 recorded)"),
    Tampering("a domain key is removed", "DELETE FROM domain_keys", "domain_keys: 1 row is missing"),
    Tampering(
        "a row beyond all others",
        "INSERT INTO keys (rowid, key_id, creator_uid, due_ms, version, content, mac) "
        "VALUES (-9223372036854775808, 'low', 1, 0, 1, x'', x''), (9223372036854775807, 'high', 1, 0, 1, x'', x'')",
        "keys: 2 rows are too many (5 there, 3 recorded)",
    ),
    Tampering("the state row is removed", "DELETE FROM state", "the state row is missing"),
    Tampering("the state row is emptied", "UPDATE state SET content = x''", "the record of state 'state' does not"),
    Tampering("the state row is renamed", "UPDATE state SET name = 'other'", "the record of state 'other' does not"),
    Tampering(
        "a count in the state row is edited",
        "UPDATE state SET content = CAST(replace(CAST(content AS TEXT), 'material', 'material') AS BLOB), version = 9",
        "the record of state 'state' does not authenticate",
    ),
    Tampering(
        "the older state row over the newer rows",
        "DELETE FROM state; INSERT INTO state SELECT * FROM older.state",
        "mutations: 1 row is too many (2 there, 1 recorded)",
    ),
    Tampering(
        "the older rows under the newer state row",
        "".join(
            f"DELETE FROM {kind.table}; INSERT INTO {kind.table} SELECT * FROM older.{kind.table};"  # noqa: S608 - ours
            for kind in KINDS
            if kind.table != "state"
        ),
        "mutations: 1 row is missing (1 there, 2 recorded)",
    ),
    Tampering(
        "a second state row",
        "INSERT INTO state SELECT 'older', version, content, mac FROM older.state",
        "there are 2 state rows instead of one",
    ),
]


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda tampering: tampering.what)
async def test_it_is_found_and_named(path: Path, tampering: Tampering) -> None:
    """The findings name it, and do not quote what rows hold; nothing is written before somebody accepts it."""
    older = await filled(path)
    with edited(path) as connection:
        connection.execute("ATTACH ? AS older", [str(older)])
        connection.executescript(tampering.sql.format(ONE=ONE, TWO=TWO, THREE=THREE))
        assert connection.total_changes > 0

    async with opened(path, mac_key=None) as store:
        unseal(store)
        report = await store.check_state()

        assert any(finding.startswith(tampering.finding) for finding in report.findings), report.findings
        assert "for tests" not in " ".join(report.findings)
        assert not report.adopted
        with pytest.raises(IntegrityError):
            await store.commit("third", [])

        await store.accept_state(7)
        assert store.sequence > 7
        await store.commit("third", [Insert(alias_row("alias/new"))])
        assert (await store.check_state()).findings == ()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("content", "content || x'00'"),
        ("content", "x''"),
        ("content", "'text'"),
        ("version", "7"),
        ("version", "'one'"),
    ],
)
async def test_what_the_mac_stands_for_is_refused_when_it_is_read(path: Path, column: str, value: str) -> None:
    """The check reads no contents; who reads the row does, and who verifies everything."""
    await filled(path)
    with edited(path) as connection:
        connection.execute(f"UPDATE keys SET {column} = {value} WHERE key_id = ?", [TWO])  # noqa: S608 - from above

    async with opened(path) as store:
        with pytest.raises(IntegrityError, match=TWO):
            await store.key(TWO)
        with pytest.raises(IntegrityError, match=TWO):
            await store.verify_all()


async def test_an_older_store_shows_in_its_sequence(path: Path) -> None:
    """A whole older store is what kmsd left once: only who knows of a later commit can tell."""
    older = await filled(path)

    reports = [await checked(path), await checked(older)]

    assert [report.findings for report in reports] == [(), ()]
    assert [report.sequence for report in reports] == [2, 1]
    assert reports[0].store_id == reports[1].store_id


async def test_an_emptied_store_is_told_from_one_in_use(path: Path) -> None:
    """Without any row it is as new: no id, no commit. The trail tells of a store that was in use."""
    await filled(path)
    with edited(path) as connection:
        for kind in KINDS:
            connection.execute(f"DELETE FROM {kind.table}")  # noqa: S608 - our own names

    assert await checked(path) == StateReport((), None, 0, adopted=False)


async def test_a_forged_migration_shows_that_nothing_is_known(path: Path) -> None:
    """What an upgrade writes anybody can write; the caller decides whether there can have been an upgrade."""
    await filled(path)
    with edited(path) as connection:
        connection.execute("UPDATE state SET version = 0, content = x'', mac = x''")

    assert await checked(path) == StateReport((), None, 0, adopted=True)


async def test_the_state_row_of_another_store_is_refused(path: Path) -> None:
    """Two stores with keys of their own have nothing to exchange."""
    await filled(path)
    other = path.with_name("other.sqlite")
    async with opened(other, mac_key=bytes(32)) as store:
        await store.commit("m", [])
    with edited(path) as connection:
        connection.execute("ATTACH ? AS other", [str(other)])
        connection.executescript("DELETE FROM state; INSERT INTO state SELECT * FROM other.state")

    report = await checked(path)

    assert report.findings[0].startswith("the record of state 'state' does not authenticate")
    assert (report.store_id, report.sequence) == (None, 0)


async def test_the_set_key_alone_is_not_enough(path: Path) -> None:
    """With another set key nothing adds up: the hashes are keyed."""
    await filled(path)
    async with opened(path, mac_key=None) as store:
        unseal(store, set_key=SET_KEY[::-1])
        report = await store.check_state()

    assert EXCHANGED.format("keys") in report.findings


async def test_a_sum_shows_nothing(path: Path) -> None:
    """The stored hash of the same rows is another after each commit, so that differences of two tell nothing."""
    seen = set()
    async with opened(path) as store:
        await store.commit("m", [Insert(key_row(ONE))])
        for number in range(5):
            await store.commit(f"m{number}", [])
            await store.forget([f"m{number}"])
            state = store._sealer.row(await one_state_record(store))
            seen.update({state.nonce, state.multisets["keys"], state.multisets["mutations"]})

    assert len(seen) == 15


async def one_state_record(store: SqlStore) -> Record[StateRow]:
    [columns] = await store._run(store._database.rows, STATEMENTS["state"].all, {})
    return Record.from_columns(STATE, columns)


async def test_an_index_that_hides_a_row_is_found_by_verifying_everything(path: Path) -> None:
    """A search then misses a row that is there, which no row shows."""
    await filled(path)
    hide_from_index(path)

    async with opened(path) as store:
        assert await store.alias("alias/a") is None
        with pytest.raises(StoreFormatError, match="index"):
            await store.verify_all()


async def test_a_commit_does_not_go_past_a_change_made_meanwhile(path: Path) -> None:
    """A row that lost its version between check and commit is not written over."""
    await filled(path)
    async with opened(path) as store:
        with pytest.raises(RowChangedError):
            await store.commit("third", [Replace(key_row(TWO, version=3))])
        await store.commit("third", [Replace(key_row(TWO, version=2))])

        assert (await store.check_state()).findings == ()


@pytest.fixture(scope="module")
def prepared() -> Iterator[tuple[Path, Path]]:
    """A store, and the one it was before its last commit."""
    with tempfile.TemporaryDirectory(prefix="kmsd-") as folder:
        path = Path(folder) / "store.sqlite"
        yield path, asyncio.run(filled(path))


def rows_in(path: Path) -> list[list[str]]:
    """What every table holds, types and all."""
    with edited(path) as connection:
        connection.text_factory = lambda text: ("text", text)
        return [
            sorted(map(repr, connection.execute(f"SELECT * FROM {kind.table}")))  # noqa: S608 - our own names
            for kind in KINDS
        ]


async def noticed(path: Path) -> bool:
    """Whether opening, checking or reading everything refuses or reports."""
    try:
        async with opened(path, mac_key=None) as store:
            unseal(store)
            report = await store.check_state()
            if report.findings or report.adopted or report.sequence != 2:
                return True
            await store.verify_all()
    except (IntegrityError, StoreError):
        return True
    return False


VALUES = st.sampled_from(
    ["NULL", "0", "1", "'{ONE}'", "'{TWO}'", "'alias/a'", "x''", "x'00'", "zeroblob(32)", "version", "mac", "content"]
)
TABLES = st.sampled_from([kind.table for kind in KINDS])
EDITS = st.sampled_from(
    [
        "DELETE FROM {table} WHERE rowid = {one}",
        "UPDATE OR IGNORE {table} SET {column} = {value} WHERE rowid = {one}",
        "UPDATE OR IGNORE {table} SET {column} = {value}",
        "INSERT OR REPLACE INTO {table} SELECT * FROM older.{table}",
        "DELETE FROM {table}; INSERT INTO {table} SELECT * FROM older.{table}",
    ]
)


@settings(max_examples=40)
@given(data=st.data(), table=TABLES)
def test_no_edit_passes(prepared: tuple[Path, Path], data: st.DataObject, table: str) -> None:
    """Whatever is done to any row, as long as it changes something, it is reported or refused."""
    path, older = prepared
    with tempfile.TemporaryDirectory(prefix="kmsd-") as folder:
        copy = Path(folder) / "store.sqlite"
        shutil.copy(path, copy)
        before = rows_in(copy)
        with edited(copy) as connection:
            connection.execute("ATTACH ? AS older", [str(older)])
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            rowids = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]  # noqa: S608 - our own names
            one = data.draw(st.sampled_from(rowids))
            column, value = data.draw(st.sampled_from(columns)), data.draw(VALUES).format(ONE=ONE, TWO=TWO)
            statement = data.draw(EDITS).format(table=table, one=one, column=column, value=value)
            with contextlib.suppress(sqlite3.IntegrityError):  # a rowid is a number, whoever writes it
                connection.executescript(statement)
        assume(rows_in(copy) != before)

        assert asyncio.run(noticed(copy)), statement


@settings(max_examples=40)
@given(data=st.data())
def test_no_flipped_bit_passes(prepared: tuple[Path, Path], data: st.DataObject) -> None:
    """Of all rows read, none is another than it was."""
    path, _ = prepared
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory(prefix="kmsd-") as folder:
        copy = Path(folder) / "store.sqlite"
        copy.write_bytes(content)

        if not asyncio.run(noticed(copy)):
            assert rows_in(copy) == rows_in(path)
