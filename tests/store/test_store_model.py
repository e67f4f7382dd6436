"""The store against a model of it: dictionaries of rows."""

import asyncio
import itertools
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kmsd.api.errors import SealedError
from kmsd.store.base import Change, Delete, Expect, Insert, Replace, RowChangedError, RowExistsError
from kmsd.store.kinds import kind_of, written
from kmsd.store.rows import AliasRow, KeyRow, MaterialRow, Row, TombstoneRow
from kmsd.store.sql import SqlStore
from tests.store.rows import KEY_IDS, alias_row, key_row, material_row, tombstone_row, unseal, usage_row

NAMES = ["alias/a", "alias/b", "alias/\N{GREEK SMALL LETTER BETA}"]

# Few places, so that changes meet; versions are chosen beside the stored ones, so that some conflict.
places = st.one_of(
    st.builds(
        key_row,
        st.sampled_from(KEY_IDS),
        creator_uid=st.integers(0, 2),
        description=st.text("xyz", max_size=3),
        due_ms=st.integers(0, 3),
    ),
    st.builds(material_row, st.sampled_from(KEY_IDS), st.integers(1, 2)),
    st.builds(alias_row, st.sampled_from(NAMES), st.sampled_from(KEY_IDS)),
    st.builds(usage_row, st.sampled_from(KEY_IDS)),
    st.builds(tombstone_row, st.sampled_from(KEY_IDS)),
)
changes = st.lists(
    st.tuples(st.sampled_from([Insert, Replace, Delete, Expect]), places, st.sampled_from([0, 0, 0, 1])), max_size=4
)

Place = tuple[str, str]


def place_of(row: Row) -> Place:
    kind: Any = kind_of(row)
    return kind.table, written(kind.key_of(row))


