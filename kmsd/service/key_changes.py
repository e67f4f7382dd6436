"""How a key's row is changed: one version after the other, and seen by the very next request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kmsd.api.errors import ConflictError, UnsupportedOperationError
from kmsd.api.shapes import KeyManager
from kmsd.service.call import Call
from kmsd.service.key_dates import dated
from kmsd.service.records import KeyRecord, KeyRecords
from kmsd.store.base import Change, Replace, RowChangedError, Store


class KeyChanges:
    """Changes the rows of keys that people manage."""

    def __init__(self, store: Store, records: KeyRecords) -> None:
        self._store = store
        self._records = records

    async def make(self, call: Call, key: KeyRecord, *also: Change, **members: Any) -> None:
        """Give members of the row that `call` was authorized against new values; nothing happens if they have them.

        `also` is committed with that.

        Raises UnsupportedOperationError for a key that kmsd manages, and ConflictError if somebody else changed the
        row since it was read.
        """
        check_changeable(key)
        if all(getattr(key.row, name) == value for name, value in members.items()):
            return
        row = dated(msgspec.structs.replace(key.row, version=key.row.version + 1, **members))
        await self.commit(call, key, [Replace(row), *also])

    async def commit(self, call: Call, key: KeyRecord, changes: Sequence[Change]) -> None:
        """Commit changes of a key; raises ConflictError if somebody else changed one of the rows since it was read."""
        try:
            await self._store.commit(call.request_id, changes)
        except RowChangedError:
            raise ConflictError(
                f"{key.arn} was changed by somebody else at the same time; look at it and ask again"
            ) from None
        finally:
            # Also when it failed: a commit that could not be synced may have happened.
            self._records.forget(key.key_id)


def check_changeable(key: KeyRecord) -> None:
    """Raise UnsupportedOperationError for a key that kmsd manages."""
    if key.row.key_manager == KeyManager.AWS:
        raise UnsupportedOperationError(f"{key.arn} is managed by kmsd: nobody else changes it")
