"""Places: where a row stands and which one it is, as the bytes that multiset hashes are made of.

A place is the row's number (if its kind has them), primary key and lookup columns as text and its MAC in hex, 0x01
between them. What a row holds is not part of it: its MAC stands for that. A row with a column of another type, or with
a 0x00 or 0x01 in it, which only somebody else than kmsd writes, is instead 0x00 and its columns in msgpack. So no two
rows have the same place.

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
        names = (*((NUMBER,) if kind.numbered else ()), *kind.key, *kind.lookup)
        self._types = [types[name] for name in names]
        typed = [f"typeof({name}) = '{_SQL_TYPES[one]}'" for name, one in zip(names, self._types, strict=True)]
        # Of the rows from rowid :first on, at most :limit: the last rowid, how many, how many with columns of the right
        # types, and the places.
        self.many = sa.text(
            f"""SELECT max(row), count(*), sum(typed), CAST(group_concat(place, char(0)) AS BLOB) FROM (
                SELECT rowid AS row, {" AND ".join((*typed, "typeof(mac) = 'blob'"))} AS typed,
                    {" || char(1) || ".join((*names, "hex(mac)"))} AS place
                FROM {kind.table} WHERE rowid >= :first ORDER BY rowid LIMIT :limit)"""  # noqa: S608 - our own names
        )
        table = TABLES[kind.table]
        columns = sa.select(*(table.c[name] for name in (*names, "mac")))
        rowid = sa.literal_column("rowid", sa.BigInteger())
        bounds = sa.bindparam("first", type_=sa.BigInteger()), sa.bindparam("limit", type_=sa.Integer())
        # The same rows as columns, which `of` takes; and one row, by its primary key.
        self.singly = columns.where(rowid >= bounds[0]).order_by(rowid).limit(bounds[1])
        self.one = columns.where(*(table.c[name] == sa.bindparam(f"this_{name}") for name in kind.key))

    def split(self, count: int, typed: int, places: bytes | None) -> list[bytes] | None:
        """Return the places that `many` found; None if there are rows among them that have to be looked at singly."""
        separators = len(self._types) * count
        if places is None or typed != count:
            return None
        if places.count(_ROWS.encode()) != count - 1 or places.count(_COLUMNS.encode()) != separators:
            return None
        return places.split(_ROWS.encode())

    def of(self, columns: Sequence[Any]) -> bytes:
        """Return the place of a row."""
        *found, mac = columns
        text = _COLUMNS.join(map(str, found))
        is_ours = (
            list(map(type, found)) == self._types
            and type(mac) is bytes
            and _ROWS not in text
            and text.count(_COLUMNS) == len(found) - 1
        )
        if is_ours:
            return f"{text}{_COLUMNS}{mac.hex().upper()}".encode()
        return _ROWS.encode() + msgspec.msgpack.encode(columns)


PLACES = {kind.table: Places(kind) for kind in KINDS}
