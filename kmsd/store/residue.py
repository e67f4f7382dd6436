"""Residue: what deleted rows leave in a file of SQLite although it overwrites what is deleted, and its removal.

`secure_delete` zeroes a row that is deleted, and every page that becomes free. But when SQLite moves rows from one page
of a table's tree to another, to balance the tree, their copies stay behind in the space of the page that is not
allocated any more, and that space is not zeroed. When such a row is deleted later, only the row is overwritten.

So pages are looked at here as the file format has them (https://www.sqlite.org/fileformat.html, sections 1.5 and 1.6):
a page of a table's tree begins with its type, the number of its cells and where the first of them is; behind that
stand 2 bytes for each cell, and what is between these and the cells is not allocated. If there is anything, the table
is written anew, row behind row, which moves none and so leaves nothing but zeros; its former pages become free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import sqlalchemy as sa

# The header of the file is in its first page: 100 bytes, with the size of a page at byte 16, where 1 means 65,536.
_FILE_HEADER_BYTES = 100
_PAGE_SIZE = slice(16, 18)
_LARGEST_PAGE_BYTES = 65_536

# The types of a table's pages, and how long the header of each is. An index has no copy of what rows hold.
_INTERIOR, _LEAF = 0x05, 0x0D
_HEADER_BYTES = {_INTERIOR: 12, _LEAF: 8}


class DamagedPageError(ValueError):
    """A page of a table is not what the file format says."""


def is_there(connection: sa.Connection, descriptor: int, table: str) -> bool:
    """Whether the pages of a table hold anything that is not allocated.

    `descriptor` is of the database's file, which has to be all of it: no log beside. Raises DamagedPageError, OSError.
    """
    root = connection.execute(
        sa.text("SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = :name"), {"name": table}
    ).scalar_one()
    return any(space != bytes(len(space)) for space in _unallocated(descriptor, root))


def remove(connection: sa.Connection, table: sa.Table) -> None:
    """Write a table without indexes of its own anew, within the caller's transaction. Rows keep their rowids."""
    columns = ", ".join(("rowid", *(column.name for column in table.columns)))
    former = f"former_{table.name}"
    connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO {former}")
    table.create(connection)
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {former} ORDER BY rowid")  # noqa: S608 - our own names
    connection.exec_driver_sql(f"DROP TABLE {former}")


def _unallocated(descriptor: int, root: int) -> Iterator[bytes]:
    """Yield what each page of a tree holds between its header and its cells."""
    header = os.pread(descriptor, _FILE_HEADER_BYTES, 0)
    size = _number(header[_PAGE_SIZE])
    size = _LARGEST_PAGE_BYTES if size == 1 else size
    pages, seen = [root], set[int]()
    while pages:
        number = pages.pop()
        page = os.pread(descriptor, size, (number - 1) * size)
        if number in seen or len(page) != size or page[0] not in _HEADER_BYTES:
            raise DamagedPageError(f"page {number} is none of the table whose first page is {root}")
        seen.add(number)
        count, begin = _number(page[3:5]), _number(page[5:7]) or _LARGEST_PAGE_BYTES
        pointers = _HEADER_BYTES[page[0]]
        yield page[pointers + 2 * count : begin]
        if page[0] == _INTERIOR:
            cells = (_number(page[at : at + 2]) for at in range(pointers, pointers + 2 * count, 2))
            pages += [_number(page[8:12]), *(_number(page[cell : cell + 4]) for cell in cells)]


def _number(field: bytes) -> int:
    return int.from_bytes(field, "big")
