"""The state row, anchors of the audit trail, and what is known of the last backup."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# In the place of the state row that nobody could write yet: version, content and MAC of no row. So a store that comes
# from here can be told from one whose state row was removed.
_UNADOPTED = {"name": "state", "version": 0, "content": b"", "mac": b""}


def upgrade() -> None:
    """Make the tables."""
    _table("anchors")
    _table("backups")
    op.bulk_insert(_table("state"), [_UNADOPTED])


def _table(name: str) -> sa.Table:
    return op.create_table(
        name,
        sa.Column("name", sa.Text(), primary_key=True, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
