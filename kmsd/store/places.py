"""Places: where a row stands and which one it is, as the bytes that multiset hashes are made of.

A place is the row's number (if its kind has them), primary key and lookup columns as text and its MAC in hex, 0x01
between them. A column that the table got later is there as `name=value`, and not at all while it holds what it holds
in rows from before it: so their places, and the sums of them, stay what they were. What a row holds is not part of its
place: its MAC stands for that. A row with a column of another type, or with a 0x00 or 0x01 in it, which only somebody
else than kmsd writes, is instead 0x00 and its columns in msgpack. So no two rows have the same place.

SQLite makes those of many rows at a time, as one value with 0x00 between them. As rows of the driver they would take
twice the time: it makes an object of each column, and takes the interpreter's lock for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kmsd.store.kinds import KINDS, Kind
from kmsd.store.schema import NUMBER, TABLES, column_types

# SQLite's rowids are all 64-bit numbers; rows of ours have positive ones.
FIRST_ROW, LAST_ROW = -(1 << 63), (1 << 63) - 1

_ROWS, _COLUMNS = "\x00", "\x01"
_SQL_TYPES = {str: "text", int: "integer"}


class Places:
    """The places of one kind of rows."""

    def __init__(self, kind: Kind[Any]) -> None:
        types = column_types(kind.table)
        self._names = (*((NUMBER,) if kind.numbered else ()), *kind.key, *kind.lookup)
        self._types = [types[name] for name in self._names]
        self._earlier = kind.earlier()
        named = zip(self._names, self._types, strict=True)
        typed = [*(f"typeof({name}) = '{_SQL_TYPES[one]}'" for name, one in named), "typeof(mac) = 'blob'"]
        later = [f"({name} != {value})" for name, value in self._earlier.items()]
        counted = [str(len(self._names) - len(later)), *later]
        # Of the rows from rowid :first on, at most :limit: the last rowid, how many, how many with columns of the right
        # types, how many columns their places have before the MACs, and the places.
        self.many = sa.text(
            f"""SELECT max(row), count(*), sum(typed), sum(columns), CAST(group_concat(place, char(0)) AS BLOB) FROM (
                SELECT rowid AS row, {" AND ".join(typed)} AS typed, {" + ".join(counted)} AS columns,
                    {" || ".join((*map(self._part_in_sql, self._names), "hex(mac)"))} AS place
                FROM {kind.table} WHERE rowid >= :first ORDER BY rowid LIMIT :limit)"""  # noqa: S608 - our own names
        )
        table = TABLES[kind.table]
        columns = sa.select(*(table.c[name] for name in (*self._names, "mac")))
        rowid = sa.literal_column("rowid", sa.BigInteger())
        bounds = sa.bindparam("first", type_=sa.BigInteger()), sa.bindparam("limit", type_=sa.Integer())
        # The same rows as columns, which `of` takes; and one row, by its primary key.
        self.singly = columns.where(rowid >= bounds[0]).order_by(rowid).limit(bounds[1])
        self.one = columns.where(*(table.c[name] == sa.bindparam(f"this_{name}") for name in kind.key))

    def split(self, count: int, typed: int, columns: int, places: bytes | None) -> list[bytes] | None:
        """Return the places that `many` found; None if there are rows among them that have to be looked at singly."""
        if places is None or typed != count:
            return None
        if places.count(_ROWS.encode()) != count - 1 or places.count(_COLUMNS.encode()) != columns:
            return None
        return places.split(_ROWS.encode())

    def of(self, columns: Sequence[Any]) -> bytes:
        """Return the place of a row."""
        *found, mac = columns
        text = "".join(map(str, found))
        is_ours = (
            list(map(type, found)) == self._types and type(mac) is bytes and _ROWS not in text and _COLUMNS not in text
        )
        if is_ours:
            return f"{''.join(map(self._part, self._names, found))}{mac.hex().upper()}".encode()
        return _ROWS.encode() + msgspec.msgpack.encode(columns)

    def _part(self, name: str, value: str | int) -> str:
        if name not in self._earlier:
            return f"{value}{_COLUMNS}"
        return "" if value == self._earlier[name] else f"{name}={value}{_COLUMNS}"

    def _part_in_sql(self, name: str) -> str:
        if name not in self._earlier:
            return f"{name} || char(1)"
        return f"CASE {name} WHEN {self._earlier[name]} THEN '' ELSE '{name}=' || {name} || char(1) END"


PLACES = {kind.table: Places(kind) for kind in KINDS}
