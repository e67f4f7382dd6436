"""Reading, committing, sealing and closing: `kmsd.store.sql`."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from sqlalchemy.dialects import sqlite

from kmsd.api.errors import IntegrityError, SealedError
from kmsd.store.base import (
    Delete,
    Expect,
    Insert,
    Replace,
    RowChangedError,
    RowExistsError,
    Store,
    StoreUnavailableError,
)
from kmsd.store.kinds import kind_of
from kmsd.store.rows import (
    AliasRow,
    CredentialRow,
    DefaultKeyRow,
    DomainKeyRow,
    GrantRow,
    HousekeepingRow,
    KeyRow,
    MaterialRow,
    Row,
    SecretRow,
    SettingsRow,
    TombstoneRow,
    UsageRow,
)
from kmsd.store.schema import (
    COUNT_GRANTS,
    GRANTS_FOR,
    GRANTS_NAMED,
    GRANTS_OF_GRANTEE_AFTER,
    GRANTS_OF_KEY_AFTER,
    KEYS_DUE,
    MATERIALS_AFTER,
    NEXT_DUE,
    REMEMBERED_MUTATIONS,
    RETIRABLE_GRANTS_AFTER,
)
from kmsd.store.sql import SqlStore
from tests.store.rows import (
    KEY_IDS,
    ROWS,
    alias_row,
    credential_row,
    default_key_row,
    domain_key_row,
    edited,
    grant_row,
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

EVERY_KIND: list[Row] = [
    key_row(),
    material_row(),
    alias_row(),
    grant_row(),
    default_key_row(),
    credential_row(),
    usage_row(),
    tombstone_row(),
    housekeeping_row(),
    domain_key_row(),
    secret_row(),
    settings_row(),
]


async def stored(store: Store, row: Row) -> Row | None:
    """What the store has in the place of `row`."""
    by_key: dict[type[Row], Callable[..., Awaitable[Row | None]]] = {
        KeyRow: store.key,
        MaterialRow: store.material,
        AliasRow: store.alias,
        GrantRow: store.grant,
        DefaultKeyRow: store.default_key,
        CredentialRow: store.credential,
        UsageRow: store.usage,
        TombstoneRow: store.tombstone,
        SecretRow: store.secret,
    }
    match row:
        case HousekeepingRow():
            return await store.housekeeping()
        case DomainKeyRow():
            return next((one for one in await store.domain_keys() if one.domain_key_id == row.domain_key_id), None)
        case SettingsRow():
            return await store.settings()
    return await by_key[type(row)](*kind_of(row).key_of(row))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, SqlStore]]:
    """One open store for many examples."""
    with asyncio.Runner() as runner:
        store = runner.run(SqlStore.open(tmp_path_factory.mktemp("held") / "store.sqlite"))
        unseal(store)
        runner.run(store.check_state())
        yield runner, store
        runner.run(store.close())


@given(ROWS)
def test_every_row_reads_as_it_was_written(held: tuple[asyncio.Runner, SqlStore], row: Row) -> None:
    """Whatever a row's members hold comes back, until it is deleted."""
    runner, store = held
    runner.run(store.commit("insert", [Insert(row)]))

    assert runner.run(stored(store, row)) == row

    runner.run(store.commit("delete", [Delete(row)]))
    runner.run(store.forget(["insert", "delete"]))

    assert runner.run(stored(store, row)) is None


async def test_rows_are_there_after_reopening(path: Path) -> None:
    """What was committed is in the file."""
    async with opened(path) as store:
        await store.commit("m", [Insert(row) for row in EVERY_KIND])

    async with opened(path) as store:
        assert [await stored(store, row) for row in EVERY_KIND] == EVERY_KIND


async def test_keys_are_listed_in_order_and_in_pages(store: SqlStore) -> None:
    """A page begins behind the last id of the one before; a uid's keys are counted."""
    await store.commit("m", [Insert(key_row(one, creator_uid=index % 2)) for index, one in enumerate(KEY_IDS[::-1])])

    assert [row.key_id for row in await store.keys(after=None, limit=3)] == KEY_IDS[:3]
    assert [row.key_id for row in await store.keys(after=KEY_IDS[2], limit=3)] == KEY_IDS[3:]
    assert [await store.count_keys(uid) for uid in (0, 1, 2)] == [2, 2, 0]