class StoreMachine(RuleBasedStateMachine):
    """Commits that fit and that do not, seals, and reopens; after each step the store is what the model is."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="kmsd-")
        self.rows: dict[Place, Row] = {}
        self.mutations: set[str] = set()
        self.ids = map(str, itertools.count())
        self.open()

    def open(self) -> None:
        self.store = self.runner.run(SqlStore.open(Path(self.folder.name) / "store.sqlite"))
        self.unseal()

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()
        self.folder.cleanup()

    def unseal(self) -> None:
        unseal(self.store)
        assert self.runner.run(self.store.check_state()).findings == ()
        self.sealed = False

    def made(self, action: type[Change], row: Row, ahead: int, rows: dict[Place, Row]) -> Change:
        """A change to the model's present row of this place, or to one that is `ahead` of it."""
        present = rows.get(place_of(row))
        version = (present.version if present else 0) + ahead + (0 if action in {Delete, Expect} else 1)
        return action(msgspec.structs.replace(row, version=1 if action is Insert else max(version, 1)))

    def expected(self, change: Change, rows: dict[Place, Row]) -> type[Exception] | None:
        """Do a change to the model's rows, or tell how it is refused."""
        place, row = place_of(change.row), change.row
        present = rows.get(place)
        match change:
            case Insert():
                if present is not None:
                    return RowExistsError
                rows[place] = row
            case Replace():
                if present is None or present.version != row.version - 1:
                    return RowChangedError
                rows[place] = row
            case Delete():
                if present is None or present.version != row.version:
                    return RowChangedError
                del rows[place]
            case Expect():
                if present is None or present.version != row.version:
                    return RowChangedError
        return None

    @precondition(lambda self: not self.sealed)
    @rule(wanted=changes, repeat=st.sampled_from([False, False, False, True]))
    def commit(self, wanted: list[tuple[type[Change], Row, int]], repeat: bool) -> None:
        """Commit; either all of it happens, or the first conflict is reported and none of it does."""
        rows, made = dict(self.rows), []
        mutation = max(self.mutations) if repeat and self.mutations else next(self.ids)
        refused: tuple[type[Exception], Place] | None = None
        if mutation in self.mutations:
            refused = RowExistsError, ("mutations", mutation)
        for action, row, ahead in wanted:
            change = self.made(action, row, ahead, rows)
            made.append(change)
            if refused is None and (error := self.expected(change, rows)):
                refused = error, place_of(row)
        if refused is None:
            self.runner.run(self.store.commit(mutation, made))
            self.rows = rows
            self.mutations.add(mutation)
        else:
            with pytest.raises(refused[0]) as conflict:
                self.runner.run(self.store.commit(mutation, made))
            assert isinstance(conflict.value, RowExistsError | RowChangedError)
            assert (conflict.value.table, conflict.value.primary_key) == refused[1]

    @precondition(lambda self: not self.sealed)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Forget some mutations, and one that never was."""
        some = data.draw(st.sets(st.sampled_from(sorted(self.mutations)))) if self.mutations else set()
        self.runner.run(self.store.forget([*some, "never"]))
        self.mutations -= some

    @rule()
    def purge(self) -> None:
        """Leave nothing in the log; the rows stay, also of a store that is sealed."""
        self.runner.run(self.store.purge())

    @rule()
    def reopen(self) -> None:
        """Close the store and open it again."""
        self.runner.run(self.store.close())
        self.open()

    @precondition(lambda self: not self.sealed)
    @rule()
    def seal(self) -> None:
        """Take the key away."""
        self.store.seal()
        self.sealed = True
        with pytest.raises(SealedError):
            self.runner.run(self.store.commit("sealed", []))

    @precondition(lambda self: self.sealed)
    @rule()
    def unseal_again(self) -> None:
        """Give the key back."""
        self.unseal()

    @invariant()
    def is_what_the_model_is(self) -> None:
        """Single rows, pages, counts and mutations agree."""
        if not self.sealed:
            self.runner.run(self.compare())

    async def compare(self) -> None:
        keys = sorted((row for row in self.rows.values() if isinstance(row, KeyRow)), key=lambda row: row.key_id)
        aliases = sorted((row for row in self.rows.values() if isinstance(row, AliasRow)), key=lambda row: row.name)
        assert await self.store.keys(after=None, limit=2) == keys[:2]
        assert await self.store.keys(after=KEY_IDS[1], limit=9) == [row for row in keys if row.key_id > KEY_IDS[1]]
        assert await self.store.aliases(key_id=None, after=None, limit=9) == aliases
        assert await self.store.aliases(key_id=KEY_IDS[0], after="alias/a", limit=9) == [
            row for row in aliases if row.key_id == KEY_IDS[0] and row.name > "alias/a"
        ]
        assert [await self.store.count_keys(uid) for uid in range(3)] == [
            sum(row.creator_uid == uid for row in keys) for uid in range(3)
        ]
        due = sorted((row for row in keys if row.due_ms), key=lambda row: (row.due_ms, row.key_id))
        assert await self.store.keys_due(2, limit=3) == [row for row in due if row.due_ms <= 2][:3]
        assert await self.store.next_due_ms() == (due[0].due_ms if due else None)
        materials = [row for row in self.rows.values() if isinstance(row, MaterialRow) and row.key_id == KEY_IDS[0]]
        assert await self.store.materials(KEY_IDS[0], after=0, limit=9) == sorted(materials, key=lambda row: row.number)
        tombstones = [row for row in self.rows.values() if isinstance(row, TombstoneRow)]
        assert await self.store.tombstones(after=None, limit=9) == sorted(tombstones, key=lambda row: row.key_id)
        assert await self.store.usage(KEY_IDS[1]) == self.rows.get(("usage", KEY_IDS[1]))
        assert await self.store.tombstone(KEY_IDS[1]) == self.rows.get(("tombstones", KEY_IDS[1]))
        for key_id, number in itertools.product(KEY_IDS, (1, 2)):
            assert await self.store.material(key_id, number) == self.rows.get(("material", f"{key_id}/{number}"))
        assert await self.store.key(KEY_IDS[0]) == self.rows.get(("keys", KEY_IDS[0]))
        assert await self.store.alias(NAMES[2]) == self.rows.get(("aliases", NAMES[2]))
        assert await self.store.committed([*self.mutations, "never"]) == self.mutations


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=10, stateful_step_count=15)
