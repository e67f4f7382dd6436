"""What is stored: frozen rows, one class for each table.

Times are integer milliseconds since 1970 UTC. `version` is 1 when a row is made and grows by one with each change.
Optional members have defaults, so that rows written before a member existed still read.
"""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all rows."""

    version: int


class KeyRow(Row, frozen=True, kw_only=True):
    """A key. `policy_principals` are the names in its policy as they were resolved when it was stored.

    `rotation_days` is the period of automatic rotation, 0 while it is off, and `rotation_next_ms` when the next one is
    due; `on_demand_rotations` counts the others. `deletion_ms` is when a key that is pending deletion is destroyed,
    0 for all others; `deletion_warned` tells whether it was told that this is near. `due_ms` is when the first of all
    that falls due by itself does so, 0 if nothing does (`kmsd.service.key_dates`).
    """

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
    rotation_days: int = 0
    rotation_next_ms: int = 0
    on_demand_rotations: int = 0
    deletion_ms: int = 0
    pending_window_days: int = 0
    deletion_warned: bool = False
    due_ms: int = 0


class MaterialRow(Row, frozen=True, kw_only=True):
    """One version of a key's material, wrapped under a domain key. `material_id` is 64 hex digits.

    `rotation` is AUTOMATIC or ON_DEMAND, and tells why there is a version above the first.
    """

    key_id: str
    number: int
    material_id: str
    spec: str
    domain_key_id: str
    wrapped: bytes
    creation_ms: int
    rotation: str = ""


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


class MaterialUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was done with one version of a key's material, and when it was used last."""

    encrypted: int = 0
    decrypted: int = 0
    last_ms: int = 0


class UsageRow(Row, frozen=True, kw_only=True):
    """What was done with a key since `tracking_ms`.

    `operation` and `request_id` are those of the last use. `counts` has the number of uses by operation, `materials`
    what became of each version of the material, by its number; uses that were counted again from the trail after a
    crash are in the former only.
    """

    key_id: str
    tracking_ms: int
    last_ms: int
    operation: str
    request_id: str
    counts: dict[str, int] = {}
    materials: dict[str, MaterialUse] = {}


class TombstoneRow(Row, frozen=True, kw_only=True):
    """What is left of a key that was destroyed.

    `grants_left`: it may still have grants, which are of no use any more and are being removed.
    """

    key_id: str
    destruction_ms: int
    creation_ms: int
    creator_uid: int
    description: str
    key_spec: str
    material_ids: list[str]
    last_used_ms: int = 0
    grants_left: bool = False


class HousekeepingRow(Row, frozen=True, kw_only=True):
    """How far housekeeping has come.

    `certain_ms` is the time that was sure to have passed when the host, in the boot named `boot_id`, had been up for
    `uptime_ms`; the wall clock may still run ahead of it by `slack_ms` (`kmsd.service.calendar`). `doubt` is the doubt
    in the clock that the trail tells of, empty if it is believed. `daily_ms` is when the daily work was done last. Uses
    of keys are counted up to record `counted_sequence` of the audit trail, whose hash is `counted_digest`, and of those
    since `tracking_ms` none is missing; 0: none was ever counted.
    """

    certain_ms: int
    boot_id: str
    uptime_ms: int
    slack_ms: int
    doubt: str = ""
    daily_ms: int = 0
    counted_sequence: int = 0
    counted_digest: str = ""
    tracking_ms: int = 0
    name: str = "housekeeping"


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
