"""The stamp of a database: whose it is, and which schema it has.

SQLite keeps two numbers for this in the file's header (https://www.sqlite.org/pragma.html#pragma_application_id and
#pragma_user_version). They change with the transaction around them, so a database is stamped whole or empty.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from kmsd.store.base import StoreFormatError
from kmsd.store.schema import METADATA

# "kmsd" in ASCII; the header has room for 4 bytes.
APPLICATION_ID = int.from_bytes(b"kmsd", "big")

# 1: the first schema. 2: the state row, anchors and backups. 3: grants, default keys, credentials. 4: what falls due by
# itself, uses of keys, tombstones. Each has its revision in `versions`.
SCHEMA_VERSION = 4


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
        differing = ", ".join(sorted({f"{one.kind} {one.name}" for one in found ^ expected}))
        raise StoreFormatError(f"{name} is damaged: its schema {version} differs in: {differing or 'its number'}")


class _Object(NamedTuple):
    """A table, index, trigger or view, and the statement that made it; SQLite made those without one by itself."""

    kind: str
    name: str
    table: str
    made_by: str


def _objects(connection: sa.Connection) -> set[_Object]:
    """Return all that the database holds.

    Nothing is left out by its name: SQLite runs a trigger that somebody wrote into the file under a name like those of
    its own objects, and such a trigger takes back what was committed. Nor is a name enough: a table may have been made
    with other columns or collations, an index over some rows only.
    """
    rows = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master")
    return {_Object(str(kind), str(name), str(table), " ".join(str(sql).split())) for kind, name, table, sql in rows}


def _expected_objects() -> set[_Object]:
    """Return what a new database holds."""
    engine = sa.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            METADATA.create_all(connection)
            return _objects(connection)
    finally:
        engine.dispose()
