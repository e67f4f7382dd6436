"""Aliases: names of keys."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

from kmsd.api import keys as api
from kmsd.api.errors import AlreadyExistsError, LimitExceededError
from kmsd.api.operation import Operation
from kmsd.api.shapes import AliasListEntry, Empty
from kmsd.service.call import Call
from kmsd.service.default_keys import DefaultKeys
from kmsd.service.identifiers import Arns, check_new_alias
from kmsd.service.pagination import after, cut
from kmsd.service.records import ALIASES_PER_KEY, KeyRecord, KeyRecords
from kmsd.store.base import Insert, RowExistsError, Store
from kmsd.store.rows import AliasRow


class Aliases:
    """Handlers of aliases; `clock` gives seconds since 1970 UTC."""

    def __init__(
        self,
        *,
        store: Store,
        records: KeyRecords,
        default_keys: DefaultKeys,
        arns: Arns,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._records = records
        self._default_keys = default_keys
        self._arns = arns
        self._clock = clock
        # Held from counting to committing, so that who asks for many at once gets no more.
        self._creating = asyncio.Lock()

    async def create(self, call: Call, request: api.CreateAliasRequest, key: KeyRecord) -> Empty:
        """Name a key; the caller needs the permission on the key (checked by now) and on the alias."""
        check_new_alias(request.alias_name)
        call.permit(resource=self._arns.alias(request.alias_name))
        now_ms = int(self._clock() * 1000)
        row = AliasRow(name=request.alias_name, key_id=key.key_id, creation_ms=now_ms, updated_ms=now_ms, version=1)
        async with self._creating:
            existing = await self._store.aliases(key_id=key.key_id, after=None, limit=ALIASES_PER_KEY)
            if len(existing) >= ALIASES_PER_KEY:
                raise LimitExceededError(f"{key.arn} has {ALIASES_PER_KEY} aliases, which is the limit")
            try:
                await self._store.commit(call.request_id, [Insert(row)])
            except RowExistsError:
                raise AlreadyExistsError(
                    f"An alias with the name {self._arns.alias(request.alias_name)} already exists"
                ) from None
            finally:
                # Also when it is not known whether it was committed.
                self._records.forget(key.key_id)
        return Empty()

    async def list(self, call: Call, request: api.ListAliasesRequest) -> api.ListAliasesResponse:
        """List aliases by name, the caller's own of default keys among them."""
        key_id = self._arns.parse_key(request.key_id).key_id if request.key_id is not None else None
        last = after(request.marker)
        rows = await self._store.aliases(key_id=key_id, after=last, limit=request.limit + 1)
        own = [
            row
            for row in await self._default_keys.aliases_of(call.caller)
            if row.name > (last or "") and key_id in {None, row.key_id}
        ]
        rows = sorted([*rows, *own], key=lambda row: row.name)[: request.limit + 1]
        shown, page = cut(rows, request.limit, lambda row: row.name)
        entries = [self._entry(row) for row in shown]
        return api.ListAliasesResponse(aliases=entries, next_marker=page.next_marker, truncated=page.truncated)

    def _entry(self, row: AliasRow) -> AliasListEntry:
        return AliasListEntry(
            alias_name=row.name,
            alias_arn=self._arns.alias(row.name),
            target_key_id=row.key_id,
            creation_date=dt.datetime.fromtimestamp(row.creation_ms / 1000, dt.UTC),
            last_updated_date=dt.datetime.fromtimestamp(row.updated_ms / 1000, dt.UTC),
        )


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.CREATE_ALIAS: Aliases.create,
    api.LIST_ALIASES: Aliases.list,
}