async def test_keys_are_found_by_what_falls_due(store: SqlStore) -> None:
    """What fell due first comes first, and of two at once the one with the lower id; most keys never fall due."""
    rows = [key_row(one, due_ms=due) for one, due in zip(KEY_IDS, (30, 0, 20, 20), strict=True)]
    assert await store.next_due_ms() is None
    await store.commit("m", [Insert(row) for row in rows])
    first, never, second, third = rows

    assert await store.next_due_ms() == 20
    assert await store.keys_due(19, limit=9) == []
    assert await store.keys_due(20, limit=1) == [second]
    assert await store.keys_due(29, limit=9) == [second, third]
    assert await store.keys_due(30, limit=9) == [second, third, first]
    assert await store.keys_due(2**62, limit=9) == [second, third, first]

    await store.commit("n", [Replace(key_row(second.key_id, version=2)), Delete(third), Replace(key_row(version=2))])
    assert await store.next_due_ms() is None
    assert await store.keys_due(2**62, limit=9) == []
    assert await store.key(never.key_id) == never


async def test_versions_of_material_are_listed_in_order_and_in_pages(store: SqlStore) -> None:
    """Those of one key, by their numbers and not by how these are written."""
    rows = [material_row(number=number) for number in (1, 2, 9, 10, 11)]
    await store.commit("m", [Insert(row) for row in (*rows[::-1], material_row(KEY_IDS[1], 3))])

    assert await store.materials(KEY_IDS[0], after=0, limit=2) == rows[:2]
    assert await store.materials(KEY_IDS[0], after=2, limit=2) == rows[2:4]
    assert await store.materials(KEY_IDS[0], after=10, limit=9) == rows[4:]
    assert await store.materials(KEY_IDS[2], after=0, limit=9) == []


async def test_tombstones_are_listed_in_order_and_in_pages(store: SqlStore) -> None:
    """A page begins behind the last id of the one before."""
    rows = [tombstone_row(one) for one in KEY_IDS]
    await store.commit("m", [Insert(row) for row in rows[::-1]])

    assert await store.tombstones(after=None, limit=3) == rows[:3]
    assert await store.tombstones(after=KEY_IDS[2], limit=3) == rows[3:]


async def test_aliases_are_listed_in_order_and_in_pages(store: SqlStore) -> None:
    """All aliases, or those of one key."""
    rows = [alias_row(f"alias/{name}", KEY_IDS[index % 2]) for index, name in enumerate("dcba")]
    await store.commit("m", [Insert(row) for row in rows])

    assert await store.aliases(key_id=None, after=None, limit=3) == rows[:0:-1]
    assert await store.aliases(key_id=None, after="alias/c", limit=3) == [rows[0]]
    assert await store.aliases(key_id=KEY_IDS[0], after=None, limit=9) == [rows[2], rows[0]]
    assert await store.aliases(key_id=KEY_IDS[0], after="alias/b", limit=9) == [rows[0]]


async def test_grants_are_listed_in_order_and_in_pages(store: SqlStore) -> None:
    """Those of a key, or of a grantee of it, or those that somebody may retire on any key."""
    rows = [
        grant_row("d", grantee="uid:1", retiring="uid:9"),
        grant_row("c", grantee="uid:2"),
        grant_row("b", grantee="uid:1", retiring="uid:9"),
        grant_row("a", KEY_IDS[1], grantee="uid:1", retiring="uid:9"),
    ]
    await store.commit("m", [Insert(row) for row in rows])
    d, c, b, a = rows

    assert await store.grants(KEY_IDS[0], grantee=None, after=None, limit=2) == [b, c]
    assert await store.grants(KEY_IDS[0], grantee=None, after="c", limit=2) == [d]
    assert await store.grants(KEY_IDS[0], grantee="uid:1", after=None, limit=9) == [b, d]
    assert await store.grants(KEY_IDS[0], grantee="uid:1", after="b", limit=9) == [d]
    assert await store.grants(KEY_IDS[2], grantee=None, after=None, limit=9) == []
    assert await store.retirable_grants("uid:9", after=None, limit=2) == [a, b]
    assert await store.retirable_grants("uid:9", after="b", limit=2) == [d]
    assert [await store.count_grants(one) for one in KEY_IDS[:3]] == [3, 1, 0]


