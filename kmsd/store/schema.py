"""Tables and statements, made from the kinds of rows.

A table has the columns of a kind's primary key and lookups, then `version`, `content` and `mac`. Statements are made
once; SQLAlchemy keeps what it compiled of them.
"""

from __future__ import annotations

from typing import Any, Generic, get_type_hints

import sqlalchemy as sa
from sqlalchemy.types import UserDefinedType

from kmsd.store.kinds import (
    ALIASES,
    ANCHORS,
    CREDENTIALS,
    DEFAULT_KEYS,
    GRANTS,
    KEYS,
    KINDS,
    MATERIAL,
    MUTATIONS,
    STATE,
    TOMBSTONES,
    Kind,
    RowT,
)
from kmsd.store.sealing import Record

# What a writer remembers of its own commits: more than can be open at once (256 requests in flight for each of some
# tens of busy users, DESIGN 13), and some 3 MB.
REMEMBERED_MUTATIONS = 10_000

# The column of a numbered kind that the rows' order stands in.
NUMBER = "sequence"

METADATA = sa.MetaData()


class _Bytes(UserDefinedType[bytes]):
    """A BLOB as the driver returns it.

    SQLAlchemy's own type calls `bytes` on every value: on an integer that somebody wrote there, that asks for as many
    bytes of memory. Types are checked where records are verified.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in DDL."""
        return "BLOB"


def _table(kind: Kind[Any]) -> sa.Table:
    types = get_type_hints(kind.row_type)

    def column(name: str, **options: Any) -> sa.Column[Any]:
        return sa.Column(name, sa.BigInteger() if types[name] is int else sa.Text(), nullable=False, **options)

    numbered = [sa.Column(NUMBER, sa.Integer, primary_key=True)] if kind.numbered else []
    keys = [column(name, unique=True) if numbered else column(name, primary_key=True) for name in kind.key]
    indexes = [] if kind.indexes is None else [_index(kind.table, names) for names in kind.indexes]
    return sa.Table(
        kind.table,
        METADATA,
        *numbered,
        *keys,
        *(column(name, index=kind.indexes is None) for name in kind.lookup),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("content", _Bytes(), nullable=False),
        sa.Column("mac", _Bytes(), nullable=False),
        *indexes,
    )


def _index(table: str, names: tuple[str, ...]) -> sa.Index:
    return sa.Index(f"ix_{table}_{'_'.join(names)}", *names)


TABLES = {kind.table: _table(kind) for kind in KINDS}


def column_types(table: str) -> dict[str, type]:
    """Return the columns of a table, in its order, and the type of what each holds; raises KeyError."""
    types = {sa.Text: str, sa.BigInteger: int, sa.Integer: int, _Bytes: bytes}
    return {str(column.name): types[type(column.type)] for column in TABLES[table].columns}


class Statements(Generic[RowT]):
    """The statements that work on rows of one kind; they select columns in the order of a `Record`.

    `onward` has the rowid before them, and selects rows from a rowid on.
    """

    def __init__(self, kind: Kind[RowT]) -> None:
        self.kind = kind
        table = TABLES[kind.table]
        names = (*kind.key, *kind.lookup, "version", "content", "mac")
        is_this = sa.and_(*(table.c[name] == sa.bindparam(f"this_{name}") for name in kind.key))
        has_version = table.c.version == sa.bindparam("this_version", type_=sa.BigInteger())
        self.all = sa.select(*(table.c[name] for name in names)).order_by(*(table.c[name] for name in kind.key))
        self.one = self.all.where(is_this)
        number = (NUMBER,) if kind.numbered else ()
        rowid = sa.literal_column("rowid", sa.BigInteger())
        first, limit = sa.bindparam("first", type_=sa.BigInteger()), sa.bindparam("limit", type_=sa.Integer())
        self.onward = (
            sa.select(rowid, *(table.c[name] for name in names)).where(rowid >= first).order_by(rowid).limit(limit)
        )
        self.insert = table.insert().values({name: sa.bindparam(name) for name in (*number, *names)})
        self.replace = table.update().where(is_this, has_version).values({name: sa.bindparam(name) for name in names})
        self.delete = table.delete().where(is_this, has_version)
        # Changes nothing, and tells like the others whether the row was found.
        self.expect = table.update().where(is_this, has_version).values(version=table.c.version)
        self.forget = table.delete().where(is_this)

    def this(self, *key: str | int) -> dict[str, Any]:
        """Return the parameters that name one row."""
        return {f"this_{name}": value for name, value in zip(self.kind.key, key, strict=True)}

    def values(self, record: Record[RowT]) -> dict[str, Any]:
        """Return the parameters that write a record."""
        found = zip((*self.kind.key, *self.kind.lookup), (*record.key, *record.lookup), strict=True)
        number = {} if record.number is None else {NUMBER: record.number}
        return {**number, **dict(found), "version": record.version, "content": record.content, "mac": record.mac}


