"""Reading all rows, to see whether they are what they should be.

Rows come from the store's thread in chunks, the next one while this one is worked on; the work is done on the event
loop's thread, as it takes the keys.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import sqlalchemy as sa

from kmsd.api.errors import IntegrityError
from kmsd.store.base import StoreUnavailableError
from kmsd.store.database import Database, Scan
from kmsd.store.kinds import COUNTED, KINDS
from kmsd.store.multiset import MultisetHasher
from kmsd.store.schema import STATEMENTS
from kmsd.store.sealing import Record, Sealer
from kmsd.store.state import Tally

# Calls a function of the database in the store's thread.
Run: TypeAlias = Callable[..., asyncio.Future[Any]]

# A row's place takes 0.7 us to hash and some 300 bytes: the loop is held for a millisecond at most, and a chunk costs
# ten times as much as getting it from one thread to the other.
_PLACES_AT_ONCE = 1500
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
            async with aclosing(self._chunks(STATEMENTS[kind.table].places, _PLACES_AT_ONCE)) as chunks:
                async for places in chunks:
                    tally.add(kind.table, places)
        return tally

    async def records(self) -> AsyncGenerator[Record[Any], None]:
        """Yield every record there is, of whatever content."""
        for kind in KINDS:
            async with aclosing(self._chunks(STATEMENTS[kind.table].all, _ROWS_AT_ONCE)) as chunks:
                async for rows in chunks:
                    for columns in rows:
                        yield Record.from_columns(kind, columns)

    async def verify_all(self) -> int:
        """Verify every row, and return how many there are; raises IntegrityError, SealedError."""
        count = 0
        async with aclosing(self.records()) as records:
            async for record in records:
                self._sealer.row(record)
                count += 1
        return count

    async def refusals(self, at_most: int) -> list[str]:
        """Return for people which records are refused and why, the first so many; raises SealedError."""
        found: list[str] = []
        async with aclosing(self.records()) as records:
            async for record in records:
                try:
                    self._sealer.row(record)
                except IntegrityError as error:
                    found.append(str(error))
                    if len(found) == at_most:
                        break
        return found

    async def _chunks(self, statement: sa.Select[Any], size: int) -> AsyncGenerator[list[tuple[Any, ...]], None]:
        scan: Scan = await self._run(self._database.scan, statement)
        try:
            following = self._run(scan.rows, size)
            while rows := await following:
                following = self._run(scan.rows, size)
                yield rows
        finally:
            # A store that is closed has ended all that read from it.
            with contextlib.suppress(StoreUnavailableError):
                await self._run(scan.close)
