"""One SQLite database on one held connection: opening, reading, transactions, and what errors mean. Synchronous.

One process at a time has a store. A lock (flock) on the file says so before SQLite touches it; SQLite's own exclusive
mode then also keeps other programs out, and saves it the lock calls of every statement and the shared-memory file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import sqlite3
import stat
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias, cast

import sqlalchemy as sa

from kmsd.store import residue
from kmsd.store.base import RowChangedError, RowExistsError, StoreFormatError, StoreUnavailableError
from kmsd.store.kinds import MATERIAL
from kmsd.store.migrations.stamp import create_or_check
from kmsd.store.schema import METADATA

_PRAGMAS = (
    "locking_mode = EXCLUSIVE",
    "synchronous = FULL",  # an acknowledged commit survives power loss: each one syncs the write-ahead log
    "temp_store = MEMORY",  # the daemon may make files in its own folders only, and rows belong nowhere else
    "secure_delete = ON",  # what was deleted is overwritten with zeros
    "trusted_schema = OFF",  # a file that somebody edited cannot make SQLite call functions
    "cell_size_check = ON",  # notices damaged pages early
)

# One page of the smallest size there is (https://www.sqlite.org/fileformat.html). SQLite takes what is shorter for an
# empty database, and would write over it.
_SMALLEST_DATABASE_BYTES = 512

# What SQLite adds to a database's name for its write-ahead log (https://www.sqlite.org/walformat.html).
_LOG_SUFFIX = "-wal"

# The log has some 4 MiB, when SQLite moves it into the database.
_CHUNK_BYTES = 1024 * 1024

# The result codes (https://www.sqlite.org/rescode.html) whose lower byte says that the file itself is wrong. ERROR is
# what a statement gets when tables are not those it was written for; all statements are ours.
_WRONG_FILE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_IN_USE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_SYNC_FAILED = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}


# What to do about those that a person can mend.
_ADVICE = {
    sqlite3.SQLITE_FULL: "make room on its file system",
    sqlite3.SQLITE_READONLY: "kmsd has to write there: look at owner, mode and mount",
    sqlite3.SQLITE_CANTOPEN: "kmsd has to make files there: look at owner and mode of the folder",
    sqlite3.SQLITE_IOERR: "look at the disk, the kernel's log may tell more",
}

# A statement and its parameters.
Query: TypeAlias = tuple[sa.Executable, Mapping[str, Any]]


@dataclass(frozen=True)
class Step:
    """A statement of a transaction, and the row it is about.

    `must_match`: the statement has to find its row, else that row was changed meanwhile.
    """

    statement: sa.Insert | sa.Update | sa.Delete
    parameters: Mapping[str, Any]
    table: str
    primary_key: str
    must_match: bool = False


# Sees to it that a database has the present schema: takes the connection, what messages call the database, and what
# makes a transaction.
Prepare: TypeAlias = Callable[[sa.Connection, str, Callable[[], AbstractContextManager[None]]], None]


def _create_or_check(
    connection: sa.Connection, name: str, transaction: Callable[[], AbstractContextManager[None]]
) -> None:
    with transaction():
        create_or_check(connection, name)


def _has_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def sync_directory(directory: Path) -> None:
    """Make the names of a directory's files survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Database:
    """An open database, which messages call `name`. All calls, and the opening, come from one and the same thread.

    `prepare` is called before anything else uses it.
    Raises StoreUnavailableError and StoreFormatError, which name the file; no exception of the libraries underneath.
    """

    def __init__(self, path: Path, *, prepare: Prepare | None = None) -> None:
        path = path.absolute()
        self.name = f"store {path}"
        self._broken: str | None = None
        with contextlib.ExitStack() as stack:
            log = path.with_name(path.name + _LOG_SUFFIX)
            self._check_missing(path, log)
            # Entered first and so left last: closing any descriptor of the file drops the locks that SQLite has on it.
            self._descriptor = self._lock(path)
            stack.callback(os.close, self._descriptor)
            self._check_log(path, log)
            self._write_again(log)
            stack.enter_context(self._errors_translated())
            url = sa.URL.create("sqlite", database=str(path))
            engine = sa.create_engine(
                url,
                poolclass=sa.NullPool,
                isolation_level="AUTOCOMMIT",  # transactions begin and end where this module says so; reads need none
                connect_args={"timeout": 0},
                hide_parameters=True,  # rows do not belong into tracebacks
            )
            self._connection = stack.enter_context(engine.connect())
            # Else the driver's error for text that is no UTF-8 quotes it, and that may be any column's content.
            self._driver_connection.text_factory = partial(str, encoding="utf-8", errors="replace")
            for pragma in _PRAGMAS:
                self._execute(f"PRAGMA {pragma}")
            (prepare or _create_or_check)(self._connection, self.name, self._transaction)
            mode = self._connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar_one()
            if mode != "wal":
                raise StoreUnavailableError(f"{self.name}: its file system allows no write-ahead log")
            self._execute("SELECT 1 FROM sqlite_schema")  # makes the log, if the mode is new
            self._purge()  # what a killed daemon had deleted
            try:
                # SQLite syncs the log's name as well, but goes on when that fails.
                sync_directory(path.parent)
            except OSError as exc:
                raise StoreUnavailableError(f"{self.name}: its folder cannot be synced: {exc.strerror}") from exc
            self._open = stack.pop_all()

    def _lock(self, path: Path) -> int:
        """Open or create the file for its owner alone and return a descriptor that holds its lock."""
        with contextlib.ExitStack() as stack:
            try:
                # O_NONBLOCK: to open a FIFO must not hang; it means nothing for a regular file.
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                descriptor = os.open(path, flags, 0o600)
                stack.callback(os.close, descriptor)
                facts = os.fstat(descriptor)
                if not stat.S_ISREG(facts.st_mode):
                    raise StoreFormatError(f"{self.name} is not a regular file")
                if 0 < facts.st_size < _SMALLEST_DATABASE_BYTES:
                    raise StoreFormatError(f"{self.name} is no database")
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(descriptor, 0o600)
                sync_directory(path.parent)
            except BlockingIOError:
                raise self._in_use() from None
            except OSError as exc:
                reason = "is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
                raise StoreUnavailableError(f"{self.name}: {reason}") from exc
            stack.pop_all()
            return descriptor

    def _write_again(self, log: Path) -> None:
        """Write what an earlier process left in the write-ahead log once more in its place, and sync it.

        Its last sync may have failed before it was killed. Linux then holds what is not on the disk for clean: SQLite
        would read it all the same and commit behind it, and a power cut would take those commits with it.
        """
        try:
            descriptor = os.open(log, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise StoreUnavailableError(f"{self.name}: its write-ahead log: {exc.strerror}") from exc
        try:
            offset = 0
            while chunk := os.pread(descriptor, _CHUNK_BYTES, offset):
                offset += os.pwrite(descriptor, chunk, offset)
            os.fsync(descriptor)
        except OSError as exc:
            raise StoreUnavailableError(f"{self.name}: its write-ahead log: {exc.strerror}") from exc
        finally:
            os.close(descriptor)

    def _check_missing(self, path: Path, log: Path) -> None:
        """See that no write-ahead log is left of a store that is away: SQLite would remove it, and commits with it."""
        if _has_bytes(log) and not _has_bytes(path):
            raise StoreFormatError(
                f"{self.name} is missing or empty, but its write-ahead log {log} is there: put the store back beside "
                "it, or move the log away to begin anew"
            )

    def _check_log(self, path: Path, log: Path) -> None:
        """See that a log which a killed daemon left fits: SQLite would merge any other as well."""
        if not _has_bytes(log):
            return
        index = path.with_name(f"{path.name}-shm")
        is_ours = not index.exists()
        try:
            # Whoever opens it so reads it with its log, and writes neither.
            url = f"file:{urllib.parse.quote(str(path))}?mode=ro"
            with contextlib.closing(sqlite3.connect(url, uri=True, timeout=0)) as connection:
                connection.text_factory = partial(str, encoding="utf-8", errors="replace")
                faults = [str(fault) for (fault,) in connection.execute("PRAGMA quick_check(3)")]
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _WRONG_FILE:
                return  # what it is will be told by whoever opens it to write
            faults = [str(error)]
        except UnicodeDecodeError:  # as in `_errors_translated`
            faults = ["what it holds is no text"]
        finally:
            if is_ours:
                with contextlib.suppress(OSError):
                    index.unlink()
        if faults != ["ok"]:
            raise StoreFormatError(
                f"{self.name} is damaged, or its write-ahead log {log} is another store's: {'; '.join(faults)}; "
                "nothing was changed"
            )

    def rows(self, statement: sa.Executable, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return all rows that a query finds."""
        with self._errors_translated():
            return [tuple(row) for row in self._connection.execute(statement, parameters)]

    def rows_of_each(self, queries: Iterable[Query]) -> list[list[tuple[Any, ...]]]:
        """Return what each of several queries finds."""
        return [self.rows(*query) for query in queries]

    def check_structure(self) -> None:
        """Check that pages and indexes are whole, and that each index has every row; raises StoreFormatError."""
        faults = [str(fault) for (fault,) in self.rows(sa.text("PRAGMA integrity_check(3)"), {})]
        if faults != ["ok"]:
            raise StoreFormatError(f"{self.name} is damaged: {'; '.join(faults)}")

    def apply(self, steps: Sequence[Step]) -> None:
        """Do all steps in one transaction, durable on return; raises RowExistsError, RowChangedError and does none."""
        with self._errors_translated(), self._transaction():
            for step in steps:
                try:
                    result = self._connection.execute(step.statement, step.parameters)
                except sa.exc.IntegrityError:
                    raise RowExistsError(step.table, step.primary_key) from None
                if step.must_match and result.rowcount != 1:
                    raise RowChangedError(step.table, step.primary_key)

    def purge(self) -> None:
        """Leave nothing of material that was deleted in the file, its write-ahead log and pages that are free."""
        with self._errors_translated():
            self._purge()

    def load(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Write rows, of which the database has none yet, in one transaction; raises StoreFormatError if it has."""
        with self._errors_translated(), self._transaction():
            for table, some in itertools.groupby(rows, key=itemgetter(0)):
                try:
                    self._connection.execute(METADATA.tables[table].insert(), [dict(columns) for _, columns in some])
                except sa.exc.IntegrityError:
                    raise StoreFormatError(f"{self.name}: {table} has a row twice") from None

    def copy(self, path: Path) -> sqlite3.Connection:
        """Return a connection, of no thread's own, to a copy of the database as it is now.

        The copy is at `path` while it is made, and then in no directory any more: it goes when it is closed, or with
        this process.
        """
        try:
            with self._errors_translated():
                path.unlink(missing_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                copy = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                try:
                    copy.execute("PRAGMA synchronous = OFF")  # nobody reads it after a power cut
                    copy.execute("PRAGMA locking_mode = EXCLUSIVE")
                    copy.execute("PRAGMA journal_mode = OFF")  # which would be a second file
                    copy.text_factory = self._driver_connection.text_factory
                    self._driver_connection.backup(copy)
                    # Again: the original's first page says that there is a write-ahead log.
                    copy.execute("PRAGMA journal_mode = OFF")
                    copy.execute("SELECT count(*) FROM sqlite_master").fetchall()
                except BaseException:
                    copy.close()
                    raise
                finally:
                    path.unlink()
        except OSError as error:
            raise StoreUnavailableError(f"{path}: {error.strerror}") from error
        return copy

    def close(self) -> None:
        """Put the write-ahead log into the file and close it."""
        with self._errors_translated(closing=True):
            self._open.close()

    def _purge(self) -> None:
        self._cut_log()
        try:
            left = residue.is_there(self._connection, self._descriptor, MATERIAL.table)
        except residue.DamagedPageError as exc:
            raise self._damaged(exc) from exc
        except OSError as exc:
            raise StoreUnavailableError(f"{self.name}: {exc.strerror}") from exc
        if left:
            with self._transaction():
                residue.remove(self._connection, METADATA.tables[MATERIAL.table])
            self._cut_log()

    def _cut_log(self) -> None:
        """Move the write-ahead log into the file, where what was deleted is overwritten, and cut it to nothing."""
        busy, _, _ = self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        if busy:  # nobody else has it open, so this is a fault
            raise StoreUnavailableError(f"{self.name}: its write-ahead log could not be moved into it")

    def _execute(self, text: str) -> None:
        self._connection.exec_driver_sql(text)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # After some errors, a full disk for one, SQLite has rolled back by itself.
            if self._driver_connection.in_transaction:
                self._execute("ROLLBACK")
            raise

    @property
    def _driver_connection(self) -> sqlite3.Connection:
        return cast("sqlite3.Connection", self._connection.connection.dbapi_connection)

    @contextlib.contextmanager
    def _errors_translated(self, *, closing: bool = False) -> Iterator[None]:
        if self._broken is not None and not closing:
            raise StoreUnavailableError(self._broken)
        try:
            yield
        except UnicodeDecodeError:
            # The driver fails to read what SQLite says when that quotes garbage; so would a traceback.
            raise self._damaged("what it holds is no text") from None
        except (sa.exc.DBAPIError, sqlite3.Error) as exc:
            original = exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc
            # The driver's own complaints have no code: they are about how it is called.
            code: int = getattr(original, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
            if code & 0xFF in _IN_USE:
                raise self._in_use() from exc
            if code & 0xFF in _WRONG_FILE:
                raise self._damaged(original) from exc
            if code in _SYNC_FAILED:
                # The kernel reports a failed sync once, and the next one succeeds without having written what was
                # lost. So nothing is promised any more until the file is read anew.
                self._broken = f"{self.name} could not be synced to its disk; check the disk, then restart kmsd"
                raise StoreUnavailableError(self._broken) from exc
            advice = f"; {_ADVICE[code & 0xFF]}" if code & 0xFF in _ADVICE else ""
            raise StoreUnavailableError(f"{self.name}: {original}{advice}") from exc

    def _damaged(self, reason: object) -> StoreFormatError:
        return StoreFormatError(
            f"{self.name} is no store, or is damaged: {reason}; keep a copy of it, and restore a backup"
        )

    def _in_use(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.name} is in use by another process")