async def test_grants_are_found_by_their_grantees_and_names(store: SqlStore) -> None:
    """By all the ways to name a caller at once; a name is a key's own."""
    one, two = grant_row("a", grantee="uid:1", name="n"), grant_row("b", grantee="gid:2")
    other = grant_row("c", KEY_IDS[1], grantee="uid:1", name="n")
    await store.commit("m", [Insert(row) for row in (one, two, other, grant_row("d", grantee="uid:3"))])

    found = await store.grants_for(KEY_IDS[0], {"uid:1", "gid:2", "gid:7"})
    assert sorted(row.grant_id for row in found) == ["a", "b"]
    assert await store.grants_for(KEY_IDS[0], frozenset()) == []
    assert await store.grants_named(KEY_IDS[0], "n") == [one]


async def test_default_keys_and_credentials_are_listed_in_order_and_in_pages(store: SqlStore) -> None:
    """A page of credentials may begin in the midst of a unit's."""
    owners = [default_key_row(owner) for owner in ("uid:1/user:a", "uid:2/user:b", "unit:a.service")]
    secrets = [credential_row(unit, name) for unit, name in (("a", "x"), ("a", "y"), ("b", "a"), ("c", "x"))]
    await store.commit("m", [Insert(row) for row in (*owners[::-1], *secrets[::-1])])

    assert await store.default_keys(after=None, limit=2) == owners[:2]
    assert await store.default_keys(after=owners[1].owner, limit=2) == owners[2:]
    assert await store.credentials(unit=None, after=None, limit=2) == secrets[:2]
    assert await store.credentials(unit=None, after=("a", "x"), limit=9) == secrets[1:]
    assert await store.credentials(unit="a", after=None, limit=9) == secrets[:2]
    assert await store.credentials(unit="a", after=("a", "x"), limit=9) == secrets[1:2]


GRANTS = "grants USING INDEX ix_grants_"


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (GRANTS_FOR, f"{GRANTS}key_id_grantee_grant_id (key_id=? AND grantee=?)"),
        (GRANTS_OF_KEY_AFTER, f"{GRANTS}key_id_grant_id (key_id=? AND grant_id>?)"),
        (GRANTS_OF_GRANTEE_AFTER, f"{GRANTS}key_id_grantee_grant_id (key_id=? AND grantee=? AND grant_id>?)"),
        (GRANTS_NAMED, f"{GRANTS}key_id_name (key_id=? AND name=?)"),
        (RETIRABLE_GRANTS_AFTER, f"{GRANTS}retiring_grant_id (retiring=? AND grant_id>?)"),
        (COUNT_GRANTS, "grants USING COVERING INDEX ix_grants_key_id_"),
    ],
)
async def test_one_of_thousands_of_grants_is_found_by_an_index(
    path: Path, statement: sa.Select[Any], index: str
) -> None:
    """Whoever asks for somebody's grants on a key goes through no other's."""
    async with opened(path) as store:
        await store.commit(
            "m", [Insert(grant_row(f"{one}", grantee=f"uid:{one}", name=f"{one}")) for one in range(3000)]
        )
    values = dict.fromkeys(("key_id", "grantee", "name", "retiring", "after"), "1")
    asked = statement.params(**values, grantees=["1", "2"], limit=9)
    sql = asked.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    with edited(path) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()

    assert f"SEARCH {index}" in plan[0][3]
    assert len(plan) == 1  # no sorting of what was found


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (KEYS_DUE, "keys USING INDEX ix_keys_due_ms (due_ms>? AND due_ms<?)"),
        (NEXT_DUE, "keys USING COVERING INDEX ix_keys_due_ms (due_ms>?)"),
        (MATERIALS_AFTER, "material USING INDEX sqlite_autoindex_material_1 (key_id=? AND number>?)"),
    ],
)
async def test_what_falls_due_is_found_by_an_index(path: Path, statement: sa.Select[Any], index: str) -> None:
    """Whoever asks each minute does not go through all keys."""
    async with opened(path):
        pass
    asked = statement.params(key_id="1", after=1, until_ms=7, limit=9)
    sql = asked.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    with edited(path) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()

    assert f"SEARCH {index}" in plan[0][3]


