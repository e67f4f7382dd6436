"""Aliases: names of keys.

Who gives, moves or takes away a name needs the permission on the alias, by the host policy, and on each of its keys, by
that key's policy. A change of an alias is a change of its keys as well: it is committed with a new version of their
rows, so that none happens by a policy or in a state that a key no longer has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from kmsd.api import keys as api
from kmsd.api.errors import AlreadyExistsError, ConflictError, LimitExceededError, NotFoundError, ValidationError
from kmsd.api.operation import KeyAccess, Operation
from kmsd.api.shapes import AliasListEntry, Empty
from kmsd.service.calendar import moment
from kmsd.service.call import Call
from kmsd.service.default_keys import DefaultKeys
from kmsd.service.identifiers import Arns, check_alias
from kmsd.service.key_changes import check_changeable
from kmsd.service.loading import loaded
from kmsd.service.pagination import after, cut
from kmsd.service.records import ALIASES_PER_KEY, KeyRecord, KeyRecords
from kmsd.store.base import Change, Delete, Insert, Replace, RowChangedError, RowExistsError, Store
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
        # By key; held from authorizing and counting to committing, so that nobody is told of a conflict with himself
        # who asks for many at once. What may take long on behalf of one key keeps no other waiting.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, call: Call, request: api.CreateAliasRequest, key: KeyRecord) -> Empty:
        """Give a key a name that is free."""
        check_alias(request.alias_name)
        now_ms = self._now_ms()
        row = AliasRow(name=request.alias_name, key_id=key.key_id, creation_ms=now_ms, updated_ms=now_ms, version=1)
        async with self._turn(key.key_id):
            key = await self._permitted_target(call, key, request.alias_name)
            await self._check_room(key)
            await self._commit(call, row.name, Insert(row), [key])
        return Empty()

    async def update(self, call: Call, request: api.UpdateAliasRequest, key: KeyRecord) -> Empty:
        """Let a name mean another key; the one that it meant may be in any state."""
        check_alias(request.alias_name)
        async with self._turn(key.key_id):
            key = await self._permitted_target(call, key, request.alias_name)
            row = await self._existing(request.alias_name)
            moved = msgspec.structs.replace(row, key_id=key.key_id, updated_ms=self._now_ms(), version=row.version + 1)
            if row.key_id == key.key_id:
                await self._commit(call, row.name, Replace(moved), [key])
                return Empty()
            keys = [*await self._permitted_owner(call, row), key]
            self._check_usage(row.name, keys)
            await self._check_room(key)
            await self._commit(call, row.name, Replace(moved), keys)
        return Empty()

    async def delete(self, call: Call, request: api.DeleteAliasRequest) -> Empty:
        """Take a name away; its key may be in any state."""
        check_alias(request.alias_name)
        call.permit(resource=self._arns.alias(request.alias_name))
        row = await self._existing(request.alias_name)
        async with self._turn(row.key_id):
            await self._commit(call, row.name, Delete(row), await self._permitted_owner(call, row))
        return Empty()

    async def list(self, call: Call, request: api.ListAliasesRequest) -> api.ListAliasesResponse:
        """List aliases by name, the caller's own of default keys among them; raises NotFoundError for no key."""
        key_id = None
        if request.key_id is not None:
            key_id = (await self._records.fetch(request.key_id, KeyAccess.ID_OR_ARN)).key_id
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

    def _turn(self, key_id: str) -> asyncio.Lock:
        # Who holds it or waits for it keeps it in the table.
        return self._turns.setdefault(key_id, asyncio.Lock())

    async def _permitted_target(self, call: Call, key: KeyRecord, name: str) -> KeyRecord:
        """Return the key as it is by now, and make sure that the caller may still name it so.

        Others may have waited before him, and have changed its policy or state.
        """
        key = await self._records.fetch(key.key_id, KeyAccess.ID_OR_ARN)
        await loaded(partial(call.use, key))
        check_changeable(key)
        call.permit(resource=self._arns.alias(name))
        return key

    async def _existing(self, name: str) -> AliasRow:
        row = await self._store.alias(name)
        if row is None:
            raise NotFoundError(f"Alias {self._arns.alias(name)} is not found.")
        return row

    async def _permitted_owner(self, call: Call, row: AliasRow) -> Sequence[KeyRecord]:
        """Return the key that an alias names, on which the caller may act; nothing if the key is gone."""
        try:
            key = await self._records.fetch(row.key_id, KeyAccess.ID_OR_ARN)
        except NotFoundError:
            return []
        # Nothing in the request names it.
        call.named = None
        await loaded(partial(call.permit_key, key))
        return [key]

    def _check_usage(self, name: str, keys: Sequence[KeyRecord]) -> None:
        """Raise ValidationError unless all of these keys are for the same: programs use aliases without looking."""
        usages = sorted({key.usage for key in keys})
        if len(usages) > 1:
            raise ValidationError(
                f"{self._arns.alias(name)} cannot be moved between keys for {' and '.join(usages)}: delete the alias, "
                "and create it for the other key"
            )

    async def _check_room(self, key: KeyRecord) -> None:
        existing = await self._store.aliases(key_id=key.key_id, after=None, limit=ALIASES_PER_KEY)
        if len(existing) >= ALIASES_PER_KEY:
            raise LimitExceededError(f"{key.arn} has {ALIASES_PER_KEY} aliases, which is the limit")

    async def _commit(self, call: Call, name: str, change: Change, keys: Sequence[KeyRecord]) -> None:
        """Commit a change of an alias that the caller may make to these keys as they are."""
        touched = [Replace(msgspec.structs.replace(key.row, version=key.row.version + 1)) for key in keys]
        arn = self._arns.alias(name)
        try:
            await self._store.commit(call.request_id, [*touched, change])
        except RowExistsError:
            raise AlreadyExistsError(f"An alias with the name {arn} already exists") from None
        except RowChangedError:
            raise ConflictError(
                f"{arn} or one of its keys was changed by somebody else at the same time; look at it and ask again"
            ) from None
        finally:
            # Also when it is not known whether it was committed.
            for key in keys:
                self._records.forget(key.key_id)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _entry(self, row: AliasRow) -> AliasListEntry:
        return AliasListEntry(
            alias_name=row.name,
            alias_arn=self._arns.alias(row.name),
            target_key_id=row.key_id,
            creation_date=moment(row.creation_ms),
            last_updated_date=moment(row.updated_ms),
        )


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.CREATE_ALIAS: Aliases.create,
    api.UPDATE_ALIAS: Aliases.update,
    api.DELETE_ALIAS: Aliases.delete,
    api.LIST_ALIASES: Aliases.list,
}
