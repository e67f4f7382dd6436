"""What is stored: frozen rows, changes to them, and the interface of every store.

Times are integer milliseconds since 1970 UTC. `version` is 1 when a row is made and grows by one with each change.
Optional members have defaults, so that rows written before a member existed still read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all rows."""

    version: int


class KeyRow(Row, frozen=True, kw_only=True):
    """A key. `policy_principals` are the names in its policy as they were resolved when it was stored."""

    key_id: str
    creator_uid: int
    creation_ms: int
    description: str
    key_usage: str
    key_spec: str
    key_state: str
    origin: str
    key_manager: str
    policy: str
    policy_principals: dict[str, int]
    current_material: int
    tags: dict[str, str] = {}


class MaterialRow(Row, frozen=True, kw_only=True):
    """One version of a key's material, wrapped under a domain key. `material_id` is 64 hex digits."""

    key_id: str
    number: int
    material_id: str
    spec: str
    domain_key_id: str
    wrapped: bytes
    creation_ms: int


class AliasRow(Row, frozen=True, kw_only=True):
    """A key's name, beginning with `alias/`."""

    name: str
    key_id: str
    creation_ms: int
    updated_ms: int


class GrantRow(Row, frozen=True, kw_only=True):
    """A grant on a key. `grant_id` is 64 hex digits, `name` empty if it has none.

    `grantee` and `retiring` are principals as they are compared, "uid:34", "gid:50", "unit:nginx.service"; empty: there
    is none. `grantee_text` and `retiring_text` are what was said for them, "user:backup". `issuer` is who made it,
    `parent` the grant that let him, empty if a policy did.
    """

    grant_id: str
    key_id: str
    grantee: str
    retiring: str
    name: str
    creation_ms: int
    grantee_text: str
    retiring_text: str
    issuer: str
    operations: list[str]
    context_equals: dict[str, str] | None = None
    context_subset: dict[str, str] | None = None
    parent: str = ""


class DefaultKeyRow(Row, frozen=True, kw_only=True):
    """Whose default key a key is. `owner` is "uid:1000/user:alice" or "unit:nginx.service".

    `template` is the version of the policy that kmsd gave it.
    """

    owner: str
    key_id: str
    template: int


class CredentialRow(Row, frozen=True, kw_only=True):
    """A secret that systemd hands to a unit, as a ciphertext blob of the unit's key; `length` is the plaintext's."""

    unit: str
    name: str
    key_id: str
    blob: bytes
    length: int
    creation_ms: int


class DomainKeyRow(Row, frozen=True, kw_only=True):
    """A domain key, wrapped by the token's root key; the highest generation wraps what is new.

    `recovery_wrapped` is the same key wrapped by the recovery key, empty on a host without one.
    """

    domain_key_id: str
    generation: int
    wrapped: bytes
    creation_ms: int
    recovery_wrapped: bytes = b""


class SecretRow(Row, frozen=True, kw_only=True):
    """A secret of the service itself, wrapped like material; `public` is the public half of a pair."""

    name: str
    domain_key_id: str
    wrapped: bytes
    public: bytes = b""


class SettingsRow(Row, frozen=True, kw_only=True):
    """What ARNs are made of: the 12-digit account and the region.

    `counted`: the store has had a state row since its first commit, so that none can be missing.
    """

    account: str
    region: str
    counted: bool = False
    name: str = "settings"


class AnchorRow(Row, frozen=True, kw_only=True):
    """The last checkpoint of the audit trail (`kmsd.audit.checkpoint`): whoever cuts the trail has to come here too."""

    seq: int
    prev: str
    event_time: str
    key_id: str
    signature: str
    name: str = "audit"


class BackupRow(Row, frozen=True, kw_only=True):
    """The last backup: when, of which state of the store, and what was written."""

    creation_ms: int
    store_sequence: int
    sha256: str
    length: int
    name: str = "last"


class StateRow(Row, frozen=True, kw_only=True):
    """What rows there are in all other tables, as of commit number `sequence` (`kmsd.store.state`).

    `multisets` has for each table the masked multiset hash of its rows, `nonce` what the masks are made of. A table
    without rows may be missing. `store_id` is drawn with the first commit.
    """

    store_id: str
    sequence: int
    counts: dict[str, int]
    nonce: bytes
    multisets: dict[str, bytes]
    name: str = "state"


class Insert(msgspec.Struct, frozen=True):
    """Make a row that does not exist."""

    row: Row


class Replace(msgspec.Struct, frozen=True):
    """Change a row whose stored version is one less than the new one's."""

    row: Row


class Delete(msgspec.Struct, frozen=True):
    """Remove a row whose stored version is this one's."""

    row: Row


Change = Insert | Replace | Delete


@dataclass(frozen=True)
class StateReport:
    """Whether the rows are those that the last commit left.

    `findings` say in words what differs, without what rows hold; none: all is well. `adopted`: the rows were brought
    here by an upgrade from a kmsd that kept no state row, so that nothing is known of them yet. `store_id` and
    `sequence` are those of a state row that authenticates, else None and 0; so they are for a new store.
    """

    findings: tuple[str, ...]
    store_id: str | None
    sequence: int
    adopted: bool


class StoreError(RuntimeError):
    """Base of what a store says of itself."""


class RowExistsError(StoreError):
    """A row with this primary key exists; nothing was written."""

    def __init__(self, table: str, primary_key: str) -> None:
        super().__init__(f"{table} {primary_key} exists")
        self.table = table
        self.primary_key = primary_key


