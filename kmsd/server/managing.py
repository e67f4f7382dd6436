"""Everything that people do to keys: making, naming, tagging, switching, rotating and deleting them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.api.operation import Operation
from kmsd.server.custody import Custody
from kmsd.server.foundation import Foundation
from kmsd.service import aliases, key_deletion, key_rotation, keys, policies, tags, unsupported
from kmsd.service.default_keys import DefaultKeys
from kmsd.service.identifiers import Arns
from kmsd.service.key_changes import KeyChanges
from kmsd.service.table import bind
from kmsd.store.sql import SqlStore


class Managing:
    """What serves the operations that manage keys."""

    def __init__(
        self, foundation: Foundation, store: SqlStore, arns: Arns, custody: Custody, default_keys: DefaultKeys
    ) -> None:
        changes = KeyChanges(store, custody.records)
        self._keys = keys.Keys(
            store=store,
            versions=custody.versions,
            arns=arns,
            directory=foundation.directory,
            clock=foundation.clock,
            changes=changes,
            keys_per_uid=foundation.config.limits.keys_per_uid,
        )
        self._rotation = key_rotation.KeyRotation(
            store=store, changes=changes, rotation=custody.rotation, latest_ms=custody.calendar.latest_ms
        )
        self._deletion = key_deletion.KeyDeletion(
            changes=changes, versions=custody.versions, timekeeping=custody.timekeeping
        )
        self._aliases = aliases.Aliases(
            store=store, records=custody.records, default_keys=default_keys, arns=arns, clock=foundation.clock
        )
        self._policies = policies.Policies(changes=changes, arns=arns, directory=foundation.directory)
        self._tags = tags.Tags(changes=changes)

    @property
    def handlers(self) -> dict[Operation[Any, Any], Callable[..., Any]]:
        """The handlers of what is done to keys."""
        return {
            **bind(keys.HANDLERS, self._keys),
            **bind(key_rotation.HANDLERS, self._rotation),
            **bind(key_deletion.HANDLERS, self._deletion),
            **bind(aliases.HANDLERS, self._aliases),
            **bind(policies.HANDLERS, self._policies),
            **bind(tags.HANDLERS, self._tags),
            **unsupported.HANDLERS,
        }
