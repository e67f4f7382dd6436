"""Making, describing and listing keys."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from kmsd.access.decision import would_lock_out
from kmsd.access.policy import default_key_policy, named_in, parse_policy
from kmsd.api import keys as api
from kmsd.api.errors import (
    LimitExceededError,
    MalformedPolicyDocumentError,
    UnsupportedOperationError,
    ValidationError,
)
from kmsd.api.operation import KeyState, KeyUsage, Operation
from kmsd.api.shapes import Empty, KeyListEntry, KeyManager, KeyMetadata, KeyOrigin, KeySpec
from kmsd.identity.directory import Directory
from kmsd.material.specs import SPECS
from kmsd.material.versions import Versions
from kmsd.service.calendar import moment
from kmsd.service.call import Call
from kmsd.service.identifiers import Arns
from kmsd.service.key_changes import KeyChanges
from kmsd.service.pagination import after, cut
from kmsd.service.records import KeyRecord
from kmsd.service.tags import checked_tags
from kmsd.store.base import Insert, Store
from kmsd.store.rows import KeyRow, MaterialRow

# Material is numbered from 1; 0 stands for secrets that have no versions.
_FIRST_MATERIAL = 1
# What stands for the id of a key that is being made: the host policy is asked whether it may have tags, and what
# permits that must not permit tagging every key there is.
_NEW_KEY = "new"


class Keys:
    """Handlers of keys; `clock` gives seconds since 1970 UTC, `keys_per_uid` bounds what one uid may make."""

    def __init__(
        self,
        *,
        store: Store,
        versions: Versions,
        arns: Arns,
        directory: Directory,
        clock: Callable[[], float],
        changes: KeyChanges,
        keys_per_uid: int,
    ) -> None:
        self._store = store
        self._versions = versions
        self._arns = arns
        self._directory = directory
        self._clock = clock
        self._changes = changes
        self._keys_per_uid = keys_per_uid
        # Held from counting to committing, so that who asks for many at once gets no more. The store commits one
        # after the other anyway.
        self._creating = asyncio.Lock()

    async def create(self, call: Call, request: api.CreateKeyRequest) -> api.CreateKeyResponse:
        """Make a key with fresh material; the row and its material are committed together."""
        facts = SPECS[request.key_spec]
        if request.key_usage not in facts.usages:
            raise ValidationError(f"KeyUsage {request.key_usage} is not compatible with KeySpec {request.key_spec}")
        if request.multi_region:
            raise UnsupportedOperationError("multi-Region keys are not offered: keys stay on the host that made them")
        tags = checked_tags(request.tags)
        if tags:
            call.permit("kms:TagResource", resource=self._arns.key(_NEW_KEY))
        policy = request.policy or default_key_policy(self._arns.account, call.caller.uid, call.caller.user)
        names = await self._directory.known(named_in(policy))
        parsed = parse_policy(policy, account=self._arns.account, names=names)
        if not request.bypass_policy_lockout_safety_check and would_lock_out(parsed, call.caller, facts=call):
            raise MalformedPolicyDocumentError(
                "The new key policy will not allow you to update the key policy in the future."
            )
        now_ms = int(self._clock() * 1000)
        key_id = str(uuid.uuid4())
        material = self._versions.create(key_id, _FIRST_MATERIAL, request.key_spec, facts.material_bytes, now_ms)
        row = KeyRow(
            key_id=key_id,
            creator_uid=call.caller.uid,
            creation_ms=now_ms,
            description=request.description,
            key_usage=request.key_usage,
            key_spec=request.key_spec,
            key_state=KeyState.ENABLED,
            origin=request.origin,
            key_manager=KeyManager.CUSTOMER,
            policy=policy,
            policy_principals=dict(parsed.principals),
            current_material=_FIRST_MATERIAL,
            tags=tags,
            version=1,
        )
        async with self._creating:
            if await self._store.count_keys(call.caller.uid) >= self._keys_per_uid:
                raise LimitExceededError(
                    f"uid {call.caller.uid} has made {self._keys_per_uid} keys, which is its limit"
                )
            # Before the commit, so that the record names the key also when it is not known whether that happened.
            call.resources.append(self._arns.key(key_id))
            await self._store.commit(call.request_id, [Insert(row), Insert(material)])
        return api.CreateKeyResponse(key_metadata=self._metadata(row, material))

    async def describe(self, call: Call, request: api.DescribeKeyRequest, key: KeyRecord) -> api.DescribeKeyResponse:  # noqa: ARG002 - handlers share one form
        """Tell a key's metadata."""
        material = await self._store.material(key.key_id, key.row.current_material)
        return api.DescribeKeyResponse(key_metadata=self._metadata(key.row, material))

    async def enable(self, call: Call, request: api.EnableKeyRequest, key: KeyRecord) -> Empty:  # noqa: ARG002 - handlers share one form
        """Let a key be used again."""
        await self._changes.make(call, key, key_state=KeyState.ENABLED)
        return Empty()

    async def disable(self, call: Call, request: api.EnableKeyRequest, key: KeyRecord) -> Empty:  # noqa: ARG002 - handlers share one form
        """Let a key not be used until it is enabled again."""
        await self._changes.make(call, key, key_state=KeyState.DISABLED)
        return Empty()

    async def describe_anew(self, call: Call, request: api.UpdateKeyDescriptionRequest, key: KeyRecord) -> Empty:
        """Change what is said of a key."""
        await self._changes.make(call, key, description=request.description)
        return Empty()

    async def list(self, call: Call, request: api.ListKeysRequest) -> api.ListKeysResponse:  # noqa: ARG002 - handlers share one form
        """List all keys; whoever may list sees ids, and nothing else, of keys that others use."""
        rows = await self._store.keys(after=after(request.marker), limit=request.limit + 1)
        shown, page = cut(rows, request.limit, lambda row: row.key_id)
        entries = [KeyListEntry(key_id=row.key_id, key_arn=self._arns.key(row.key_id)) for row in shown]
        return api.ListKeysResponse(keys=entries, next_marker=page.next_marker, truncated=page.truncated)

    def _metadata(self, row: KeyRow, material: MaterialRow | None) -> KeyMetadata:
        spec = KeySpec(row.key_spec)
        return KeyMetadata(
            account_id=self._arns.account,
            key_id=row.key_id,
            arn=self._arns.key(row.key_id),
            creation_date=moment(row.creation_ms),
            enabled=row.key_state == KeyState.ENABLED,
            description=row.description,
            key_usage=KeyUsage(row.key_usage),
            key_state=KeyState(row.key_state),
            origin=KeyOrigin(row.origin),
            key_manager=KeyManager(row.key_manager),
            key_spec=spec,
            encryption_algorithms=list(SPECS[spec].encryption_algorithms),
            multi_region=False,
            current_key_material_id=material.material_id if material else "",
            deletion_date=moment(row.deletion_ms) if row.deletion_ms else None,
            pending_deletion_window_in_days=row.pending_window_days or None,
        )


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.CREATE_KEY: Keys.create,
    api.DESCRIBE_KEY: Keys.describe,
    api.LIST_KEYS: Keys.list,
    api.ENABLE_KEY: Keys.enable,
    api.DISABLE_KEY: Keys.disable,
    api.UPDATE_KEY_DESCRIPTION: Keys.describe_anew,
}
