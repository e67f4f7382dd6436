"""Handing credentials to systemd: whom it believes, who decides, and what stands in the trail before a byte leaves.

systemd connects as uid 0, for each credential anew, from an abstract address that says what it asks for
(systemd.exec(5), LoadCredential=):

    NUL, up to sixteen hexadecimal digits, "/unit/", the unit's name, "/", the credential's name

1. Only uid 0 is believed, and only an address of exactly this form.
2. The unit is the caller: the key policy of the unit's key decides, grants and the host policy as ever.
3. The secret is decrypted in secret memory, bound to both names; the record is written; only then it is sent.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from kmsd.access.decision import Authorizer
from kmsd.api.credentials import GET_CREDENTIAL, GetCredentialRequest
from kmsd.api.errors import (
    AccessDeniedError,
    AuditUnavailableError,
    DependencyTimeoutError,
    InvalidCiphertextError,
    KmsError,
    SealedError,
    ValidationError,
)
from kmsd.api.operation import KeyAccess
from kmsd.audit.record import Kind
from kmsd.identity.principals import Caller
from kmsd.logs import Logger
from kmsd.memory.arena import Arena
from kmsd.metrics.meter import CANCELED, OK, Meter
from kmsd.service.audit_accounts import AuditAccounts
from kmsd.service.call import Call, Session, UsedWhilePendingDeletionError
from kmsd.service.changing import Trail
from kmsd.service.credentials import not_found
from kmsd.service.facts import Surroundings
from kmsd.service.foreseen import Foreseen
from kmsd.service.gate import Gate
from kmsd.service.key_cipher import KeyCipher
from kmsd.service.loading import loaded
from kmsd.service.pending_uses import PendingUses
from kmsd.service.records import KeyRecords
from kmsd.service.refusals import Refusals
from kmsd.service.request_ids import RequestIds
from kmsd.store.base import Store

# What systemd makes of a random 64-bit number (%PRIx64), so that leading zeros are left out.
_ADDRESS = re.compile(r"\0[0-9a-f]{1,16}/unit/([^/]+)/([^/]+)\Z")
_SYSTEMD_UID = 0


class CredentialDelivery:
    """Hands credentials out, each request within `seconds`.

    `settles`: nothing leaves before its record is on the disk, not only written. `meter` counts what was asked for;
    `timer` gives monotonic seconds.
    """

    def __init__(
        self,
        *,
        store: Store,
        records: KeyRecords,
        cipher: KeyCipher,
        arena: Arena,
        authorizer: Authorizer,
        accounts: AuditAccounts,
        gate: Gate,
        trail: Trail,
        logger: Logger,
        request_ids: RequestIds,
        surroundings: Surroundings,
        refusals: Refusals,
        pending_uses: PendingUses,
        seconds: float,
        meter: Meter,
        timer: Callable[[], float],
        settles: bool,
    ) -> None:
        self._store = store
        self._records = records
        self._cipher = cipher
        self._arena = arena
        self._authorizer = authorizer
        self._accounts = accounts
        self._gate = gate
        self._trail = trail
        self._logger = logger
        self._request_ids = request_ids
        self._surroundings = surroundings
        self._refusals = refusals
        self._pending_uses = pending_uses
        self._seconds = seconds
        self._tally = meter.of(GET_CREDENTIAL.name)
        self._timer = timer
        self._settles = settles

    async def deliver(self, peer: Session, address: bytes, send: Callable[[memoryview], None]) -> None:
        """Call `send` with the secret that a peer asks for by its `address`; it may not keep what it is given.

        Raises a KmsError, which is recorded as the outcome, when the peer gets nothing.
        """
        asked = _asked_for(address)
        session = peer if asked is None else Session(_as_unit(peer.caller, asked.unit), peer.actor)
        call = Call(
            session,
            GET_CREDENTIAL,
            self._request_ids.next(),
            self._authorizer,
            self._surroundings,
            self._accounts.of(peer),
        )
        call.request = asked
        call.context = None if asked is None else asked.encryption_context
        parameters = None if asked is None else {"unit": asked.unit, "name": asked.name}
        started, outcome = self._timer(), CANCELED
        try:
            with Foreseen(self._logger, call):
                if peer.caller.uid != _SYSTEMD_UID:
                    raise AccessDeniedError("credentials are handed to systemd only, which is uid 0")
                if asked is None:
                    raise ValidationError("the peer's address is none by which systemd asks for a credential")
                await self._hand_out_in_time(call, asked, send)
            outcome = OK
        except KmsError as error:
            outcome = error.code
            self._record_refusal(call, error, parameters)
            raise
        finally:
            self._tally.note(outcome, self._timer() - started)

    async def _hand_out_in_time(
        self, call: Call, asked: GetCredentialRequest, send: Callable[[memoryview], None]
    ) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._hand_out(call, asked, send)
        except TimeoutError:
            raise DependencyTimeoutError(f"the credential could not be read within {self._seconds:g} s") from None

    async def _hand_out(self, call: Call, asked: GetCredentialRequest, send: Callable[[memoryview], None]) -> None:
        self._check_unsealed()
        row = await self._store.credential(asked.unit, asked.name)
        if row is None:
            raise not_found(asked)
        key = await self._records.fetch(row.key_id, KeyAccess.ID_OR_ARN)
        await loaded(partial(call.use, key))
        with self._arena.lease(row.length) as secret:
            opened = await loaded(
                lambda: self._cipher.decrypt_into(key, row.blob, asked.encryption_context, secret.view)
            )
            if opened.length != row.length:
                raise InvalidCiphertextError
            record = call.record(Kind.REQUEST, parameters={"unit": asked.unit, "name": asked.name})
            call.budget.charge(self._trail.append([record]))
            # With the record, so that what the trail tells and what is counted are the same at any moment.
            key.use.note_decryption(call.operation.name, call.request_id, opened.number)
            if self._settles:
                await self._trail.sync()
            # Whoever was told that kmsd is sealed must not see a secret leave it afterwards.
            self._check_unsealed()
            send(secret.view)

    def _check_unsealed(self) -> None:
        if self._gate.closed:
            raise SealedError("kmsd is sealed: an administrator has to unseal it")

    def _record_refusal(self, call: Call, error: KmsError, parameters: dict[str, Any] | None) -> None:
        if call.refusal is not None:
            self._refusals.add(call.refusal, call.session.place)
        if isinstance(error, UsedWhilePendingDeletionError):
            self._pending_uses.note(error.arn, call)
        if call.budget.exceeded:
            call.budget.count(call.session.actor, call.operation.name, error.code)
            return
        try:
            record = call.record(Kind.REQUEST, parameters=parameters, error=error)
            call.budget.charge(self._trail.append([record]))
        except AuditUnavailableError as unavailable:
            # Nothing leaves in any case; the log has it.
            self._logger.warning("event_not_recorded", recorded=call.operation.name, reason=unavailable.message)


def _asked_for(address: bytes) -> GetCredentialRequest | None:
    """Return what an address asks for, None if it is none of systemd's."""
    try:
        found = _ADDRESS.match(address.decode("ascii"))
        return found and msgspec.convert({"Unit": found[1], "Name": found[2]}, GetCredentialRequest)
    except (UnicodeDecodeError, msgspec.ValidationError):
        return None


def _as_unit(systemd: Caller, unit: str) -> Caller:
    """Return the unit as a caller: it has systemd's uid, but none of an administrator's rights."""
    return replace(
        systemd,
        unit=unit,
        user_unit=None,
        administrator=False,
        undetermined=systemd.undetermined - {"unit", "user_unit", "administrator"},
    )
