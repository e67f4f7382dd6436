"""Rows, stores and edits by somebody else, for the tests of the store."""

import contextlib
import hashlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from kmsd.store.rows import (
    AliasRow,
    CredentialRow,
    DefaultKeyRow,
    DomainKeyRow,
    GrantRow,
    HousekeepingRow,
    KeyRow,
    MaterialRow,
    MaterialUse,
    SecretRow,
    SettingsRow,
    TombstoneRow,
    UsageRow,
)
from kmsd.store.sql import SqlStore

MAC_KEY = bytes(range(32))
SET_KEY = bytes(range(32, 64))
KEY_IDS = [str(uuid.UUID(int=number << 96 | 0x4000_8000 << 48)) for number in range(1, 5)]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
times = st.integers(0, 2**53)
uids = st.integers(0, 2**32 - 1)
blobs = st.binary(max_size=200)

ROWS = st.one_of(
    st.builds(
        KeyRow,
        key_id=st.uuids().map(str),
        creator_uid=uids,
        creation_ms=times,
        policy_principals=st.dictionaries(texts, uids, max_size=3),
        tags=st.dictionaries(texts, texts, max_size=3),
        **dict.fromkeys(("description", "key_usage", "key_spec", "key_state"), texts),
        **dict.fromkeys(("origin", "key_manager", "policy"), texts),
        current_material=st.integers(1, 2**32 - 1),
        **dict.fromkeys(("rotation_days", "on_demand_rotations", "pending_window_days"), st.integers(0, 2**31 - 1)),
        **dict.fromkeys(("rotation_next_ms", "deletion_ms", "due_ms"), times),
        deletion_warned=st.booleans(),
        version=st.just(1),
    ),
    st.builds(
        MaterialRow,
        key_id=st.uuids().map(str),
        number=st.integers(1, 2**32 - 1),
        material_id=texts,
        spec=texts,
        domain_key_id=texts,
        wrapped=blobs,
        creation_ms=times,
        rotation=texts,
        version=st.just(1),
    ),
    st.builds(AliasRow, name=names, key_id=texts, creation_ms=times, updated_ms=times, version=st.just(1)),
    st.builds(
        GrantRow,
        grant_id=names,
        **dict.fromkeys(("key_id", "grantee", "retiring", "name", "grantee_text", "retiring_text"), texts),
        **dict.fromkeys(("issuer", "parent"), texts),
        **dict.fromkeys(("context_equals", "context_subset"), st.none() | st.dictionaries(texts, texts, max_size=3)),
        creation_ms=times,
        operations=st.lists(texts, max_size=3),
        version=st.just(1),
    ),
    st.builds(DefaultKeyRow, owner=names, key_id=texts, template=st.integers(0, 2**31 - 1), version=st.just(1)),
    st.builds(
        CredentialRow,
        unit=names,
        name=names,
        key_id=texts,
        blob=blobs,
        length=st.integers(0, 2**31 - 1),
        creation_ms=times,
        version=st.just(1),
    ),
    st.builds(
        UsageRow,
        key_id=names,
        **dict.fromkeys(("tracking_ms", "last_ms"), times),
        **dict.fromkeys(("operation", "request_id"), texts),
        counts=st.dictionaries(texts, times, max_size=3),
        materials=st.dictionaries(
            texts, st.builds(MaterialUse, encrypted=times, decrypted=times, last_ms=times), max_size=3
        ),
        version=st.just(1),
    ),
    st.builds(
        TombstoneRow,
        key_id=names,
        **dict.fromkeys(("destruction_ms", "creation_ms", "last_used_ms"), times),
        creator_uid=uids,
        **dict.fromkeys(("description", "key_spec"), texts),
        material_ids=st.lists(texts, max_size=3),
        grants_left=st.booleans(),
        version=st.just(1),
    ),
    st.builds(
        HousekeepingRow,
        **dict.fromkeys(("certain_ms", "uptime_ms", "slack_ms", "daily_ms", "counted_sequence"), times),
        boot_id=texts,
        version=st.just(1),
    ),
    st.builds(
        DomainKeyRow,
        domain_key_id=names,
        generation=st.integers(0, 2**63 - 1),
        wrapped=blobs,
        creation_ms=times,
        version=st.just(1),
    ),
    st.builds(SecretRow, name=names, domain_key_id=texts, wrapped=blobs, version=st.just(1)),
    st.builds(SettingsRow, account=texts, region=texts, version=st.just(1)),
)


