"""Grants, default keys and credentials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    _table("grants", _text("grant_id", primary_key=True), *map(_text, ("key_id", "grantee", "retiring", "name")))
    for names in (
        ["key_id", "grant_id"],
        ["key_id", "grantee", "grant_id"],
        ["key_id", "name"],
        ["retiring", "grant_id"],
    ):
        op.create_index(f"ix_grants_{'_'.join(names)}", "grants", names)
    _table("default_keys", _text("owner", primary_key=True))
    _table("credentials", _text("unit", primary_key=True), _text("name", primary_key=True))


def _table(name: str, *columns: sa.Column[str]) -> None:
    record = (
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
    op.create_table(name, *columns, *record)


def _text(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), primary_key=primary_key, nullable=False)
