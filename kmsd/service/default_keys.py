"""Default keys: every user and every service has a key without asking for one.

`alias/kmsd/default` means the key of whoever says it, and `alias/kmsd/unit` that of his system unit (`key_owners`). The
key is made when it is first meant, if the host policy lets the caller (`kms:CreateDefaultKey`), and is kmsd's own: its
policy is a template (`kmsd.access.default_keys`), which lets nobody change it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections import OrderedDict
from collections.abc import Callable

from kmsd.access.default_keys import TEMPLATE, default_key_template
from kmsd.api.errors import AccessDeniedError, ConflictError, LimitExceededError, NotFoundError
from kmsd.api.operation import KeyState, KeyUsage
from kmsd.api.shapes import KeyManager, KeyOrigin, KeySpec
from kmsd.identity.principals import Caller
from kmsd.material.specs import SPECS
from kmsd.material.versions import NotLoadedError, Versions
from kmsd.service.call import Call
from kmsd.service.identifiers import Arns
from kmsd.service.key_owners import DEFAULT_ALIAS, UNIT_ALIAS, Owner, check_nameable, owner_of, unit_owner
from kmsd.service.own_changes import OwnChange, OwnChanges
from kmsd.service.records import KeyRecord, KeyRecords
from kmsd.store.base import Insert, Store
from kmsd.store.rows import AliasRow, DefaultKeyRow, KeyRow

# The host policy's action; there is no operation of this name.
CREATE_DEFAULT_KEY = "kms:CreateDefaultKey"

_SPEC = KeySpec.SYMMETRIC_DEFAULT
_FIRST_MATERIAL = 1


class DefaultKeyNotLoadedError(NotLoadedError):
    """Which key is the default key of `owner` is not in memory, or it has to be made for the call that means it."""

    def __init__(self, default_keys: DefaultKeys, owner: Owner, call: Call, alias: str) -> None:
        super().__init__()
        self._default_keys = default_keys
        self._parameters = (owner, call, alias)

    async def load(self) -> None:
        """Read which it is, or make it; raises a KmsError."""
        await self._default_keys.bring(*self._parameters)


class DefaultKeys:
    """Finds default keys, and makes them; which are whose is remembered for `capacity` owners.

    `clock` gives seconds since 1970 UTC, `keys_per_uid` bounds what one uid may have made.
    """

    def __init__(
        self,
        *,
        store: Store,
        versions: Versions,
        records: KeyRecords,
        arns: Arns,
        changes: OwnChanges,
        clock: Callable[[], float],
        keys_per_uid: int,
        capacity: int,
    ) -> None:
        self._store = store
        self._versions = versions
        self._records = records
        self._changes = changes
        self._clock = clock
        self._keys_per_uid = keys_per_uid
        self._capacity = capacity
        self._arns = arns
        # Both aliases, by each of their forms.
        self.aliases = {form: name for name in (DEFAULT_ALIAS, UNIT_ALIAS) for form in (name, arns.alias(name))}
        # Whose key is which; that never changes.
        self._key_ids: OrderedDict[str, str] = OrderedDict()
        self._creating = asyncio.Lock()

    def key_id(self, alias: str, call: Call) -> str:
        """Return the id of the key that `alias`, one of `aliases`, means for a call.

        Raises DefaultKeyNotLoadedError, and NotFoundError or AccessDeniedError for who can have no such key.
        """
        owner = owner_of(call.caller, alias)
        key_id = self._key_ids.get(owner.text)
        if key_id is None:
            raise DefaultKeyNotLoadedError(self, owner, call, alias)
        self._key_ids.move_to_end(owner.text)
        return key_id

    async def existing(self, alias: str, caller: Caller) -> str:
        """Return the id of the key that `alias` means for a caller; raises NotFoundError rather than make one."""
        owner = owner_of(caller, alias)
        key_id = await self._find(owner)
        if key_id is None:
            raise self._not_made(owner, alias)
        return key_id

    async def key_of_unit(self, unit: str, call: Call) -> KeyRecord:
        """Return the key of a unit, which is made for `call` if it has none yet."""
        key_id = await self.bring(unit_owner(unit), call, UNIT_ALIAS)
        return await self._records.load(key_id)

    async def aliases_of(self, caller: Caller) -> list[AliasRow]:
        """Return the aliases that mean a key for this caller now, by name, as if they were rows; none is made."""
        found = []
        for name in (DEFAULT_ALIAS, UNIT_ALIAS):
            try:
                row = await self._store.default_key(owner_of(caller, name).text)
            except (AccessDeniedError, NotFoundError):
                continue
            key = await self._store.key(row.key_id) if row is not None else None
            if key is not None:
                times = {"creation_ms": key.creation_ms, "updated_ms": key.creation_ms}
                found.append(AliasRow(name=name, key_id=key.key_id, version=1, **times))
        return found

    async def bring(self, owner: Owner, call: Call, alias: str) -> str:
        """Return the id of an owner's key, read or made, and keep it in memory; raises a KmsError."""
        key_id = await self._find(owner)
        if key_id is None:
            async with self._creating:
                key_id = await self._find(owner) or await self._make(owner, call, alias)
        self._key_ids[owner.text] = key_id
        if len(self._key_ids) > self._capacity:
            self._key_ids.popitem(last=False)
        return key_id

    async def _find(self, owner: Owner) -> str | None:
        row = await self._store.default_key(owner.text)
        return None if row is None else row.key_id

    def _not_made(self, owner: Owner, alias: str) -> NotFoundError:
        return NotFoundError(
            f"Alias {self._arns.alias(alias)} is not found: {owner.principal} has no such key yet, the first use makes "
            "it"
        )

    async def _make(self, owner: Owner, call: Call, alias: str) -> str:
        check_nameable(owner)
        # What the caller was allowed before is what the record of his request has to tell.
        allowed = call.decision
        call.permit(CREATE_DEFAULT_KEY, resource=self._arns.alias(alias))
        decision, call.decision = call.decision, allowed
        if call.is_dry_run:
            raise self._not_made(owner, alias)
        uid = call.caller.uid
        if await self._store.count_keys(uid) >= self._keys_per_uid:
            raise LimitExceededError(f"uid {uid} has made {self._keys_per_uid} keys, which is its limit")
        change = self._creation(owner, uid)
        change = dataclasses.replace(
            change,
            parameters={"owner": owner.text, "onRequest": call.request_id},
            actor=call.session.actor,
            decision=decision,
            budget=call.budget,
        )
        try:
            await self._changes.commit(change)
        except ConflictError:
            # Somebody made it who hung up, so that he no longer kept others from it.
            if (key_id := await self._find(owner)) is None:
                raise
            return key_id
        return change.key_id

    def _creation(self, owner: Owner, creator_uid: int) -> OwnChange:
        now_ms = int(self._clock() * 1000)
        key_id = str(uuid.uuid4())
        material = self._versions.create(key_id, _FIRST_MATERIAL, _SPEC, SPECS[_SPEC].material_bytes, now_ms)
        key = KeyRow(
            key_id=key_id,
            creator_uid=creator_uid,
            creation_ms=now_ms,
            description=owner.description,
            key_usage=KeyUsage.ENCRYPT_DECRYPT,
            key_spec=_SPEC,
            key_state=KeyState.ENABLED,
            origin=KeyOrigin.AWS_KMS,
            key_manager=KeyManager.AWS,
            policy=default_key_template(owner.principal),
            policy_principals=owner.resolved,
            current_material=_FIRST_MATERIAL,
            version=1,
        )
        whose = DefaultKeyRow(owner=owner.text, key_id=key_id, template=TEMPLATE, version=1)
        return OwnChange("CreateDefaultKey", key_id, [Insert(key), Insert(material), Insert(whose)])
