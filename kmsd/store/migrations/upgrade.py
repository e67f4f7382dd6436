"""Bringing a store to the present schema, while no daemon has it: what `kmsd upgrade` does.

Everything is one transaction: whoever kills it leaves the old schema or the new one. Before that transaction changes
anything, a copy of the database is made beside it, which an older kmsd can open.

No part of the daemon may import this: it loads Alembic, which takes 90 ms.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from kmsd.store.base import StoreFormatError, StoreUnavailableError
from kmsd.store.database import Database, sync_directory
from kmsd.store.migrations.stamp import SCHEMA_VERSION, check, stamp, stamped

_REVISIONS = Path(__file__).parent


@dataclass(frozen=True)
class Upgrade:
    """What was done: the schema that was found, and where its copy is if it was not the present one."""

    found: int
    copy: Path | None


def upgrade(path: Path) -> Upgrade:
    """Upgrade the store at `path`; changes nothing if it has the present schema.

    Raises StoreUnavailableError, also while a daemon has it, and StoreFormatError.
    """
    path = path.absolute()
    if not path.exists():
        raise StoreUnavailableError(f"store {path}: there is none")
    migration = _Migration(path)
    Database(path, prepare=migration.run).close()
    return Upgrade(migration.found, migration.copy)


class _Migration:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.found = SCHEMA_VERSION
        self.copy: Path | None = None

    def run(
        self, connection: sa.Connection, name: str, transaction: Callable[[], AbstractContextManager[None]]
    ) -> None:
        version = stamped(connection, name)
        if version is None:
            raise StoreFormatError(f"{name} is empty: there is nothing to upgrade")
        if version == 0:
            raise StoreFormatError(f"{name} is damaged: its schema has no number")
        self.found = version
        if version < SCHEMA_VERSION:
            faults = connection.exec_driver_sql("PRAGMA integrity_check(3)").scalars().all()
            if faults != ["ok"]:
                raise StoreFormatError(f"{name} is damaged, so that nothing was changed: {'; '.join(map(str, faults))}")
            self.copy = self._path.with_name(f"{self._path.name}.schema-{version}")
            # Before the transaction: SQLite copies nothing that is about to be written. Nobody else writes.
            _copy(connection, self.copy)
        with transaction():
            if version < SCHEMA_VERSION:
                _revise(connection, version)
                stamp(connection)
            check(connection, name)


def _revise(connection: sa.Connection, version: int) -> None:
    script = ScriptDirectory(str(_REVISIONS), version_locations=[str(_REVISIONS / "versions")])
    revisions = list(script.iterate_revisions(f"{SCHEMA_VERSION:04}", f"{version:04}"))
    with Operations.context(MigrationContext.configure(connection)):
        for revision in reversed(revisions):
            revision.module.upgrade()


def _copy(connection: sa.Connection, target: Path) -> None:
    """Write the database as it is to `target`, which has all of it, durably, as soon as it has that name."""
    draft = target.with_name(f".{target.name}.new")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.closing(sqlite3.connect(draft)) as copy:
                cast("sqlite3.Connection", connection.connection.dbapi_connection).backup(copy)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(target)
        sync_directory(target.parent)
    except (OSError, sqlite3.Error) as error:
        draft.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreUnavailableError(f"{target} cannot be written: {reason}; nothing was changed") from error