def key_row(key_id: str = KEY_IDS[0], **changes: Any) -> KeyRow:
    members: dict[str, Any] = {
        "key_id": key_id,
        "creator_uid": 1000,
        "creation_ms": 1_700_000_000_000,
        "description": "for tests",
        "key_usage": "ENCRYPT_DECRYPT",
        "key_spec": "SYMMETRIC_DEFAULT",
        "key_state": "Enabled",
        "origin": "AWS_KMS",
        "key_manager": "CUSTOMER",
        "policy": "{}",
        "policy_principals": {"user:alice": 1000},
        "current_material": 1,
        "tags": {"team": "blue"},
        "version": 1,
    }
    return KeyRow(**{**members, **changes})


def material_row(key_id: str = KEY_IDS[0], number: int = 1, version: int = 1) -> MaterialRow:
    return MaterialRow(
        key_id=key_id,
        number=number,
        material_id=hashlib.sha256(f"{key_id}/{number}".encode()).hexdigest(),
        spec="SYMMETRIC_DEFAULT",
        domain_key_id="domain",
        wrapped=b"wrapped" * 10,
        creation_ms=1,
        version=version,
    )


def alias_row(name: str = "alias/a", key_id: str = KEY_IDS[0], version: int = 1) -> AliasRow:
    return AliasRow(name=name, key_id=key_id, creation_ms=1, updated_ms=version, version=version)


def grant_row(grant_id: str = "a" * 64, key_id: str = KEY_IDS[0], **changes: Any) -> GrantRow:
    members: dict[str, Any] = {
        "grant_id": grant_id,
        "key_id": key_id,
        "grantee": "uid:34",
        "retiring": "",
        "name": "",
        "creation_ms": 1,
        "grantee_text": "user:backup",
        "retiring_text": "",
        "issuer": "uid:1000",
        "operations": ["Decrypt"],
        "context_subset": {"app": "db"},
        "version": 1,
    }
    return GrantRow(**{**members, **changes})


def default_key_row(owner: str = "uid:1000/user:alice", version: int = 1) -> DefaultKeyRow:
    return DefaultKeyRow(owner=owner, key_id=KEY_IDS[0], template=version, version=version)


def credential_row(unit: str = "nginx.service", name: str = "tls-key", version: int = 1) -> CredentialRow:
    return CredentialRow(
        unit=unit, name=name, key_id=KEY_IDS[0], blob=b"blob" * version, length=4, creation_ms=1, version=version
    )


def usage_row(key_id: str = KEY_IDS[0], version: int = 1) -> UsageRow:
    return UsageRow(
        key_id=key_id,
        tracking_ms=1,
        last_ms=version,
        operation="Encrypt",
        request_id="r",
        counts={"Encrypt": version},
        materials={"1": MaterialUse(encrypted=version, last_ms=version)},
        version=version,
    )


def tombstone_row(key_id: str = KEY_IDS[0], version: int = 1) -> TombstoneRow:
    return TombstoneRow(
        key_id=key_id,
        destruction_ms=2,
        creation_ms=1,
        creator_uid=1000,
        description="for tests",
        key_spec="SYMMETRIC_DEFAULT",
        material_ids=["a" * 64],
        grants_left=version == 1,
        version=version,
    )


def housekeeping_row(version: int = 1) -> HousekeepingRow:
    return HousekeepingRow(certain_ms=version, boot_id="boot", uptime_ms=1, slack_ms=0, version=version)


def domain_key_row(domain_key_id: str = "domain", version: int = 1) -> DomainKeyRow:
    return DomainKeyRow(domain_key_id=domain_key_id, generation=1, wrapped=b"w" * 60, creation_ms=1, version=version)


def secret_row(name: str = "row-mac", version: int = 1) -> SecretRow:
    return SecretRow(name=name, domain_key_id="domain", wrapped=b"w" * 60, version=version)


def settings_row(version: int = 1) -> SettingsRow:
    return SettingsRow(account="123456789012", region="local", version=version)


def unseal(store: SqlStore, mac_key: bytes = MAC_KEY, set_key: bytes = SET_KEY) -> None:
    """Give the store its keys."""
    store.unseal(memoryview(bytearray(mac_key)), memoryview(bytearray(set_key)))


@contextlib.asynccontextmanager
async def opened(path: Path, *, mac_key: bytes | None = MAC_KEY) -> AsyncIterator[SqlStore]:
    """The store at `path`, unsealed and checked unless there is no key for it."""
    store = await SqlStore.open(path)
    try:
        if mac_key is not None:
            unseal(store, mac_key)
            await store.check_state()
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """The database of a closed store, in the hands of somebody who can write its file."""
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        yield connection


def hide_from_index(path: Path) -> None:
    """Edit the entry of `alias/a` in the index of the aliases' names, and not the row."""
    with edited(path) as connection:
        [[root]] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_aliases_1'")
    content = bytearray(path.read_bytes())
    at = content.index(b"alias/a", (root - 1) * 4096, root * 4096)
    content[at : at + 7] = b"alias/A"
    path.write_bytes(content)
