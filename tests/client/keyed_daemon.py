"""A scripted daemon that has some keys, and knows who may ask what about them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from kmsd.api.deletion import (
    CancelKeyDeletionResponse,
    GetKeyLastUsageResponse,
    KeyLastUsage,
    MaterialUsage,
    ScheduleKeyDeletionResponse,
)
from kmsd.api.errors import AccessDeniedError, NotFoundError
from kmsd.api.grants import GrantListEntry, GrantOperation, ListGrantsResponse
from kmsd.api.keys import DescribeKeyResponse, ListAliasesResponse, ListKeysResponse
from kmsd.api.operation import KeyState, KeyUsage
from kmsd.api.rotation import (
    GetKeyRotationStatusResponse,
    KeyMaterialState,
    ListKeyRotationsResponse,
    RotateKeyOnDemandResponse,
    RotationsListEntry,
    RotationType,
)
from kmsd.api.shapes import (
    AliasListEntry,
    Empty,
    EncryptionAlgorithm,
    KeyListEntry,
    KeyManager,
    KeyMetadata,
    KeyOrigin,
    KeySpec,
)
from kmsd_client.cli.main import main
from tests.client.scripted import Answer, ScriptedDaemon

MADE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DUE = dt.datetime(2027, 11, 26, 23, 30, tzinfo=dt.UTC)
_PREFIX = "arn:aws:kms:local-host-1:123456789012:"
_PAGE = 2  # so that few make several pages


def key_id(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


class KeyedDaemon:
    """Keys numbered from 1, of which `names` gives the aliases; a test changes what is to be different.

    `refused` are pairs of an operation and a key's id, or "*", that are refused; `done` is what was asked for that
    changes something.
    """

    def __init__(self, daemon: ScriptedDaemon, *names: list[str]) -> None:
        self.daemon = daemon
        self.names = {key_id(number): aliases for number, aliases in enumerate(names, 1)}
        self.metadata = {one: _metadata(one) for one in self.names}
        self.refused: set[tuple[str, str]] = set()
        self.materials = 1
        self.rotation_days: int | None = None
        self.last_use: KeyLastUsage | None = None
        self.usage: list[MaterialUsage] = []
        self.grants: list[GrantListEntry] = []
        self.done: list[Any] = []
        daemon.answer = self._answer

    def kms(self, *words: str) -> int:
        return main(["--socket", str(self.daemon.path), *words])

    def change(self, number: int, **members: Any) -> None:
        """Let the metadata of a key be different."""
        one = key_id(number)
        self.metadata[one] = msgspec.structs.replace(self.metadata[one], **members)

    def count(self, operation: str) -> int:
        """How often an operation was asked for."""
        return self.daemon.asked.count(operation)

    def _answer(self, name: str, request: Any) -> Answer:
        found = self._found(getattr(request, "key_id", None))
        if {(name, found), (name, "*")} & self.refused:
            raise AccessDeniedError(
                f"User: uid 1000 is not authorized to perform: kms:{name} on resource: {_PREFIX}key/{found}"
            )
        answers: dict[str, Callable[[Any, str], msgspec.Struct]] = {
            "ListKeys": self._keys,
            "ListAliases": self._aliases,
            "ListGrants": self._some_grants,
            "DescribeKey": lambda _, one: DescribeKeyResponse(key_metadata=self.metadata[one]),
            "GetKeyRotationStatus": self._rotation_status,
            "ListKeyRotations": self._rotations,
            "GetKeyLastUsage": self._last_usage,
        }
        if name in answers:
            return answers[name](request, found), []
        self.done.append(request)
        changes: dict[str, msgspec.Struct] = {
            "RotateKeyOnDemand": RotateKeyOnDemandResponse(key_id=found),
            "ScheduleKeyDeletion": ScheduleKeyDeletionResponse(
                key_id=found, deletion_date=DUE, key_state=KeyState.PENDING_DELETION, pending_window_in_days=7
            ),
            "CancelKeyDeletion": CancelKeyDeletionResponse(key_id=found),
        }
        return changes.get(name, Empty()), []

    def _found(self, name: str | None) -> str:
        if name is None:
            return ""
        for one, aliases in self.names.items():
            if name in {one, f"{_PREFIX}key/{one}", *aliases}:
                return one
        raise NotFoundError(f"{name} is not found")

    def _keys(self, request: Any, _found: str) -> ListKeysResponse:
        page, marker = _cut(self.names, request.marker, request.limit)
        keys = [KeyListEntry(key_id=one, key_arn=f"{_PREFIX}key/{one}") for one in page]
        return ListKeysResponse(keys=keys, next_marker=marker, truncated=marker is not None)

    def _aliases(self, request: Any, found: str) -> ListAliasesResponse:
        all_of_them = [(name, one) for one, names in self.names.items() for name in names if found in {"", one}]
        page, marker = _cut(all_of_them, request.marker, _PAGE)
        aliases = [
            AliasListEntry(
                alias_name=name,
                alias_arn=_PREFIX + name,
                target_key_id=one,
                creation_date=MADE,
                last_updated_date=MADE,
            )
            for name, one in page
        ]
        return ListAliasesResponse(aliases=aliases, next_marker=marker, truncated=marker is not None)

    def _some_grants(self, request: Any, _found: str) -> ListGrantsResponse:
        page, marker = _cut(self.grants, request.marker, request.limit)
        return ListGrantsResponse(grants=page, next_marker=marker, truncated=marker is not None)

    def _rotation_status(self, _request: Any, found: str) -> GetKeyRotationStatusResponse:
        days = self.rotation_days
        return GetKeyRotationStatusResponse(
            key_rotation_enabled=days is not None,
            key_id=found,
            rotation_period_in_days=days,
            next_rotation_date=None if days is None else DUE,
        )

    def _rotations(self, request: Any, found: str) -> ListKeyRotationsResponse:
        materials = [
            RotationsListEntry(
                key_id=found,
                key_material_id=f"{number:064x}"[::-1],
                key_material_state=(
                    KeyMaterialState.CURRENT if number == self.materials else KeyMaterialState.NON_CURRENT
                ),
                rotation_date=MADE if number > 1 else None,
                rotation_type=RotationType.ON_DEMAND if number > 1 else None,
            )
            for number in range(1, self.materials + 1)
        ]
        page, marker = _cut(materials, request.marker, _PAGE)
        return ListKeyRotationsResponse(rotations=page, next_marker=marker, truncated=marker is not None)

    def _last_usage(self, _request: Any, found: str) -> GetKeyLastUsageResponse:
        return GetKeyLastUsageResponse(
            key_id=f"{_PREFIX}key/{found}",
            tracking_start_date=MADE,
            key_creation_date=MADE,
            key_last_usage=self.last_use,
            uses={"Encrypt": 12, "Decrypt": 3} if self.last_use else {},
            material=self.usage,
        )


def used(before: dt.timedelta, operation: str = "Decrypt") -> KeyLastUsage:
    """Return a use so long ago."""
    return KeyLastUsage(operation=operation, timestamp=dt.datetime.now(dt.UTC) - before)


def granted(*grantees: str) -> list[GrantListEntry]:
    """Return a grant to each of these."""
    return [
        GrantListEntry(
            key_id=_PREFIX,
            grant_id=f"{number:064x}",
            name="",
            creation_date=MADE,
            grantee_principal=grantee,
            issuing_account="123456789012",
            operations=[GrantOperation.DECRYPT],
        )
        for number, grantee in enumerate(grantees)
    ]


def _cut(items: Iterable[Any], marker: str | None, limit: int) -> tuple[list[Any], str | None]:
    everything, start = [*items], int(marker or 0)
    end = start + limit
    return everything[start:end], str(end) if end < len(everything) else None


def _metadata(one: str) -> KeyMetadata:
    return KeyMetadata(
        account_id="123456789012",
        key_id=one,
        arn=f"{_PREFIX}key/{one}",
        creation_date=MADE,
        enabled=True,
        description="",
        key_usage=KeyUsage.ENCRYPT_DECRYPT,
        key_state=KeyState.ENABLED,
        origin=KeyOrigin.AWS_KMS,
        key_manager=KeyManager.CUSTOMER,
        key_spec=KeySpec.SYMMETRIC_DEFAULT,
        encryption_algorithms=[EncryptionAlgorithm.SYMMETRIC_DEFAULT],
        multi_region=False,
        current_key_material_id="a" * 64,
    )
