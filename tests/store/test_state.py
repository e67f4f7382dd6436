"""The state row of a store that nobody tampers with: `kmsd.store.state`, `.multiset`, `.places` and `.writing`."""

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import IntegrityError, SealedError
from kmsd.store.base import Change, Delete, Insert, Replace, RowChangedError, RowExistsError, StateReport
from kmsd.store.kinds import KINDS, Kind
from kmsd.store.places import PLACES
from kmsd.store.rows import StateRow
from kmsd.store.sql import SqlStore
from tests.store.rows import KEY_IDS, SET_KEY, alias_row, edited, key_row, material_row, opened, unseal

ONE, TWO = KEY_IDS[:2]
MODULUS = 2**256


def numbered(count: int) -> bytes:
    """Bytes that are anything but random."""
    return bytes(range(count))


def prf(message: bytes, purpose: bytes, table: bytes) -> int:
    digest = hashlib.blake2b(message, digest_size=32, key=SET_KEY, salt=purpose, person=table).digest()
    return int.from_bytes(digest, "big")


async def test_the_state_row_is_what_the_format_says(path: Path) -> None:
    """Counts, and the masked sums of keyed hashes of places, computed here from what is in the file."""
    store = await SqlStore.open(path, random=numbered)
    unseal(store)
    await store.check_state()
    await store.commit("m", [Insert(key_row(ONE)), Insert(key_row(TWO, due_ms=5)), Insert(material_row(number=7))])
    await store.close()

    with edited(path) as connection:
        [[content]] = connection.execute("SELECT content FROM state WHERE name = 'state'")
        keys = connection.execute("SELECT key_id, creator_uid, due_ms, mac FROM keys").fetchall()
        materials = connection.execute("SELECT key_id, number, mac FROM material").fetchall()
        mutations = connection.execute("SELECT sequence, mutation_id, mac FROM mutations").fetchall()
    state = msgspec.msgpack.decode(content, type=StateRow)

    assert (state.sequence, state.version, state.counts) == (1, 1, {"keys": 2, "material": 1, "mutations": 1})
    assert (state.store_id, state.nonce) == (str(uuid.UUID(bytes=numbered(16), version=4)), numbered(16))
    # When nothing falls due, that is no part of the place.
    assert [row[2] for row in keys] == [0, 5]
    places_of_keys = [(key_id, uid, *((f"due_ms={due}",) if due else ()), mac) for key_id, uid, due, mac in keys]
    for table, rows in (("keys", places_of_keys), ("material", materials), ("mutations", mutations)):
        places = [
            b"\x01".join([*(str(one).encode() for one in row[:-1]), row[-1].hex().upper().encode()]) for row in rows
        ]
        total = prf(state.nonce, b"mask", table.encode()) + sum(prf(one, b"row", table.encode()) for one in places)
        assert state.multisets[table] == (total % MODULUS).to_bytes(32, "big")


async def test_every_commit_counts(path: Path) -> None:
    """Whatever it does, forgetting included; the number survives, and so does the store's id."""
    async with opened(path) as store:
        assert store.sequence == 0
        await store.commit("a", [Insert(alias_row())])
        await store.commit("b", [Replace(alias_row(version=2)), Insert(key_row())])
        await store.commit("c", [Delete(alias_row(version=2))])
        await store.forget(["a"])
        assert store.sequence == 4
        report = await store.check_state()

    async with opened(path) as store:
        assert await store.check_state() == report
    assert report.findings == ()
    assert report.store_id is not None
    assert uuid.UUID(report.store_id).version == 4


async def test_a_new_store_has_nothing_to_check(store: SqlStore) -> None:
    """No id yet, and no commit: who takes that for a loss has to know of one."""
    assert await store.check_state() == StateReport((), None, 0, adopted=False)


