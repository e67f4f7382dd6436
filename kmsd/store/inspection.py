"""Reading all rows, to see whether they are what they should be.

They come from the store's thread some at a time, the next ones while these are worked on; that is done on the event
loop's thread, as it takes the keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import sqlalchemy as sa

from kmsd.api.errors import IntegrityError
from kmsd.store.database import Database
from kmsd.store.kinds import COUNTED, KINDS
from kmsd.store.multiset import MultisetHasher
from kmsd.store.places import FIRST_ROW, LAST_ROW, PLACES
from kmsd.store.schema import STATEMENTS
from kmsd.store.sealing import Record, Sealer
from kmsd.store.state import Tally

# Calls a function of the database in the store's thread.
Run: TypeAlias = Callable[..., asyncio.Future[Any]]

# A row's place takes 0.5 us to hash and some 300 bytes, so that this holds the loop for 10 ms, at an unseal only. In
# smaller pieces the two threads wake each other so often that the kernel leaves them on one core: with 100,000 keys it
# then takes 0.47 s instead of 0.36.
_PLACES_AT_ONCE = 20_000
# Verifying a row takes some 8 us.
_ROWS_AT_ONCE = 64


class Inspection:
    """Goes through all rows of a database."""

    def __init__(self, database: Database, run: Run, sealer: Sealer, hasher: MultisetHasher) -> None:
        self._database = database
        self._run = run
        self._sealer = sealer
        self._hasher = hasher

    async def tally(self) -> Tally:
        """Return what rows there are; raises SealedError."""
        tally = Tally(self._hasher)
        for kind in COUNTED:
            async with aclosing(self._places(kind.table)) as chunks:
                async for places in chunks:
                    tally.add(kind.table, places)
        return tally

    async def verify_all(self) -> int:
        """Verify every row and that every index leads to it, and return how many there are.

        Raises IntegrityError, StoreFormatError, SealedError.
        """
        await self._run(self._database.check_structure)
        count = 0
        async with aclosing(self._records()) as records:
            async for record in records:
                self._sealer.row(record)
                count += 1
        return count

    async def refusals(self, at_most: int) -> list[str]:
        """Return for people which records are refused and why, the first so many; raises SealedError."""
        found: list[str] = []
        async with aclosing(self._records()) as records:
            async for record in records:
                try:
                    self._sealer.row(record)
                except IntegrityError as error:
                    found.append(str(error))
                    if len(found) == at_most:
                        break
        return found

    async def _places(self, table: str) -> AsyncGenerator[list[bytes], None]:
        """Yield the places of all rows of a table."""
        places = PLACES[table]
        async with aclosing(self._ahead(places.many, _PLACES_AT_ONCE)) as chunks:
            async for bounds, [(_, count, typed, columns, found)] in chunks:
                split = places.split(count, typed, columns, found)
                if split is None:
                    split = [places.of(row) for row in await self._run(self._database.rows, places.singly, bounds)]
                yield split

    async def _records(self) -> AsyncGenerator[Record[Any], None]:
        """Yield every record there is, of whatever content."""
        for kind in KINDS:
            async with aclosing(self._ahead(STATEMENTS[kind.table].onward, _ROWS_AT_ONCE)) as chunks:
                async for _, rows in chunks:
                    for _, *columns in rows:
                        yield Record.from_columns(kind, tuple(columns))

    async def _ahead(
        self, statement: sa.Executable, limit: int
    ) -> AsyncGenerator[tuple[dict[str, int], list[tuple[Any, ...]]], None]:
        """Yield what a query finds from the first rowid on, then from behind the last it found, and what it was asked.

        The first column of what it finds has the rowid, of the last row that of the last one.
        """
        bounds = {"first": FIRST_ROW, "limit": limit}
        following = self._run(self._database.rows, statement, bounds)
        try:
            while (rows := await following) and (last := rows[-1][0]) is not None:
                asked, bounds = bounds, {"first": last + 1, "limit": limit}
                if last == LAST_ROW:
                    yield asked, rows
                    return
                following = self._run(self._database.rows, statement, bounds)
                yield asked, rows
        finally:
            following.cancel()
