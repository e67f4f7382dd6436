"""The first schema: keys, material, aliases, domain keys, secrets, settings and mutations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables in an empty database."""
    _table("keys", _text("key_id", primary_key=True), _number("creator_uid"))
    op.create_index("ix_keys_creator_uid", "keys", ["creator_uid"])
    _table("material", _text("key_id", primary_key=True), _number("number", primary_key=True))
    _table("aliases", _text("name", primary_key=True), _text("key_id"))
    op.create_index("ix_aliases_key_id", "aliases", ["key_id"])
    _table("domain_keys", _text("domain_key_id", primary_key=True))
    _table("secrets", _text("name", primary_key=True))
    _table("settings", _text("name", primary_key=True))
    _table("mutations", sa.Column("sequence", sa.Integer(), primary_key=True), _text("mutation_id", unique=True))


def _table(name: str, *columns: sa.Column[int] | sa.Column[str]) -> None:
    record = (
        _number("version"),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
    op.create_table(name, *columns, *record)


def _text(name: str, *, primary_key: bool = False, unique: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), primary_key=primary_key, unique=unique or None, nullable=False)


def _number(name: str, *, primary_key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), primary_key=primary_key, nullable=False)