class RowChangedError(StoreError):
    """The row is gone, or has another version than expected; nothing was written."""

    def __init__(self, table: str, primary_key: str) -> None:
        super().__init__(f"{table} {primary_key} was changed by somebody else")
        self.table = table
        self.primary_key = primary_key


class StoreUnavailableError(StoreError):
    """The store cannot be read or written now: no space, no permission, another daemon has it; the text says which."""


class StoreFormatError(StoreError):
    """The file is not a store of kmsd, is damaged, or was written by a newer kmsd."""


class Store(Protocol):
    """Durable rows. Everything but the early rows needs `unseal` first and raises SealedError before.

    Reading a row whose MAC is wrong raises IntegrityError naming table and primary key.
    """

    async def key(self, key_id: str) -> KeyRow | None:
        """Return a key."""

    async def keys(self, *, after: str | None, limit: int) -> list[KeyRow]:
        """Return keys by ascending key id, those behind `after`."""

    async def count_keys(self, creator_uid: int) -> int:
        """Return how many keys a uid has made."""

    async def material(self, key_id: str, number: int) -> MaterialRow | None:
        """Return one version of a key's material."""

    async def alias(self, name: str) -> AliasRow | None:
        """Return an alias."""

    async def aliases(self, *, key_id: str | None, after: str | None, limit: int) -> list[AliasRow]:
        """Return aliases by ascending name, those behind `after`; with `key_id` only that key's."""

    async def grant(self, grant_id: str) -> GrantRow | None:
        """Return a grant."""

    async def grants(self, key_id: str, *, grantee: str | None, after: str | None, limit: int) -> list[GrantRow]:
        """Return grants of a key by ascending grant id, those behind `after`; with `grantee` only his."""

    async def grants_for(self, key_id: str, grantees: Collection[str]) -> list[GrantRow]:
        """Return all grants of a key for one of these grantees."""

    async def grants_named(self, key_id: str, name: str) -> list[GrantRow]:
        """Return the grants of a key with this name."""

    async def retirable_grants(self, retiring: str, *, after: str | None, limit: int) -> list[GrantRow]:
        """Return the grants that this principal may retire, by ascending grant id, those behind `after`."""

    async def count_grants(self, key_id: str) -> int:
        """Return how many grants a key has."""

    async def default_key(self, owner: str) -> DefaultKeyRow | None:
        """Return which key is the default key of `owner`."""

    async def default_keys(self, *, after: str | None, limit: int) -> list[DefaultKeyRow]:
        """Return default keys by ascending owner, those behind `after`."""

    async def credential(self, unit: str, name: str) -> CredentialRow | None:
        """Return a credential."""

    async def credentials(self, *, unit: str | None, after: tuple[str, str] | None, limit: int) -> list[CredentialRow]:
        """Return credentials by ascending unit and name, those behind `after`; with `unit` only that unit's."""

    async def domain_keys(self) -> list[DomainKeyRow]:
        """Return all domain keys; an early row: readable before `unseal`."""

    async def secret(self, name: str) -> SecretRow | None:
        """Return a secret of the service; an early row."""

    async def settings(self) -> SettingsRow | None:
        """Return the settings; an early row."""

    async def store_id(self) -> str | None:
        """Return the store's name; an early row, and not certain before `check_state` has found nothing."""

    async def anchor(self) -> AnchorRow | None:
        """Return the anchor of the audit trail."""

    async def last_backup(self) -> BackupRow | None:
        """Return what is known of the last backup."""

    async def commit(self, mutation_id: str | None, changes: Sequence[Change]) -> None:
        """Make all changes in one transaction that is durable on return, and remember `mutation_id` with them.

        None: nobody is going to ask whether it happened, and it must not push a mutation out of what is remembered.
        Raises RowExistsError (also for a mutation id used before), RowChangedError or StoreUnavailableError; nothing
        was written then, unless the message says that the disk failed to sync. A task that is cancelled while it waits
        leaves the commit done or not done; `committed` tells which. Raises IntegrityError unless `check_state` found
        nothing since the store was unsealed, or what it found was accepted.
        """

    async def committed(self, mutation_ids: Sequence[str]) -> set[str]:
        """Return those of the mutation ids whose commits happened, among the newest 10,000 mutations."""

    async def forget(self, mutation_ids: Sequence[str]) -> None:
        """Remember these mutations no longer; unknown ones are ignored."""

    def unseal(self, mac_key: memoryview, set_key: memoryview) -> None:
        """Verify and write rows with these keys (32 bytes each, borrowed) from now on: MACs, and multiset hashes."""

    async def verify_early_rows(self) -> None:
        """Verify the MACs of the early rows; raises IntegrityError."""

    @property
    def sequence(self) -> int:
        """The number of the last commit that is known; 0 before any is."""

    async def check_state(self) -> StateReport:
        """Compare all rows' places, versions and MACs with the state row; only if nothing is found, commits may follow.

        What rows hold is not read: each row's MAC vouches for that when it is.
        """

    async def accept_state(self, minimum_sequence: int) -> None:
        """Make the state row anew from the rows as they are; commits may follow. The anchor is forgotten.

        Its sequence is above `minimum_sequence` and every one that the store has told.
        """

    async def verify_all(self) -> int:
        """Verify every row there is and the file that they are in, and return how many there are.

        Raises IntegrityError naming a row that does not verify, or StoreFormatError. Takes 10 us a row.
        """

    def seal(self) -> None:
        """Forget the keys."""

    async def close(self) -> None:
        """Close the store."""
