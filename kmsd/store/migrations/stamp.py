"""The stamp of a database: whose it is, and which schema it has.

SQLite keeps two numbers for this in the file's header (https://www.sqlite.org/pragma.html#pragma_application_id and
#pragma_user_version). They change with the transaction around them, so a database is stamped whole or empty.
"""

from __future__ import annotations

import sqlalchemy as sa

from kmsd.store.base import StoreFormatError
from kmsd.store.schema import METADATA

# "kmsd" in ASCII; the header has room for 4 bytes.
APPLICATION_ID = int.from_bytes(b"kmsd", "big")

# 1: the first schema. 2: the state row, anchors and backups. Each has its revision in `versions`.
SCHEMA_VERSION = 2


def create_or_check(connection: sa.Connection, name: str) -> None:
    """Create the schema in an empty database; check that any other one is ours and has the present schema.

    Runs inside the caller's transaction. `name` is what messages call the database. Raises StoreFormatError.
    """
    version = stamped(connection, name)
    if version is None:
        METADATA.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        stamp(connection)
        return
    if 0 < version < SCHEMA_VERSION:
        raise StoreFormatError(
            f"{name} was made by an older kmsd (its schema is {version}, this one needs {SCHEMA_VERSION}): run `kmsd "
            "upgrade`, with --dev DIR for one of `kmsd dev`"
        )
    check(connection, name)


def stamped(connection: sa.Connection, name: str) -> int | None:
    """Return which schema a database says it has; None if it is empty. Raises StoreFormatError if it is not ours."""
    application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if application == version == 0 and not _objects(connection):
        return None
    if application != APPLICATION_ID:
        raise StoreFormatError(f"{name} is a database of another application")
    if version > SCHEMA_VERSION:
        raise StoreFormatError(
            f"{name} was made by a newer kmsd (its schema is {version}, this one knows {SCHEMA_VERSION}): install that"
        )
    return version


def stamp(connection: sa.Connection) -> None:
    """Say that a database has the present schema."""
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check(connection: sa.Connection, name: str) -> None:
    """Check that a database of ours has the present schema, no less and no more; raises StoreFormatError."""
    version, found = stamped(connection, name), _objects(connection)
    expected = _expected_objects()
    if version != SCHEMA_VERSION or found != expected:
        differing = ", ".join(f"{kind} {name}" for kind, name in sorted(found ^ expected))
        raise StoreFormatError(f"{name} is damaged: its schema {version} differs in: {differing or 'its number'}")


def _objects(connection: sa.Connection) -> set[tuple[str, str]]:
    """Return type and name of all that the database holds, triggers and views among them."""
    rows = connection.exec_driver_sql("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'")
    return {(str(kind), str(name)) for kind, name in rows}


def _expected_objects() -> set[tuple[str, str]]:
    tables = METADATA.tables.values()
    return {("table", table.name) for table in tables} | {
        ("index", str(index.name)) for table in tables for index in table.indexes
    }
