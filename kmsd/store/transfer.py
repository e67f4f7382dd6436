"""All rows of a store as a stream of bytes, and a store made of one.

The stream is one record behind the other: its length in bytes (4, big-endian), then a msgpack array of the table's name
and the row's columns as the table has them, or as it had them before it got later ones. The state row is among them.
MACs are carried, not verified: that is for whoever has the keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kmsd.store.base import StoreFormatError, StoreUnavailableError
from kmsd.store.database import Database, sync_directory
from kmsd.store.kinds import KINDS
from kmsd.store.rows import StateRow
from kmsd.store.schema import TABLES, column_types

_T = TypeVar("_T")

# What a snapshot is to be called while it is made, beside its store: opening the store removes one that was left.
SNAPSHOT_NAME = "snapshot.sqlite"

_LENGTH_BYTES = 4
# AWS allows a key policy 32 KiB; everything else in a row is smaller.
_MAX_RECORD_BYTES = 1024 * 1024
# Some hundred rows: little memory, and little time goes into changing threads.
_BATCH_BYTES = 64 * 1024
# What the columns hold that were not there yet when a stream was written.
_EARLIER = {kind.table: kind.earlier() for kind in KINDS}
# What SQLite takes for an integer.
_NUMBERS = -(1 << 63), (1 << 63) - 1
# What a restore writes in one transaction, of which each is synced: 100 MB are a few dozen.
_ROW_BYTES = 200  # roughly what there is of a row beside its content
_TRANSACTION_BYTES = 4 * 1024 * 1024


class Snapshot:
    """The rows as one commit left them, `copy`, while their store goes on. Closing it frees the disk space it takes."""

    def __init__(self, copy: sqlite3.Connection, state: StateRow) -> None:
        self.store_id = state.store_id
        self.sequence = state.sequence
        self._copy = copy
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kmsd-snapshot")
        self._closed = False

    async def batches(self) -> AsyncIterator[bytes]:
        """Yield the stream in pieces of some tens of kilobytes; raises StoreFormatError."""
        records = self._records()
        while batch := await self._run(_batch, records):
            yield batch

    async def close(self) -> None:
        """Drop the copy; a second call does nothing."""
        if not self._closed:
            self._closed = True
            closing = self._run(self._copy.close)
            self._executor.shutdown(wait=False)
            await closing

    def _records(self) -> Iterator[bytes]:
        try:
            for kind in KINDS:
                names = ", ".join(TABLES[kind.table].columns.keys())
                for row in self._copy.execute(f"SELECT {names} FROM {kind.table} ORDER BY rowid"):  # noqa: S608 - ours
                    record = msgspec.msgpack.encode((kind.table, *row))
                    yield len(record).to_bytes(_LENGTH_BYTES, "big") + record
        except sqlite3.Error as error:
            raise StoreFormatError(f"the store is damaged, so that not all of its rows can be read: {error}") from error

    def _run(self, function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


def _batch(records: Iterator[bytes]) -> bytes:
    batch = bytearray()
    for record in records:
        batch += record
        if len(batch) >= _BATCH_BYTES:
            break
    return bytes(batch)


async def restore_into(path: Path, pieces: Iterable[bytes]) -> None:
    """Make a store at `path`, where there is none, of a stream in pieces of any size; it appears when it is complete.

    It is not verified. What `pieces` raises ends it, and nothing is left. Raises StoreFormatError for what is no such
    stream, StoreUnavailableError when there is something at `path` or it cannot be written.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="kmsd-restore") as executor:

        def run(function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
            return asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

        draft = _Draft(path.absolute())  # noqa: ASYNC240 - asks the disk nothing
        try:
            await run(draft.begin)
            rows: list[tuple[str, dict[str, Any]]] = []
            size = 0
            for table, columns in _rows_of(pieces):
                rows.append((table, columns))
                size += _ROW_BYTES + len(columns["content"])
                if size >= _TRANSACTION_BYTES:
                    await run(draft.add, rows)
                    rows, size = [], 0
            await run(draft.add, rows)
            await run(draft.finish)
        finally:
            await run(draft.end)


class _Draft:
    """A store on its way, under another name. All calls come from one and the same thread; the last is `end`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.new")
        self._database: Database | None = None
        self._locked: contextlib.ExitStack | None = None

    def begin(self) -> None:
        """Make it, without rows, unless there is a store."""
        # A log or journal of another store would become this one's.
        for suffix in ("", "-wal", "-journal"):
            if os.path.lexists(there := self._path.with_name(self._path.name + suffix)):
                raise _exists(there)
        try:
            with contextlib.ExitStack() as stack:
                lock = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove()
                self._locked = stack.pop_all()
        except BlockingIOError:
            raise StoreUnavailableError(f"{self._path.parent}: another store is being restored there") from None
        except OSError as error:
            raise StoreUnavailableError(f"{self._path}: {error.strerror}") from error
        self._database = Database(self._draft)

    def add(self, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Write rows: table and columns of each."""
        if self._database is not None:
            self._database.load(rows)

    def finish(self) -> None:
        """Give it its name."""
        if self._database is None:
            return
        database, self._database = self._database, None
        database.close()
        try:
            # Not by renaming, which would put it in the place of a store that somebody made meanwhile.
            self._path.hardlink_to(self._draft)
            self._draft.unlink()
            sync_directory(self._path.parent)
        except FileExistsError:
            raise _exists(self._path) from None
        except OSError as error:
            raise StoreUnavailableError(f"store {self._path}: {error.strerror}") from error

    def end(self) -> None:
        """Leave nothing of it but what was finished."""
        if self._locked is not None:
            with self._locked:
                if self._database is not None:
                    with contextlib.suppress(StoreUnavailableError):
                        self._database.close()
                self._remove()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-journal"):
            self._draft.with_name(self._draft.name + suffix).unlink(missing_ok=True)


def _exists(path: Path) -> StoreUnavailableError:
    return StoreUnavailableError(f"{path} is there: a store is restored only where there is none")


def _rows_of(pieces: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield table and columns of each record in a stream; raises StoreFormatError."""
    pending, number = bytearray(), 0
    for piece in pieces:
        pending += piece
        begin = 0
        while (behind := begin + _LENGTH_BYTES) <= len(pending):
            length = int.from_bytes(pending[begin:behind], "big")
            if length > _MAX_RECORD_BYTES:
                raise StoreFormatError(f"record {number + 1} of the stream says that it has {length} bytes")
            if behind + length > len(pending):
                break
            number += 1
            yield _row(bytes(pending[behind : behind + length]), number)
            begin = behind + length
        del pending[:begin]
    if pending:
        raise StoreFormatError(f"the stream ends inside record {number + 1}")


def _row(record: bytes, number: int) -> tuple[str, dict[str, Any]]:
    try:
        table, *columns = msgspec.msgpack.decode(record, type=list[Any])
        types = column_types(table)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        # `from None`: the decoder's message may quote what rows hold.
        raise StoreFormatError(f"record {number} of the stream is not one of kmsd's") from None
    earlier = _EARLIER[table]
    if len(columns) == len(types) - len(earlier):
        names = [name for name in types if name not in earlier]
    else:
        names, earlier = list(types), {}
    found = [types[name] for name in names]
    fits = all(type(column) is not int or _NUMBERS[0] <= column <= _NUMBERS[1] for column in columns)
    if [type(column) for column in columns] != found or not fits:
        raise StoreFormatError(f"record {number} of the stream, of {table}, has other columns than its table")
    return table, earlier | dict(zip(names, columns, strict=True))
