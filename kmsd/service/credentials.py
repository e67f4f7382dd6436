"""Credentials: secrets that are kept for units, each under its unit's own key.

Who may keep one cannot read it back: what leaves the daemon leaves by `credential_delivery` alone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Protocol

from kmsd.api import credentials as api
from kmsd.api.errors import AlreadyExistsError, ConflictError, NotFoundError, ValidationError
from kmsd.api.operation import Operation
from kmsd.api.shapes import Empty
from kmsd.service.call import Call
from kmsd.service.identifiers import Arns
from kmsd.service.key_cipher import KeyCipher
from kmsd.service.loading import loaded
from kmsd.service.pagination import after, cut
from kmsd.service.records import KeyRecord
from kmsd.store.base import Change, Delete, Insert, Replace, RowChangedError, RowExistsError, Store
from kmsd.store.rows import CredentialRow

# Neither a unit's name nor a credential's has one.
_SEPARATOR = "/"


class UnitKeys(Protocol):
    """Where the keys of units come from."""

    async def key_of_unit(self, unit: str, call: Call) -> KeyRecord:
        """Return the key of a unit, which is made for `call` if it has none yet."""


class Credentials:
    """Handlers of credentials; `clock` gives seconds since 1970 UTC."""

    def __init__(
        self, *, store: Store, unit_keys: UnitKeys, cipher: KeyCipher, arns: Arns, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._unit_keys = unit_keys
        self._cipher = cipher
        self._arns = arns
        self._clock = clock

    async def create(self, call: Call, request: api.CreateCredentialRequest) -> api.CreateCredentialResponse:
        """Keep a secret for a unit, or replace it if that was asked for."""
        if len(request.unit) + len(request.name) > api.MAX_NAMES_CHARACTERS:
            raise ValidationError(
                "systemd could not ask for it: the names of unit and credential may have "
                f"{api.MAX_NAMES_CHARACTERS} characters together"
            )
        existing = await self._store.credential(request.unit, request.name)
        if existing is not None and not request.overwrite:
            raise _exists(request)
        key = await self._unit_keys.key_of_unit(request.unit, call)
        call.resources.append(key.arn)
        wanted = api.GetCredentialRequest(unit=request.unit, name=request.name)
        encrypted = await loaded(lambda: self._cipher.encrypt(key, request.plaintext, wanted.encryption_context))
        row = CredentialRow(
            unit=request.unit,
            name=request.name,
            key_id=key.key_id,
            blob=encrypted.blob,
            length=len(request.plaintext),
            creation_ms=int(self._clock() * 1000),
            version=1 if existing is None else existing.version + 1,
        )
        await self._commit(call, Insert(row) if existing is None else Replace(row), request)
        key.use.note_encryption(call.operation.name, call.request_id, encrypted.number)
        return api.CreateCredentialResponse(key_id=key.arn)

    async def _commit(self, call: Call, change: Change, request: api.CreateCredentialRequest) -> None:
        try:
            await self._store.commit(call.request_id, [change])
        except RowExistsError:
            if request.overwrite:
                raise _changed(request) from None
            raise _exists(request) from None
        except RowChangedError:
            raise _changed(request) from None

    async def list(self, call: Call, request: api.ListCredentialsRequest) -> api.ListCredentialsResponse:  # noqa: ARG002 - handlers share one form
        """List credentials by unit and name, without what they hold."""
        last = after(request.marker)
        unit, _, name = ("", "", "") if last is None else last.partition(_SEPARATOR)
        rows = await self._store.credentials(
            unit=request.unit, after=None if last is None else (unit, name), limit=request.limit + 1
        )
        shown, page = cut(rows, request.limit, lambda row: f"{row.unit}{_SEPARATOR}{row.name}")
        entries = [
            api.CredentialListEntry(
                unit=row.unit,
                name=row.name,
                key_id=row.key_id,
                length=row.length,
                creation_date=dt.datetime.fromtimestamp(row.creation_ms / 1000, dt.UTC),
            )
            for row in shown
        ]
        return api.ListCredentialsResponse(credentials=entries, next_marker=page.next_marker, truncated=page.truncated)

    async def delete(self, call: Call, request: api.DeleteCredentialRequest) -> Empty:
        """Delete a credential; its unit's key stays."""
        row = await self._store.credential(request.unit, request.name)
        if row is None:
            raise not_found(request)
        call.resources.append(self._arns.key(row.key_id))
        try:
            await self._store.commit(call.request_id, [Delete(row)])
        except RowChangedError:
            raise _changed(request) from None
        return Empty()


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.CREATE_CREDENTIAL: Credentials.create,
    api.LIST_CREDENTIALS: Credentials.list,
    api.DELETE_CREDENTIAL: Credentials.delete,
}


class _Named(Protocol):
    """What names a credential."""

    @property
    def unit(self) -> str:
        """Whose it is."""

    @property
    def name(self) -> str:
        """Which of the unit's it is."""


def not_found(named: _Named) -> NotFoundError:
    """Return what somebody is told who names a credential that is not kept."""
    return NotFoundError(f"no credential '{named.name}' is kept for {named.unit}")


def _exists(named: _Named) -> AlreadyExistsError:
    return AlreadyExistsError(f"a credential '{named.name}' is kept for {named.unit} already")


def _changed(named: _Named) -> ConflictError:
    return ConflictError(f"the credential '{named.name}' of {named.unit} was changed by somebody else meanwhile")
