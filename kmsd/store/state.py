"""The state row: what rows there are, so that a row that is missing, or an old one that is back, is noticed.

A row's MAC shows that kmsd wrote the row, for this place. It does not show that it is the row's last version, nor that
no row is gone. So every commit also counts the rows of each table, sums them up (`kmsd.store.multiset`), counts itself,
and writes all that into one row, under a MAC, in the same transaction. When the store is unsealed, the same is made of
the rows that are found, and compared.

What this cannot show is a whole older store, state row and all: the caller compares `sequence` with what is known
outside of it. Nor does it see an index of the file that somebody edited, so that a search misses a row which is there:
that takes longer than a start may, and is part of verifying everything.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from kmsd.store.kinds import COUNTED
from kmsd.store.multiset import MODULUS, NONCE_BYTES, MultisetHasher
from kmsd.store.rows import StateRow
from kmsd.store.sealing import Record

# What a migration writes in the place of a state row, where there was none: version, content and MAC. No commit does.
_UNADOPTED = (0, b"", b"")


def is_unadopted(record: Record[StateRow]) -> bool:
    """Whether there was no state row before the schema had a table for it."""
    return (record.version, record.content, record.mac) == _UNADOPTED


class Tally:
    """How many rows each table has, and the sum of them."""

    def __init__(self, hasher: MultisetHasher) -> None:
        self._hasher = hasher
        self.counts = {kind.table: 0 for kind in COUNTED}
        self.sums = dict(self.counts)

    @classmethod
    def of(cls, row: StateRow, hasher: MultisetHasher) -> Tally:
        """Return what a state row tells; raises SealedError."""
        tally = cls(hasher)
        for table, count in row.counts.items():
            tally.counts[table] = count
            tally.sums[table] = hasher.unmasked(table, row.multisets[table], row.nonce)
        return tally

    def add(self, table: str, places: Sequence[bytes]) -> None:
        """Count rows that are there, by their places."""
        self.counts[table] += len(places)
        self.sums[table] += self._hasher.sum_of(table, places)

    def remove(self, table: str, places: Sequence[bytes]) -> None:
        """Count rows no longer."""
        self.counts[table] -= len(places)
        self.sums[table] -= self._hasher.sum_of(table, places)

    def clear(self, table: str) -> None:
        """Count no row of a table any more."""
        self.counts[table] = self.sums[table] = 0

    def row(self, *, store_id: str, sequence: int, version: int, random: Callable[[int], bytes]) -> StateRow:
        """Return the state row that tells this; raises SealedError."""
        nonce = random(NONCE_BYTES)
        return StateRow(
            store_id=store_id,
            sequence=sequence,
            counts={table: count for table, count in self.counts.items() if count},
            nonce=nonce,
            multisets={
                table: self._hasher.masked(table, self.sums[table], nonce)
                for table, count in self.counts.items()
                if count
            },
            version=version,
        )

    def differences(self, recorded: Tally) -> list[str]:
        """Return, for people, where these rows are not those that were recorded."""
        found = []
        for table in self.counts | recorded.counts:
            count, due = self.counts.get(table, 0), recorded.counts.get(table, 0)
            if count < due:
                found.append(f"{table}: {_rows(due - count)} missing ({count} there, {due} recorded)")
            elif count > due:
                found.append(f"{table}: {_rows(count - due)} too many ({count} there, {due} recorded)")
            elif (self.sums.get(table, 0) - recorded.sums.get(table, 0)) % MODULUS:
                found.append(f"{table}: rows were edited, or exchanged for others, or earlier ones were put back")
        return found


def new_store_id(random: Callable[[int], bytes]) -> str:
    """Return a name for a store."""
    return str(uuid.UUID(bytes=random(16), version=4))


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"