async def test_a_long_list_lets_others_run(store: SqlStore) -> None:
    """While hundreds of rows are verified the event loop does other work."""
    await store.commit("m", [Insert(alias_row(f"alias/{number:03}")) for number in range(300)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    rows = await store.aliases(key_id=None, after=None, limit=300)
    counting.cancel()

    assert len(rows) == 300
    assert turns >= 4


@pytest.mark.parametrize("row", EVERY_KIND, ids=lambda row: type(row).__name__)
async def test_an_inserted_row_must_be_new(store: SqlStore, row: Row) -> None:
    """Inserting over a row is refused with its table and primary key."""
    await store.commit("first", [Insert(row)])

    with pytest.raises(RowExistsError) as refused:
        await store.commit("second", [Insert(row)])

    assert refused.value.table
    assert refused.value.primary_key in str(refused.value)
    assert await stored(store, row) == row


async def test_a_replaced_row_has_the_next_version(store: SqlStore) -> None:
    """Replacing works once for each version, deleting only with the present one."""
    await store.commit("1", [Insert(alias_row(key_id=KEY_IDS[0]))])
    await store.commit("2", [Replace(alias_row(key_id=KEY_IDS[1], version=2))])

    assert await store.alias("alias/a") == alias_row(key_id=KEY_IDS[1], version=2)
    assert await store.aliases(key_id=KEY_IDS[0], after=None, limit=9) == []

    for stale in (Replace(alias_row(version=2)), Replace(alias_row(version=4)), Delete(alias_row(version=1))):
        with pytest.raises(RowChangedError, match="alias/a") as refused:
            await store.commit("3", [stale])
        assert (refused.value.table, refused.value.primary_key) == ("aliases", "alias/a")
    await store.commit("3", [Delete(alias_row(version=2))])

    assert await store.alias("alias/a") is None


async def test_a_row_that_is_expected_stays_as_it_is(store: SqlStore) -> None:
    """And keeps the others from being changed if it is not as expected."""
    await store.commit("1", [Insert(alias_row(key_id=KEY_IDS[0]))])

    await store.commit("2", [Expect(alias_row(key_id=KEY_IDS[0])), Insert(key_row())])
    for stale in (Expect(alias_row(version=2)), Expect(alias_row("alias/b"))):
        with pytest.raises(RowChangedError):
            await store.commit("3", [Insert(key_row(KEY_IDS[1])), stale])

    assert await store.alias("alias/a") == alias_row(key_id=KEY_IDS[0])
    assert await store.key(KEY_IDS[0]) == key_row()
    assert await store.key(KEY_IDS[1]) is None
    assert (await store.check_state()).findings == ()


async def test_what_is_gone_can_be_neither_replaced_nor_deleted(store: SqlStore) -> None:
    """A row that does not exist counts as changed."""
    for change in (Replace(material_row(version=2)), Delete(material_row()), Expect(material_row())):
        with pytest.raises(RowChangedError) as refused:
            await store.commit("m", [change])
        assert (refused.value.table, refused.value.primary_key) == ("material", f"{KEY_IDS[0]}/1")


async def test_a_commit_is_whole_or_nothing(store: SqlStore) -> None:
    """A conflict of the last change undoes all others, and the mutation did not happen."""
    await store.commit("first", [Insert(key_row()), Insert(alias_row())])

    with pytest.raises(RowExistsError):
        await store.commit(
            "second",
            [
                Insert(key_row(KEY_IDS[1])),
                Replace(key_row(description="new", version=2)),
                Delete(alias_row()),
                Insert(key_row()),
            ],
        )

    assert await store.keys(after=None, limit=9) == [key_row()]
    assert await store.alias("alias/a") == alias_row()
    assert await store.committed(["first", "second"]) == {"first"}


async def test_a_row_may_change_twice_in_a_commit(store: SqlStore) -> None:
    """Changes see what those before them did."""
    await store.commit("m", [Insert(alias_row()), Replace(alias_row(version=2)), Delete(alias_row(version=2))])

    assert await store.alias("alias/a") is None


async def test_a_mutation_happens_once(store: SqlStore) -> None:
    """A mutation id that was used is refused before anything else is looked at."""
    await store.commit("m", [Insert(alias_row())])

    with pytest.raises(RowExistsError) as refused:
        await store.commit("m", [Insert(alias_row())])

    assert (refused.value.table, refused.value.primary_key) == ("mutations", "m")


async def test_mutations_are_remembered_until_forgotten(path: Path) -> None:
    """Which commits happened survives reopening; those that are forgotten can be forgotten again."""
    async with opened(path) as store:
        await store.commit("a", [])
        await store.commit("b", [])
    async with opened(path) as store:
        assert await store.committed(["a", "b", "c"]) == {"a", "b"}

        await store.forget(["a", "c"])
        await store.forget(["a", "c"])

        assert await store.committed(["a", "b", "c"]) == {"b"}
        assert await store.committed([]) == set()


async def test_the_oldest_mutations_are_forgotten(path: Path) -> None:
    """Ten thousand later commits make a mutation unknown, and no fewer."""
    async with opened(path) as store:
        await store.commit("first", [])
        await store.commit("second", [])
    with edited(path) as connection:
        connection.execute("INSERT INTO mutations VALUES (?, 'filler', 1, x'', x'')", [REMEMBERED_MUTATIONS])

    async with opened(path) as store:
        await store.accept_state(0)
        await store.commit("new", [])

        assert await store.committed(["first", "second", "new"]) == {"second", "new"}


async def test_a_sealed_store_shows_early_rows_only(path: Path) -> None:
    """What unsealing needs can be read, everything else needs the MAC key; nothing can be written."""
    async with opened(path) as store:
        await store.commit("m", [Insert(row) for row in EVERY_KIND])

    async with opened(path, mac_key=None) as store:
        assert await store.settings() == settings_row()
        assert await store.secret("row-mac") == secret_row()
        assert await store.domain_keys() == [domain_key_row()]
        for attempt in (
            store.key(KEY_IDS[0]),
            store.keys(after=None, limit=1),
            store.keys_due(2**62, limit=1),
            store.next_due_ms(),
            store.count_keys(1000),
            store.material(KEY_IDS[0], 1),
            store.materials(KEY_IDS[0], after=0, limit=1),
            store.usage(KEY_IDS[0]),
            store.tombstone(KEY_IDS[0]),
            store.tombstones(after=None, limit=1),
            store.housekeeping(),
            store.alias("alias/a"),
            store.aliases(key_id=None, after=None, limit=1),
            store.commit("n", []),
            store.committed(["m"]),
            store.forget(["m"]),
            store.verify_early_rows(),
        ):
            with pytest.raises(SealedError):
                await attempt

        unseal(store)
        await store.verify_early_rows()

        assert await store.key(KEY_IDS[0]) == key_row()

        store.seal()
        with pytest.raises(SealedError):
            await store.key(KEY_IDS[0])


@pytest.mark.parametrize("table", ["settings", "secrets", "domain_keys"])
async def test_early_rows_are_verified_later(path: Path, table: str) -> None:
    """A record that was edited before it was read early is reported by every attempt to unseal."""
    async with opened(path) as store:
        await store.commit("m", [Insert(row) for row in EVERY_KIND])
    with edited(path) as connection:
        connection.execute(f"UPDATE {table} SET mac = zeroblob(32)")  # noqa: S608 - a name from above

    async with opened(path, mac_key=None) as store:
        await store.settings()
        await store.secret("row-mac")
        await store.domain_keys()
        for _ in range(2):
            unseal(store)
            with pytest.raises(IntegrityError, match=table):
                await store.verify_early_rows()
            store.seal()


async def test_another_mac_key_opens_nothing(path: Path) -> None:
    """Rows that were sealed with another key do not authenticate."""
    async with opened(path) as store:
        await store.commit("m", [Insert(row) for row in EVERY_KIND])

    async with opened(path, mac_key=bytes(32)) as store:
        for row in EVERY_KIND:
            with pytest.raises(IntegrityError):
                await stored(store, row)


async def test_sealing_wins_over_a_read_under_way(store: SqlStore) -> None:
    """A read that is on its way when the store is sealed gets no row: its key may be wiped already."""
    await store.commit("m", [Insert(key_row())])
    with blocked(store):
        reading = asyncio.create_task(store.key(KEY_IDS[0]))
        await asyncio.sleep(0)
        store.seal()

    with pytest.raises(SealedError):
        await reading


class blocked:  # noqa: N801 - reads as a statement
    """While inside, the store's thread does nothing."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._go_on = threading.Event()

    def __enter__(self) -> None:
        self._store._executor.submit(self._go_on.wait, 10)

    def __exit__(self, *_: object) -> None:
        self._go_on.set()


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_commit_is_done_or_not(store: SqlStore, turns: int) -> None:
    """Whenever its task is cancelled, rows and mutation agree, and the store goes on."""
    committing = asyncio.create_task(store.commit("m", [Insert(key_row()), Insert(alias_row())]))
    for _ in range(turns):
        await asyncio.sleep(0.0002)
    committing.cancel()
    await asyncio.wait([committing])
    happened = await store.committed(["m"]) == {"m"}

    assert (await store.key(KEY_IDS[0]) is not None) is happened
    assert (await store.alias("alias/a") is not None) is happened

    await store.commit("next", [Insert(key_row(KEY_IDS[1]))])


async def test_a_commit_cancelled_before_its_turn_does_nothing(store: SqlStore) -> None:
    """Cancelling a commit that waits for the store's thread takes it back."""
    with blocked(store):
        committing = asyncio.create_task(store.commit("m", [Insert(key_row())]))
        await asyncio.sleep(0)
        committing.cancel()
        await asyncio.wait([committing])

    assert await store.committed(["m"]) == set()
    assert await store.key(KEY_IDS[0]) is None


async def test_closing_finishes_what_was_begun(path: Path) -> None:
    """A commit that was under way is there afterwards, and later calls say that the store is closed."""
    async with opened(path) as store:
        committing = asyncio.create_task(store.commit("m", [Insert(key_row())]))
        await asyncio.sleep(0)
        await store.close()
        await committing
        await store.close()
        with pytest.raises(StoreUnavailableError, match=r"store\.sqlite is closed"):
            await store.settings()

    async with opened(path) as store:
        assert await store.committed(["m"]) == {"m"}


async def test_a_cancelled_opening_lets_go_of_the_file(path: Path) -> None:
    """Whoever opens next is not told that the store is in use."""
    for turns in range(4):
        opening = asyncio.create_task(SqlStore.open(path))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            await opening.result().close()
        await until_free(path)


async def until_free(path: Path) -> None:
    """Open and close the store; the thread of a cancelled opening may take a moment to let go."""
    for _ in range(100):
        try:
            async with opened(path):
                return
        except StoreUnavailableError:
            await asyncio.sleep(0.02)
    pytest.fail("the store stays in use")


def test_the_interface_needs_no_sqlalchemy() -> None:
    """Whoever only handles rows does not pay for the database library."""
    program = "import sys, kmsd.store.base; sys.exit('sqlalchemy' in sys.modules)"

    subprocess.run([sys.executable, "-c", program], check=True)


def conforms(store: SqlStore) -> Store:
    """Checked by mypy: the class has the interface."""
    return store


async def test_a_ping_is_answered_sealed_or_not(store: SqlStore) -> None:
    """But not by a store that is closed."""
    await store.ping()
    store.seal()
    await store.ping()
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await store.ping()
