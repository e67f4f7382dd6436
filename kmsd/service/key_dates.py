"""When something of a key falls due by itself: rotation, the warning that it is going to be destroyed, destruction."""

from __future__ import annotations

import msgspec

from kmsd.api.operation import KeyState
from kmsd.store.rows import KeyRow

DAY_MS = 24 * 3600 * 1000
# How long before a key is destroyed that is told once more: a day on which somebody is at work.
WARNING_MS = 3 * DAY_MS


def dated(row: KeyRow) -> KeyRow:
    """Return a key's row with `due_ms` as its other members have it.

    Only an enabled key is rotated: one that is disabled or pending deletion is when it is enabled again (AWS KMS,
    developer guide, rotating keys).
    """
    dates = []
    if row.rotation_days and row.key_state == KeyState.ENABLED:
        dates.append(row.rotation_next_ms)
    if row.key_state == KeyState.PENDING_DELETION:
        dates.append(row.deletion_ms if row.deletion_warned else row.deletion_ms - WARNING_MS)
    return msgspec.structs.replace(row, due_ms=min(dates, default=0))
