"""The draft of a transaction: its steps, and what rows there are after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kmsd.store.base import Change, Delete, Expect, Insert, Replace
from kmsd.store.database import Query, Step
from kmsd.store.kinds import KeyValues, Kind, kind_of, written
from kmsd.store.places import PLACES
from kmsd.store.rows import Row
from kmsd.store.schema import STATEMENTS
from kmsd.store.sealing import Record, Sealer
from kmsd.store.state import Tally


class Draft:
    """Turns changes into steps, and brings `tally` up to date with each.

    Where the database will refuse a step the tally may be wrong; it then goes nowhere.
    """

    def __init__(self, sealer: Sealer, tally: Tally) -> None:
        self.tally = tally
        self.steps: list[Step] = []
        self._sealer = sealer
        self._places: dict[tuple[str, KeyValues], bytes] = {}

    @staticmethod
    def query(row: Row) -> Query:
        """Return the query for the columns of a row's place."""
        kind: Kind[Any] = kind_of(row)
        return PLACES[kind.table].one, STATEMENTS[kind.table].this(*kind.key_of(row))

    def tell(self, row: Row, found: Sequence[tuple[Any, ...]]) -> None:
        """Take note of what `query` found; needed before a row is replaced or deleted."""
        kind: Kind[Any] = kind_of(row)
        for columns in found:
            self._places[kind.table, kind.key_of(row)] = PLACES[kind.table].of(columns)

    def change(self, change: Change, *, number: int | None = None) -> None:
        """Make, replace, delete or expect a row; a new one of a numbered kind has a number."""
        record = self._record(change.row, number)
        self.steps.append(_step(change, record))
        if isinstance(change, Expect):
            return
        table, key = record.kind.table, record.key
        before = self._places.pop((table, key), None)
        if before is not None:
            self.tally.remove(table, [before])
        if not isinstance(change, Delete):
            columns = (*record.key, *record.lookup, record.mac)
            place = PLACES[table].of(columns if number is None else (number, *columns))
            self.tally.add(table, [place])
            self._places[table, key] = place

    def forget(self, kind: Kind[Any], columns: tuple[Any, ...]) -> None:
        """Remove a row of a numbered kind, by the columns of its place."""
        statements, key = STATEMENTS[kind.table], columns[1 : 1 + len(kind.key)]
        self.steps.append(Step(statements.forget, statements.this(*key), kind.table, written(key)))
        self.tally.remove(kind.table, [PLACES[kind.table].of(columns)])

    def conclude(self, change: Change) -> None:
        """Write the row that tells the tally, and is not counted itself."""
        self.steps.append(_step(change, self._record(change.row)))

    def _record(self, row: Row, number: int | None = None) -> Record[Any]:
        kind: Kind[Any] = kind_of(row)
        return self._sealer.record(row, kind, number)


def _step(change: Change, record: Record[Any]) -> Step:
    statements = STATEMENTS[record.kind.table]
    this, values = statements.this(*record.key), statements.values(record)
    named = record.kind.table, written(record.key)
    match change:
        case Insert():
            return Step(statements.insert, values, *named)
        case Replace():
            this["this_version"] = record.version - 1
            return Step(statements.replace, {**this, **values}, *named, must_match=True)
        case Delete():
            this["this_version"] = record.version
            return Step(statements.delete, this, *named, must_match=True)
        case Expect():
            this["this_version"] = record.version
            return Step(statements.expect, this, *named, must_match=True)
