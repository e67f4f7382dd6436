"""When something of a key falls due, uses of keys, tombstones, and how far housekeeping has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the tables; nothing of a key that there is falls due."""
    # A column that is added stands behind all others, and its table would differ from a new one.
    op.drop_index("ix_keys_creator_uid", "keys")
    op.rename_table("keys", "former_keys")
    _table("keys", _text("key_id", primary_key=True), _number("creator_uid"), _number("due_ms"))
    op.execute(
        "INSERT INTO keys (key_id, creator_uid, due_ms, version, content, mac) "
        "SELECT key_id, creator_uid, 0, version, content, mac FROM former_keys ORDER BY rowid"
    )
    op.drop_table("former_keys")
    op.create_index("ix_keys_creator_uid", "keys", ["creator_uid"])
    op.create_index("ix_keys_due_ms", "keys", ["due_ms"])
    _table("usage", _text("key_id", primary_key=True))
    _table("tombstones", _text("key_id", primary_key=True))
    _table("housekeeping", _text("name", primary_key=True))


def _table(name: str, *columns: sa.Column[str] | sa.Column[int]) -> None:
    record = (
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
    op.create_table(name, *columns, *record)


def _text(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), primary_key=primary_key, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)
