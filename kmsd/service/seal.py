"""Sealing and unsealing: when the daemon holds keys.

Unsealing, with N domain keys, is one job of the token (or of none, with the recovery key):

1. Read the domain-key records, the wrapped row-MAC key and the settings, which need no MAC key to be read: the token's
   own authenticated encryption and the wrap of the hierarchy vouch for the first two.
2. The token unwraps the domain keys into secret memory.
3. Unwrap the row-MAC key; from now on every row is verified.
4. Verify the rows of step 1 like all others.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from kmsd.api.errors import IntegrityError, RecoveryUnavailableError
from kmsd.hsm.root import PinSource, WrappedDomainKey
from kmsd.material.hierarchy import Hierarchy, Place, RecoveryWrapped
from kmsd.material.versions import Versions
from kmsd.memory.arena import Arena, Slot
from kmsd.service.records import KeyRecords
from kmsd.store.base import DomainKeyRow, Insert, SecretRow, SettingsRow, Store

_ROW_MAC = "row-mac"
# HMAC-SHA-256 takes a key of its own output's size (RFC 2104, section 3).
_ROW_MAC_BYTES = 32
_ROW_MAC_PLACE = Place("secrets", _ROW_MAC, 0, "HMAC_256")
# The recovery key itself, so that it can wrap domain keys that are made later.
_RECOVERY = "recovery"
_RECOVERY_PLACE = Place("secrets", _RECOVERY, 0, "RECOVERY_256")


class Seal:
    """Holds the keys that the rest of the service works with, or does not. `clock` gives seconds since 1970 UTC."""

    def __init__(
        self,
        *,
        store: Store,
        hierarchy: Hierarchy,
        versions: Versions,
        records: KeyRecords,
        arena: Arena,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._hierarchy = hierarchy
        self._versions = versions
        self._records = records
        self._arena = arena
        self._clock = clock
        self._mac_key: Slot | None = None
        # Whether the store has a recovery key, for people who may bring shares; None before anybody looked.
        self.has_recovery: bool | None = None

    @property
    def sealed(self) -> bool:
        """Whether the daemon holds no keys."""
        return self._mac_key is None

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
        mac_key = self._arena.random(_ROW_MAC_BYTES)
        try:
            self._store.unseal(mac_key.view)
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
            secrets = [self._wrapped(_ROW_MAC_PLACE, mac_key.view)]
            if recovery_key is not None:
                secrets.append(self._wrapped(_RECOVERY_PLACE, recovery_key))
            await self._store.commit(
                str(uuid.uuid4()), [Insert(settings), Insert(domain_key), *(Insert(secret) for secret in secrets)]
            )
        except BaseException:
            self.seal()
            mac_key.release()
            raise
        self._mac_key = mac_key
        self.has_recovery = recovery_key is not None

    def _wrapped(self, place: Place, secret: memoryview) -> SecretRow:
        return SecretRow(
            name=place.record,
            domain_key_id=self._hierarchy.current_domain_key,
            wrapped=self._hierarchy.wrap(place, secret),
            version=1,
        )

    async def unseal(self, pin: PinSource | None = None, recovery_key: memoryview | None = None) -> None:
        """Bring the keys into memory; raises a RootError when the token refuses, IntegrityError for a changed store.

        `pin` is used instead of the configured one. With a `recovery_key`, which is borrowed, the token is not asked;
        raises RecoveryUnavailableError when the store has none, RecoverySharesError when it is another's.
        """
        rows = await self.look_for_recovery()
        secret = await self._store.secret(_ROW_MAC)
        if not rows or secret is None:
            raise IntegrityError("the store has no domain key or no row-MAC key; restore it from a backup")
        if recovery_key is None:
            wrapped = [WrappedDomainKey(row.domain_key_id, row.generation, row.wrapped) for row in rows]
            await self._hierarchy.unseal(wrapped, pin)
        else:
            self._unwrap_by_recovery(rows, recovery_key)
        mac_key: Slot | None = None
        try:
            mac_key = self._hierarchy.unwrap(_ROW_MAC_PLACE, secret.domain_key_id, secret.wrapped)
            self._store.unseal(mac_key.view)
            await self._store.verify_early_rows()
        except BaseException:
            self.seal()
            if mac_key is not None:
                mac_key.release()
            raise
        self._mac_key = mac_key

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
        self._store.seal()
        self._records.forget_all()
        self._versions.seal()
        self._hierarchy.seal()
        if self._mac_key is not None:
            self._mac_key.release()
            self._mac_key = None


def no_recovery() -> RecoveryUnavailableError:
    """Return what somebody is told who brings shares to a host that has none."""
    return RecoveryUnavailableError("this host was set up without recovery shares: only its token opens the keys")
