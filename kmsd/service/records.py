"""Key records in memory: verified rows with their compiled policies, a bounded number of them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from kmsd.access.policy import Policy, parse_policy
from kmsd.api.errors import NotFoundError
from kmsd.api.operation import KeyAccess, KeyState, KeyUsage
from kmsd.api.shapes import KeySpec
from kmsd.identity.directory import Directory, Snapshot
from kmsd.identity.principals import NameServiceError
from kmsd.material.versions import NotLoadedError
from kmsd.service.granting import NAMES_TRUSTED_SECONDS, GrantCache, KeyGrants
from kmsd.service.identifiers import AliasName, Arns, KeyName
from kmsd.service.key_use import KeyUse
from kmsd.service.uses import KeyUses
from kmsd.store.base import Store
from kmsd.store.rows import KeyRow

# How long a key's policy is used with names that could not be looked up, and so allow nobody anything.
NAMES_MISSED_SECONDS = 1.0

# AWS KMS quota: aliases of one key.
ALIASES_PER_KEY = 50

# Stands for all key ids.
_EVERYTHING = "*"


class KeyRecord:
    """A key as the daemon uses it, and what is done with it; its grants are read when somebody asks for his."""

    __slots__ = ("aliases", "arn", "expires", "grants", "key_id", "policy", "row", "spec", "state", "usage", "use")

    def __init__(
        self,
        row: KeyRow,
        arn: str,
        policy: Policy,
        *,
        aliases: tuple[str, ...],
        grants: KeyGrants,
        use: KeyUse,
        expires: float,
    ) -> None:
        self.row = row
        self.use = use
        self.aliases = aliases
        self.grants = grants
        self.key_id = row.key_id
        self.arn = arn
        self.policy = policy
        self.expires = expires
        self.state = KeyState(row.key_state)
        self.usage = KeyUsage(row.key_usage)
        self.spec = KeySpec(row.key_spec)


class KeyNotLoadedError(NotLoadedError):
    """The key that `identifier` names is not in memory."""

    def __init__(self, records: KeyRecords, identifier: str) -> None:
        super().__init__()
        self._records = records
        self._identifier = identifier

    async def load(self) -> None:
        """Read it; raises NotFoundError when there is no such key."""
        await self._records.load(self._identifier)


class KeyRecords:
    """A bounded cache of `capacity` keys and as many of the names they were asked by.

    Whoever commits a change of a key, its aliases or its grants calls `forget` before anybody is told of it, so that
    the next request on any connection is decided by what is stored. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        arns: Arns,
        directory: Directory,
        uses: KeyUses,
        *,
        capacity: int,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._uses = uses
        self._arns = arns
        self._directory = directory
        self._capacity = capacity
        self._clock = clock
        self._records: OrderedDict[str, KeyRecord] = OrderedDict()
        self._identifiers: OrderedDict[str, str] = OrderedDict()
        self._grants = GrantCache(store, directory, clock=clock)
        # What was forgotten since each load under way began: it must not bring back what it read before.
        self._loads: list[set[str]] = []

    def get(self, identifier: str) -> KeyRecord:
        """Return the key that `identifier`, in any of its forms, names; raises KeyNotLoadedError."""
        key_id = self._identifiers.get(identifier)
        record = self._records.get(key_id) if key_id is not None else None
        if record is None or key_id is None or (record.expires != math.inf and record.expires < self._clock()):
            raise KeyNotLoadedError(self, identifier)
        self._records.move_to_end(key_id)
        return record

    async def load(self, identifier: str) -> KeyRecord:
        """Read the key that `identifier` names from the store and keep it in memory.

        Raises NotFoundError when there is none, InvalidArnError for a malformed ARN.
        """
        name = self._arns.parse(identifier)
        forgotten: set[str] = set()
        self._loads.append(forgotten)
        try:
            while True:
                forgotten.clear()
                record = await self._read(await self._key_id_of(name))
                if record.key_id not in forgotten and _EVERYTHING not in forgotten:
                    self._remember(record)
                    self._remember_identifier(identifier, record.key_id)
                    return record
        finally:
            self._loads = [one for one in self._loads if one is not forgotten]

    async def _read(self, key_id: str) -> KeyRecord:
        row = await self._store.key(key_id)
        if row is None:
            raise NotFoundError(f"Key '{self._arns.key(key_id)}' does not exist")
        aliases = await self._store.aliases(key_id=key_id, after=None, limit=ALIASES_PER_KEY)
        # With the key, so that what policies ask of its uses is there when they ask.
        use = self._uses.of(row, await self._store.usage(key_id))
        return await self._compile(row, tuple(alias.name for alias in aliases), use)

    async def fetch(self, identifier: str, access: KeyAccess) -> KeyRecord:
        """Return the key from memory or else from the store; `access` tells whether aliases are accepted."""
        if access is not KeyAccess.ANY:
            self._arns.parse_key(identifier)
        try:
            return self.get(identifier)
        except KeyNotLoadedError:
            return await self.load(identifier)

    async def _key_id_of(self, name: KeyName | AliasName) -> str:
        if isinstance(name, KeyName):
            return name.key_id
        alias = await self._store.alias(name.alias)
        if alias is None:
            raise NotFoundError(f"Alias {self._arns.alias(name.alias)} is not found.")
        return alias.key_id

    async def _compile(self, row: KeyRow, aliases: tuple[str, ...], use: KeyUse) -> KeyRecord:
        trusted_seconds = NAMES_TRUSTED_SECONDS
        try:
            names = await self._directory.known(row.policy_principals)
        except NameServiceError:
            # Then nobody is allowed anything by name, and everybody whom a name may mean is denied.
            names = Snapshot({}, {})
            trusted_seconds = NAMES_MISSED_SECONDS
        policy = parse_policy(row.policy, account=self._arns.account, names=names, resolved=row.policy_principals)
        expires = self._clock() + trusted_seconds if policy.principals else math.inf
        return KeyRecord(
            row,
            self._arns.key(row.key_id),
            policy,
            aliases=aliases,
            grants=self._grants.of(row.key_id),
            use=use,
            expires=expires,
        )

    def _remember(self, record: KeyRecord) -> None:
        # One that is still here was not forgotten: only its names are older, and its grants are those in force.
        if (former := self._records.pop(record.key_id, None)) is not None:
            record.grants = former.grants
        self._records[record.key_id] = record
        if len(self._records) > self._capacity:
            self._drop(next(iter(self._records)))

    def _remember_identifier(self, identifier: str, key_id: str) -> None:
        self._identifiers[identifier] = key_id
        self._identifiers.move_to_end(identifier)
        if len(self._identifiers) > self._capacity:
            self._identifiers.popitem(last=False)

    def _drop(self, key_id: str) -> None:
        record = self._records.pop(key_id, None)
        if record is not None:
            record.grants.forget_all()

    def forget(self, key_id: str) -> None:
        """Forget a key and the aliases it was asked by: something of it was committed."""
        for forgotten in self._loads:
            forgotten.add(key_id)
        self._drop(key_id)
        for identifier in [one for one, meant in self._identifiers.items() if meant == key_id]:
            del self._identifiers[identifier]

    def forget_all(self) -> None:
        """Forget everything: the store was sealed."""
        for forgotten in self._loads:
            forgotten.add(_EVERYTHING)
        for key_id in tuple(self._records):
            self._drop(key_id)
        self._identifiers.clear()
