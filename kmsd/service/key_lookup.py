"""Finding the key that a request names: the same name may mean one key for one caller and another for the next."""

from __future__ import annotations

from kmsd.api.operation import KeyAccess
from kmsd.identity.principals import Caller
from kmsd.service.call import Call
from kmsd.service.default_keys import DefaultKeys
from kmsd.service.loading import loaded
from kmsd.service.records import KeyRecord, KeyRecords


class KeyLookup:
    """Finds keys by what requests say, the aliases of default keys included."""

    def __init__(self, records: KeyRecords, default_keys: DefaultKeys) -> None:
        self._records = records
        self._default_keys = default_keys
        self._own = default_keys.aliases

    def get(self, identifier: str, call: Call) -> KeyRecord:
        """Return the key that `identifier` names when `call` says it; raises a NotLoadedError."""
        own = self._own.get(identifier)
        return self._records.get(identifier if own is None else self._default_keys.key_id(own, call))

    async def fetch(self, identifier: str, access: KeyAccess, call: Call) -> KeyRecord:
        """Return the key from memory or else from the store; `access` tells whether aliases are accepted."""
        own = self._own.get(identifier)
        if own is None or access is not KeyAccess.ANY:
            return await self._records.fetch(identifier, access)
        key_id = await loaded(lambda: self._default_keys.key_id(own, call))
        return await self._records.fetch(key_id, access)

    async def find(self, identifier: str, access: KeyAccess, caller: Caller) -> KeyRecord:
        """Return the key that `identifier` would name if `caller` said it; none is made."""
        own = self._own.get(identifier) if access is KeyAccess.ANY else None
        named = identifier if own is None else await self._default_keys.existing(own, caller)
        return await self._records.fetch(named, access)
