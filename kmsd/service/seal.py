"""Sealing and unsealing: when the daemon holds keys.

Unsealing, with N domain keys, is one job of the token (or of none, with the recovery key):

1. Read the domain-key records, the wrapped row-MAC key and the settings, which need no MAC key to be read: the token's
   own authenticated encryption and the wrap of the hierarchy vouch for the first two.
2. The token unwraps the domain keys into secret memory.
3. Unwrap the row-MAC key and derive the set key from it; from now on every row is verified.
4. Verify the rows of step 1 like all others.
5. Unwrap the audit key.
6. See that the rows are those that the last commit left, and that store, trail and token tell the same (`integrity`).
7. Only now the audit key signs the trail: a signature vouches for all that is before it.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from kmsd.api.errors import IntegrityError, RecoveryUnavailableError
from kmsd.audit.writer import Trail
from kmsd.hsm.root import PinSource, WrappedDomainKey
from kmsd.material.hierarchy import Hierarchy, Place, RecoveryWrapped
from kmsd.material.versions import Versions
from kmsd.memory.arena import Arena, Slot
from kmsd.service import audit_key
from kmsd.service.audit_key import AuditKey
from kmsd.service.integrity import Integrity
from kmsd.service.records import KeyRecords
from kmsd.service.row_keys import ROW_MAC, ROW_MAC_BYTES, ROW_MAC_PLACE, derive_set_key
from kmsd.store.base import Change, Insert, Store
from kmsd.store.rows import DomainKeyRow, SecretRow, SettingsRow

# The recovery key itself, so that it can wrap domain keys that are made later.
_RECOVERY = "recovery"
_RECOVERY_PLACE = Place("secrets", _RECOVERY, 0, "RECOVERY_256")


@dataclass(frozen=True)
class Means:
    """What the keys are to be opened with.

    `pin` is used instead of the configured one. With a `recovery_key`, which is borrowed, the token is not asked at
    all. `accepts_changes`: an administrator accepts the records as they are, should they not be as kmsd left them.
    """

    pin: PinSource | None = None
    recovery_key: memoryview | None = None
    accepts_changes: bool = False


# Is told what an administrator accepts, in sentences, before it is accepted; what it raises prevents that.
Accepting: TypeAlias = Callable[[list[str]], Awaitable[None]]

# The daemon by itself, at its start or when what prevented it has passed.
CONFIGURED = Means()


class Seal:
    """Holds the keys that the rest of the service works with, or does not. `clock` gives seconds since 1970 UTC."""

    def __init__(
        self,
        *,
        store: Store,
        trail: Trail,
        hierarchy: Hierarchy,
        versions: Versions,
        records: KeyRecords,
        arena: Arena,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._trail = trail
        self._integrity = Integrity(store, trail)
        self._hierarchy = hierarchy
        self._versions = versions
        self._records = records
        self._arena = arena
        self._clock = clock
        # The keys of the store, also while it is not yet certain that they are of use: row-MAC key and set key.
        self._store_keys: list[Slot] = []
        self._audit_key: AuditKey | None = None
        self._sealed = True
        # The audit key's raw public half, also after sealing; None before the first unseal.
        self.audit_public_key: bytes | None = None
        # Whether the store has a recovery key, for people who may bring shares; None before anybody looked.
        self.has_recovery: bool | None = None

    @property
    def sealed(self) -> bool:
        """Whether the daemon holds no keys."""
        return self._sealed

    async def initialize(
        self, settings: SettingsRow, pin: PinSource | None = None, recovery_key: memoryview | None = None
    ) -> None:
        """Make the first domain key and the service's own secrets in an empty store; leaves the daemon unsealed.

        Whatever this raises leaves it sealed. `pin` is used instead of the configured one. With a `recovery_key`,
        which is borrowed, the store can be unsealed by it as well.
        """
        now_ms = int(self._clock() * 1000)
        domain_key_id = str(uuid.uuid4())
        made = await self._hierarchy.create(domain_key_id, generation=1, pin=pin)
        try:
            mac_key = self._arena.random(ROW_MAC_BYTES)
            self._give_keys(mac_key)
            await self._store.check_state()
            domain_key = DomainKeyRow(
                domain_key_id=domain_key_id,
                generation=made.generation,
                wrapped=made.wrapped,
                creation_ms=now_ms,
                recovery_wrapped=(
                    self._hierarchy.wrap_for_recovery(domain_key_id, made.generation, recovery_key)
                    if recovery_key is not None
                    else b""
                ),
                version=1,
            )
            self._audit_key = audit = AuditKey.generate(self._arena)
            secrets = [self._wrapped(ROW_MAC_PLACE, mac_key.view), audit.row(self._hierarchy)]
            if recovery_key is not None:
                secrets.append(self._wrapped(_RECOVERY_PLACE, recovery_key))
            settings = msgspec.structs.replace(settings, counted=True)
            changes: list[Change] = [Insert(settings), Insert(domain_key), *map(Insert, secrets)]
            await self._store.commit(str(uuid.uuid4()), changes)
            self._sign_by(audit)
        except BaseException:
            self.seal()
            raise
        self._sealed = False
        self.has_recovery = recovery_key is not None

    async def unseal(self, accepting: Accepting, means: Means = CONFIGURED) -> None:
        """Bring the keys into memory.

        Raises a RootError when the token refuses, RecoveryUnavailableError when the store has no recovery key,
        RecoverySharesError when it is another's, IntegrityError for records that are not as kmsd left them.
        """
        rows = await self.look_for_recovery()
        row_mac, audit = await self._store.secret(ROW_MAC), await self._store.secret(audit_key.NAME)
        if not rows or row_mac is None:
            raise IntegrityError("the store has no domain key or no row-MAC key; restore it from a backup")
        token_sequence = await self._open_domain_keys(rows, means)
        try:
            self._give_keys(self._hierarchy.unwrap(ROW_MAC_PLACE, row_mac.domain_key_id, row_mac.wrapped))
            await self._store.verify_early_rows()
            if audit is None:  # from the first kmsd, which signed nothing
                self._audit_key = key = AuditKey.generate(self._arena)
            else:
                self._audit_key = key = AuditKey.unwrap(audit, self._hierarchy)
            await self._check(token_sequence, key, means, accepting)
            if audit is None:
                await self._store.commit(str(uuid.uuid4()), [Insert(key.row(self._hierarchy))])
            self._sign_by(key)
        except BaseException:
            self.seal()
            raise
        self._sealed = False

    async def _open_domain_keys(self, rows: Sequence[DomainKeyRow], means: Means) -> int | None:
        """Bring the domain keys into memory; return the sequence that the token remembers, if it does."""
        if means.recovery_key is not None:
            self._unwrap_by_recovery(rows, means.recovery_key)
            return None
        wrapped = [WrappedDomainKey(row.domain_key_id, row.generation, row.wrapped) for row in rows]
        return await self._hierarchy.unseal(wrapped, means.pin, anchor=await self._store.store_id())

    def _give_keys(self, mac_key: Slot) -> None:
        """Give the store its keys, which are kept here."""
        self._store_keys.append(mac_key)
        set_key = derive_set_key(mac_key, self._arena)
        self._store_keys.append(set_key)
        self._store.unseal(mac_key.view, set_key.view)

    async def _check(self, token_sequence: int | None, signer: AuditKey, means: Means, accepting: Accepting) -> None:
        report = await self._store.check_state()
        findings = await self._integrity.findings(report, token_sequence, signer)
        if findings and not means.accepts_changes:
            raise IntegrityError(
                f"the records are not as kmsd left them: {'; '.join(findings)}. Find out why; if an administrator "
                "accepts them as they are: kms unseal --accept-changes (or kmsd dev --accept-changes)"
            )
        if findings:
            await accepting(findings)
        if findings or report.adopted:
            await self._store.accept_state(max(self._trail.store_sequence, token_sequence or 0))

    def _sign_by(self, key: AuditKey) -> None:
        """Have the trail signed, by a key that the store has."""
        self.audit_public_key = key.public
        self._trail.signer = key

    def _wrapped(self, place: Place, secret: memoryview) -> SecretRow:
        return SecretRow(
            name=place.record,
            domain_key_id=self._hierarchy.current_domain_key,
            wrapped=self._hierarchy.wrap(place, secret),
            version=1,
        )

    async def look_for_recovery(self) -> Sequence[DomainKeyRow]:
        """See whether the store has a recovery key, and return the domain keys; neither is verified yet."""
        rows = await self._store.domain_keys()
        self.has_recovery = bool(rows) and all(row.recovery_wrapped for row in rows)
        return rows

    def _unwrap_by_recovery(self, rows: Sequence[DomainKeyRow], recovery_key: memoryview) -> None:
        if not self.has_recovery:
            raise no_recovery()
        self._hierarchy.unseal_by_recovery(
            [RecoveryWrapped(row.domain_key_id, row.generation, row.recovery_wrapped) for row in rows], recovery_key
        )

    def seal(self) -> None:
        """Wipe every key from memory."""
        self._sealed = True
        self._trail.signer = None
        if self._audit_key is not None:
            self._audit_key.release()
            self._audit_key = None
        self._store.seal()
        self._records.forget_all()
        self._versions.seal()
        self._hierarchy.seal()
        while self._store_keys:
            self._store_keys.pop().release()


def no_recovery() -> RecoveryUnavailableError:
    """Return what somebody is told who brings shares to a host that has none."""
    return RecoveryUnavailableError("this host was set up without recovery shares: only its token opens the keys")