@pytest.mark.parametrize(
    ("mutation", "changes", "error"),
    [
        ("m", [Insert(alias_row())], RowExistsError),
        ("first", [], RowExistsError),
        ("m", [Insert(alias_row("alias/b")), Replace(key_row(version=3))], RowChangedError),
        ("m", [Replace(key_row(version=2)), Delete(alias_row(version=7))], RowChangedError),
        ("m", [Replace(material_row(version=2))], RowChangedError),
    ],
)
async def test_a_commit_that_is_refused_does_not_count(
    store: SqlStore, mutation: str, changes: Sequence[Change], error: type[Exception]
) -> None:
    """The state row stays as it was, and the next commit goes on from there."""
    await store.commit("first", [Insert(key_row()), Insert(alias_row())])

    with pytest.raises(error):
        await store.commit(mutation, changes)

    assert store.sequence == 1
    assert (await store.check_state()).findings == ()
    await store.commit("next", [Replace(key_row(version=2))])
    assert (await store.check_state()).findings == ()


async def test_commits_at_once_are_one_after_the_other(store: SqlStore) -> None:
    """Whoever cancels some of them in between: rows and state row agree, and none is left out."""
    commits = [
        asyncio.create_task(store.commit(f"m{number}", [Insert(alias_row(f"alias/{number}"))])) for number in range(30)
    ]
    for number, commit in enumerate(commits):
        if number % 3 == 0:
            await asyncio.sleep(0.0003)
            commit.cancel()
    await asyncio.wait(commits)
    happened = await store.committed([f"m{number}" for number in range(30)])
    await store.commit("last", [])

    assert len(happened) >= 20
    assert store.sequence == len(happened) + 1
    assert (await store.check_state()).findings == ()


async def test_nothing_is_written_before_the_check(path: Path) -> None:
    """Each time the store is unsealed, the rows are checked first."""
    async with opened(path, mac_key=None) as store:
        for _ in range(2):
            unseal(store)
            for attempt in (store.commit("m", []), store.forget(["m"])):
                with pytest.raises(IntegrityError, match="were not found"):
                    await attempt
            await store.check_state()
            await store.commit(f"m{store.sequence}", [])
            store.seal()
            with pytest.raises(SealedError):
                await store.commit("m", [])


async def test_an_accepted_store_is_beyond_what_was_known(store: SqlStore) -> None:
    """Its sequence is above the one named, and above its own; its id stays."""
    await store.commit("m", [Insert(key_row())])
    before = await store.check_state()

    for named, sequence in ((0, 2), (1, 3), (40, 41), (7, 42)):
        await store.accept_state(named)
        assert store.sequence == sequence
    await store.commit("n", [])

    assert await store.check_state() == StateReport((), before.store_id, 43, adopted=False)


async def test_sealing_ends_a_check(store: SqlStore) -> None:
    """Nothing is taken for checked when the keys went meanwhile."""
    await store.commit("m", [Insert(alias_row(f"alias/{number}")) for number in range(3000)])
    checking = asyncio.create_task(store.check_state())
    await asyncio.sleep(0)
    store.seal()

    with pytest.raises(SealedError):
        await checking


async def test_a_check_that_is_given_up_is_no_obstacle(store: SqlStore) -> None:
    """Whenever its task is cancelled, the next one works."""
    await store.commit("m", [Insert(alias_row(f"alias/{number}")) for number in range(3000)])
    for turns in range(5):
        checking = asyncio.create_task(store.check_state())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        checking.cancel()
        await asyncio.wait([checking])

    assert (await store.check_state()).findings == ()


async def test_a_check_lets_others_run(store: SqlStore) -> None:
    """While thousands of rows are hashed the event loop does other work."""
    await store.commit("m", [Insert(alias_row(f"alias/{number:04}")) for number in range(5000)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await store.check_state()
    counting.cancel()

    assert turns >= 5


columns = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.text("a1\x00\x01", max_size=3), st.binary(max_size=2), st.none(), st.floats()
)


@pytest.mark.parametrize(("table", "count"), [("material", 3), ("keys", 4)])
@given(st.data())
def test_no_two_rows_have_one_place(table: str, count: int, data: st.DataObject) -> None:
    """Not even such as only somebody else writes, with the separators in them."""
    of = PLACES[table].of
    one, other = (data.draw(st.lists(columns, min_size=count, max_size=count)) for _ in range(2))

    assert (of(one) == of(other)) is (msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)
def test_table_names_fit_where_they_are_hashed(kind: Kind[Any]) -> None:
    """A personalization of BLAKE2b has 16 bytes."""
    assert len(kind.table.encode()) <= hashlib.blake2b.PERSON_SIZE