STATEMENTS: dict[str, Statements[Any]] = {kind.table: Statements(kind) for kind in KINDS}

_keys, _aliases, _mutations = TABLES[KEYS.table], TABLES[ALIASES.table], TABLES[MUTATIONS.table]
_after, _limit = sa.bindparam("after", type_=sa.Text()), sa.bindparam("limit", type_=sa.Integer())

KEYS_AFTER = STATEMENTS[KEYS.table].all.where(_keys.c.key_id > _after).limit(_limit)
KEYS_DUE = (
    STATEMENTS[KEYS.table]
    .all.where(_keys.c.due_ms > 0, _keys.c.due_ms <= sa.bindparam("until_ms", type_=sa.BigInteger()))
    .order_by(None)
    .order_by(_keys.c.due_ms, _keys.c.key_id)
    .limit(_limit)
)
NEXT_DUE = sa.select(sa.func.min(_keys.c.due_ms)).where(_keys.c.due_ms > 0)
_material = TABLES[MATERIAL.table]
MATERIALS_AFTER = (
    STATEMENTS[MATERIAL.table]
    .all.where(
        _material.c.key_id == sa.bindparam("key_id"), _material.c.number > sa.bindparam("after", type_=sa.BigInteger())
    )
    .limit(_limit)
)
TOMBSTONES_AFTER = STATEMENTS[TOMBSTONES.table].all.where(TABLES[TOMBSTONES.table].c.key_id > _after).limit(_limit)
ALIASES_AFTER = STATEMENTS[ALIASES.table].all.where(_aliases.c.name > _after).limit(_limit)
ALIASES_OF_KEY_AFTER = ALIASES_AFTER.where(_aliases.c.key_id == sa.bindparam("key_id"))

_grants, _credentials = TABLES[GRANTS.table], TABLES[CREDENTIALS.table]
_of_key = _grants.c.key_id == sa.bindparam("key_id")
GRANTS_AFTER = STATEMENTS[GRANTS.table].all.where(_grants.c.grant_id > _after).limit(_limit)
GRANTS_OF_KEY_AFTER = GRANTS_AFTER.where(_of_key)
GRANTS_OF_GRANTEE_AFTER = GRANTS_OF_KEY_AFTER.where(_grants.c.grantee == sa.bindparam("grantee"))
RETIRABLE_GRANTS_AFTER = GRANTS_AFTER.where(_grants.c.retiring == sa.bindparam("retiring"))
# In no order: SQLite would rather go through all grants of a key than sort those that are asked for.
_grants_in_no_order = STATEMENTS[GRANTS.table].all.order_by(None)
GRANTS_FOR = _grants_in_no_order.where(_of_key, _grants.c.grantee.in_(sa.bindparam("grantees", expanding=True)))
GRANTS_NAMED = _grants_in_no_order.where(_of_key, _grants.c.name == sa.bindparam("name"))
COUNT_GRANTS = sa.select(sa.func.count()).select_from(_grants).where(_of_key)
DEFAULT_KEYS_AFTER = STATEMENTS[DEFAULT_KEYS.table].all.where(TABLES[DEFAULT_KEYS.table].c.owner > _after).limit(_limit)
_after_unit = sa.bindparam("after_unit", type_=sa.Text())
CREDENTIALS_AFTER = (
    STATEMENTS[CREDENTIALS.table]
    .all.where(sa.tuple_(_credentials.c.unit, _credentials.c.name) > sa.tuple_(_after_unit, _after))
    .limit(_limit)
)
CREDENTIALS_OF_UNIT_AFTER = CREDENTIALS_AFTER.where(_credentials.c.unit == sa.bindparam("unit"))
COUNT_KEYS = sa.select(sa.func.count()).select_from(_keys).where(_keys.c.creator_uid == sa.bindparam("creator_uid"))
# The number of the last mutation, and those that are too old once there is another (as `Places.columns`).
LAST_MUTATION = sa.select(sa.func.max(_mutations.c[NUMBER]))
_is_old = _mutations.c[NUMBER] <= LAST_MUTATION.scalar_subquery() - sa.literal(REMEMBERED_MUTATIONS - 1)
OLD_MUTATIONS = sa.select(_mutations.c[NUMBER], _mutations.c.mutation_id, _mutations.c.mac).where(_is_old)
STATE_ROWS: tuple[sa.Select[Any], dict[str, Any]] = (STATEMENTS[STATE.table].all, {})
FORGET_STATE = TABLES[STATE.table].delete()
FORGET_ANCHOR = TABLES[ANCHORS.table].delete()
