"""Sealing and unsealing: when the daemon holds keys.

Unsealing, with N domain keys, is one job of the token:

1. Read the domain-key records, the wrapped row-MAC key and the settings, which need no MAC key to be read: the token's
   own authenticated encryption and the wrap of the hierarchy vouch for the first two.
2. The token unwraps the domain keys into secret memory.
3. Unwrap the row-MAC key and derive the set key from it; from now on every row is verified.
4. Verify the rows of step 1 like all others.
5. See that the rows are those that the last commit left.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from kmsd.api.errors import IntegrityError
from kmsd.hsm.root import PinSource, WrappedDomainKey
from kmsd.material.derivation import Label, derive_into
from kmsd.material.hierarchy import Hierarchy, Place
from kmsd.material.versions import Versions
from kmsd.memory.arena import Arena, Slot
from kmsd.service.records import KeyRecords
from kmsd.store.base import DomainKeyRow, Insert, SecretRow, SettingsRow, Store

_ROW_MAC = "row-mac"
# HMAC-SHA-256 takes a key of its own output's size (RFC 2104, section 3).
_ROW_MAC_BYTES = 32
# RFC 7693 takes BLAKE2b keys of up to 64 bytes; this is as strong as the key that it is derived from.
_SET_KEY_BYTES = 32
_ROW_MAC_PLACE = Place("secrets", _ROW_MAC, 0, "HMAC_256")


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
        # The keys of the store, also while it is not yet certain that they are of use: row-MAC key and set key.
        self._store_keys: list[Slot] = []
        self._sealed = True

    @property
    def sealed(self) -> bool:
        """Whether the daemon holds no keys."""
        return self._sealed

    async def initialize(self, settings: SettingsRow, pin: PinSource | None = None) -> None:
        """Make the first domain key and the service's own secrets in an empty store; leaves the daemon unsealed.

        Whatever this raises leaves it sealed. `pin` is used instead of the configured one.
        """
        now_ms = int(self._clock() * 1000)
        domain_key_id = str(uuid.uuid4())
        made = await self._hierarchy.create(domain_key_id, generation=1, pin=pin)
        try:
            mac_key = self._arena.random(_ROW_MAC_BYTES)
            await self._open_store(mac_key)
            domain_key = DomainKeyRow(
                domain_key_id=domain_key_id,
                generation=made.generation,
                wrapped=made.wrapped,
                creation_ms=now_ms,
                version=1,
            )
            secret = SecretRow(
                name=_ROW_MAC,
                domain_key_id=domain_key_id,
                wrapped=self._hierarchy.wrap(_ROW_MAC_PLACE, mac_key.view),
                version=1,
            )
            await self._store.commit(str(uuid.uuid4()), [Insert(settings), Insert(domain_key), Insert(secret)])
        except BaseException:
            self.seal()
            raise
        self._sealed = False

    async def unseal(self, pin: PinSource | None = None) -> None:
        """Bring the keys into memory; raises a RootError when the token refuses, IntegrityError for a changed store.

        `pin` is used instead of the configured one.
        """
        rows = await self._store.domain_keys()
        secret = await self._store.secret(_ROW_MAC)
        if not rows or secret is None:
            raise IntegrityError("the store has no domain key or no row-MAC key; restore it from a backup")
        wrapped = [WrappedDomainKey(row.domain_key_id, row.generation, row.wrapped) for row in rows]
        await self._hierarchy.unseal(wrapped, pin)
        try:
            await self._open_store(self._hierarchy.unwrap(_ROW_MAC_PLACE, secret.domain_key_id, secret.wrapped))
        except BaseException:
            self.seal()
            raise
        self._sealed = False

    async def _open_store(self, mac_key: Slot) -> None:
        """Give the store its keys, and see that its rows are those that it was left with; raises IntegrityError."""
        self._store_keys.append(mac_key)
        set_key = self._arena.lease(_SET_KEY_BYTES)
        self._store_keys.append(set_key)
        # The row-MAC key is both an HMAC key and, here, the key of a KDF made of the same HMAC. Their inputs differ in
        # the fifth byte: 0x01, the version of the row format, and the first letter of the label.
        derive_into(mac_key.view, Label.STORE_SET, b"", set_key.view)
        self._store.unseal(mac_key.view, set_key.view)
        await self._store.verify_early_rows()
        report = await self._store.check_state()
        if report.findings:
            raise IntegrityError(f"the store is not as kmsd left it: {'; '.join(report.findings)}")
        if report.adopted:
            await self._store.accept_state(0)

    def seal(self) -> None:
        """Wipe every key from memory."""
        self._sealed = True
        self._store.seal()
        self._records.forget_all()
        self._versions.seal()
        self._hierarchy.seal()
        while self._store_keys:
            self._store_keys.pop().release()
