"""How every request is served, whatever it asks.

1. Find the operation's declaration; a name nobody declared is refused.
2. Decode the parameters into the declared shape.
3. Refuse what needs keys while the daemon is sealed.
4. Find the key the request names, in memory or else in the store.
5. Authorize: key policy and host policy; then the caller's audit budget, and the key's state and usage.
6. Call the handler; for what changes something, as `kmsd.service.changing` does. A file operation writes `begin`
   itself.
7. Put the reply into the batch, and the audit record beside it; above its audit budget a uid's refusals are counted.
8. `finish` writes all records of a batch with one write. Only if that succeeded may the caller of the pipeline
   send the batch; if it failed, every reply in it has become an error that names the trail.

The caller MUST call `finish` before it sends anything of a batch, and await `settle` too where `settles` says so; a
batch that was awaited has had both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from kmsd.access.decision import Authorizer, NotAuthorizedError
from kmsd.api.encryption_context import MAX_BYTES
from kmsd.api.errors import (
    AuditUnavailableError,
    KeyUnavailableError,
    KmsError,
    SealedError,
    ShuttingDownError,
    UnknownOperationError,
)
from kmsd.api.operation import Operation
from kmsd.audit.record import Kind, Record
from kmsd.logs import Logger
from kmsd.material.versions import NotLoadedError
from kmsd.metrics.meter import CANCELED, OK, Meter
from kmsd.service.audit_accounts import AuditAccounts
from kmsd.service.batch import Batch
from kmsd.service.call import Call, Session, UsedWhilePendingDeletionError
from kmsd.service.changing import Changing, Mutations, Trail
from kmsd.service.facts import Surroundings
from kmsd.service.foreseen import Foreseen
from kmsd.service.gate import Gate
from kmsd.service.grant_tokens import check_tokens
from kmsd.service.key_lookup import KeyLookup
from kmsd.service.loading import loaded
from kmsd.service.pending_uses import PendingUses
from kmsd.service.refusals import Refusals
from kmsd.service.request_ids import RequestIds
from kmsd.service.scratch import Scratch
from kmsd.service.table import Entry, Handler, WithDescriptors, make_table
from kmsd.wire.codec import ReplyEncoder, Request

# A cache miss is loaded and the call repeated; each round loads one thing (a key, its material, for ReEncrypt twice),
# and only a cache that forgets faster than it loads takes more.
_LOADS = 16


# More than AWS's longest operation name has.
_NAME_CHARACTERS = 64

# As what requests are counted whose operation nobody declared: the name is the peer's own text.
_UNKNOWN = "unknown"

# Kept at hand: looking a member up in its enumeration is not free, and every request needs this one.
_REQUEST = Kind.REQUEST


class Pipeline:
    """Serves requests; `handlers` must have one for each of `operations`, or nothing starts.

    `settles`: no reply leaves before its record is on the disk, not only written. `meter` counts requests; `timer`
    gives monotonic seconds.
    """

    def __init__(
        self,
        operations: Sequence[Operation[Any, Any]],
        handlers: Mapping[Operation[Any, Any], Handler],
        *,
        authorizer: Authorizer,
        lookup: KeyLookup,
        trail: Trail,
        accounts: AuditAccounts,
        surroundings: Surroundings,
        request_ids: RequestIds,
        refusals: Refusals,
        pending_uses: PendingUses,
        scratch: Scratch,
        gate: Gate,
        mutations: Mutations,
        logger: Logger,
        meter: Meter,
        timer: Callable[[], float],
        settles: bool,
    ) -> None:
        self._table = make_table(operations, handlers, meter)
        self._unknown = meter.of(_UNKNOWN)
        self._timer = timer
        self._authorizer = authorizer
        self._lookup = lookup
        self._trail = trail
        self._accounts = accounts
        self._surroundings = surroundings
        self._refusals = refusals
        self._pending_uses = pending_uses
        self._scratch = scratch
        self._gate = gate
        self._logger = logger
        self._encoder = ReplyEncoder()
        self._changing = Changing(trail=trail, mutations=mutations, gate=gate, logger=logger)
        self._request_ids = request_ids
        self.settles = settles
        self.stopping = False
        # How many replies were withdrawn because the trail could not be written.
        self.withdrawn = 0

    def serve(self, session: Session, request: Request, batch: Batch) -> Coroutine[Any, Any, Batch] | None:
        """Serve a request at once into `batch`, or return what has to be awaited for a batch of its own.

        `request.params` need be valid only during this call. Never raises for anything a request can cause.
        """
        entry = self._table.get(request.op)
        if entry is None:
            name = request.op[:_NAME_CHARACTERS]
            self.refuse(session, request, batch, UnknownOperationError(f"no operation has the name '{name}'"))
            return None
        budget = self._accounts.of(session)
        call = Call(
            session,
            entry.operation,
            self._request_ids.next(),
            self._authorizer,
            self._surroundings,
            budget,
            self._timer(),
        )
        if not entry.synchronous:
            return self._serve_later(call, request.id, entry, bytearray(request.params))
        batch.budget = budget
        try:
            self._serve_now(call, request.id, entry, request.params, batch, failure=None)
        except NotLoadedError as missing:
            return self._load_and_serve(call, request.id, entry, bytearray(request.params), missing)
        return None

    def finish(self, batch: Batch) -> None:
        """Write the batch's records; if they cannot be written, turn each of its replies into that error."""
        try:
            size = self._trail.append(batch.records)
        except AuditUnavailableError as error:
            self._withdraw(batch, error)
        else:
            if batch.budget is not None:
                batch.budget.charge(size)

    async def settle(self, batch: Batch) -> None:
        """Wait until a finished batch's records are on the disk, for `audit.sync = always`."""
        try:
            await self._trail.sync()
        except AuditUnavailableError as error:
            self._withdraw(batch, error)
        except BaseException:
            batch.discard()  # the peer hung up
            raise

    def _withdraw(self, batch: Batch, error: AuditUnavailableError) -> None:
        batch.discard()
        self.withdrawn += len(batch.identifiers)
        for identifier in batch.identifiers:
            self._encoder.append_error(batch.out, identifier, error)

    async def _finish_later(self, batch: Batch) -> Batch:
        self.finish(batch)
        if self.settles:
            await self.settle(batch)
        return batch

    def refuse(self, session: Session, request: Request, batch: Batch, error: KmsError) -> None:
        """Answer a request with an error before anything else is looked at, and record that."""
        error.request_id = self._request_ids.next()
        entry = self._table.get(request.op)
        (entry.tally if entry else self._unknown).count(error.code)
        # The name is the peer's own text: the record keeps a bounded piece of it.
        name = request.op[:_NAME_CHARACTERS]
        batch.budget = self._accounts.of(session)
        if batch.budget.exceeded:
            batch.budget.count(session.actor, name, error.code)
        else:
            record = Record(
                kind=_REQUEST,
                event_name=name,
                actor=session.actor,
                request_id=error.request_id,
                read_only=True,
                error_code=error.code,
                error_message=error.message,
            )
            batch.records.append(record)
        batch.identifiers.append(request.id)
        self._encoder.append_error(batch.out, request.id, error)

    def _serve_now(
        self,
        call: Call,
        identifier: int,
        entry: Entry,
        params: memoryview,
        batch: Batch,
        *,
        failure: KmsError | None,
    ) -> None:
        """Serve a request of cost CRYPTOGRAPHY; raises NotLoadedError before anything is in the batch.

        `failure` is what became of loading what an earlier round missed.
        """
        request: msgspec.Struct | None = None
        try:
            with Foreseen(self._logger, call, NotLoadedError):
                call.request = request = self._decode(entry, params)
                if failure is not None:
                    raise failure
                response = self._answer_now(call, entry, request)
                self._encoder.append_result(batch.out, identifier, response)
        except KmsError as error:
            self._refuse(call, identifier, batch, entry, error, entry.parameters(request))
        else:
            batch.records.append(call.record(_REQUEST, parameters=entry.parameters(request)))
            batch.identifiers.append(identifier)
            entry.tally.note(OK, self._timer() - call.started)
        finally:
            self._scratch.wipe()

    def _answer_now(self, call: Call, entry: Entry, request: msgspec.Struct) -> msgspec.Struct:
        operation = entry.operation
        response: msgspec.Struct
        if operation.key is not None:
            call.named = named = getattr(request, operation.key)
            key = self._lookup.get(named, call)
            call.use(key)
            response = entry.handler(call, request, key)
            return response
        if operation.resolves_keys:
            call.permit()
        response = entry.handler(call, request)
        return response

    async def _load_and_serve(
        self, call: Call, identifier: int, entry: Entry, params: bytearray, missing: NotLoadedError
    ) -> Batch:
        batch = Batch()
        batch.budget = call.budget
        failure: KmsError | None = None
        try:
            for round_number in range(_LOADS + 1):
                try:
                    with Foreseen(self._logger, call):
                        await missing.load()
                except KmsError as error:
                    failure = error
                if round_number == _LOADS:
                    failure = KeyUnavailableError("the daemon's caches are too small for the keys in use at once")
                try:
                    self._serve_now(call, identifier, entry, memoryview(params), batch, failure=failure)
                    break
                except NotLoadedError as again:
                    missing = again
        except asyncio.CancelledError:
            entry.tally.note(CANCELED, self._timer() - call.started)
            raise
        finally:
            _wipe(params)  # also when the peer hangs up meanwhile
        return await self._finish_later(batch)

    async def _serve_later(self, call: Call, identifier: int, entry: Entry, params: bytearray) -> Batch:
        batch = Batch()
        batch.budget = call.budget
        request: msgspec.Struct | None = None
        try:
            with Foreseen(self._logger, call):
                call.request = request = self._decode(entry, memoryview(params))
                response = await self._answer(call, entry, request)
                if isinstance(response, WithDescriptors):
                    batch.descriptors = response.descriptors
                    response = response.response
                self._encoder.append_result(batch.out, identifier, response, len(batch.descriptors))
        except KmsError as error:
            batch.discard()
            self._refuse(call, identifier, batch, entry, error, entry.parameters(request))
        except asyncio.CancelledError:
            entry.tally.note(CANCELED, self._timer() - call.started)
            raise
        else:
            entry.tally.note(OK, self._timer() - call.started)
            batch.identifiers.append(identifier)
            if not call.began:
                parameters = entry.parameters(request)
                batch.records.append(call.record(_REQUEST, parameters=parameters))
        finally:
            if call.change is None:
                _wipe(params)
            else:
                # A change that goes on without its peer may have it to read still.
                call.change.add_done_callback(lambda _: _wipe(params))
        return await self._finish_later(batch)

    async def _answer(self, call: Call, entry: Entry, request: msgspec.Struct) -> Any:
        operation = entry.operation
        arguments: tuple[Any, ...] = (call, request)
        if operation.key is not None:
            call.named = named = getattr(request, operation.key)
            key = await self._lookup.fetch(named, operation.key_access, call)
            await loaded(partial(call.use, key))
            arguments = (call, request, key)
        elif operation.resolves_keys:
            call.permit()
        elif not operation.read_only:
            # Its handler decides, behind the intent.
            call.check_budget()
        if operation.read_only or operation.descriptors:
            # What hands out a descriptor has only begun then, and its handler records how it goes on.
            return await entry.handler(*arguments)
        call.change = change = self._changing.begin(call, entry, arguments)
        # A peer that hangs up cancels its work, but never between the commit and its record.
        return await asyncio.shield(change)

    def _decode(self, entry: Entry, params: memoryview) -> msgspec.Struct:
        if self.stopping:
            raise ShuttingDownError("kmsd is stopping; ask again when it has started")
        if self._gate.closed and not entry.operation.works_sealed:
            raise SealedError("kmsd is sealed: an administrator has to unseal it")
        request: msgspec.Struct = entry.decode(params)
        if entry.has_tokens and (tokens := request.grant_tokens):  # type: ignore[attr-defined] # the table has looked
            check_tokens(tokens)
        if len(params) > MAX_BYTES // 2:
            # Only then can a member be too large for what is done with it even when the caller is refused: a context
            # takes at most twice as many bytes serialized as on the wire.
            entry.check_sizes(request)
        return request

    def _refuse(
        self,
        call: Call,
        identifier: int,
        batch: Batch,
        entry: Entry,
        error: KmsError,
        parameters: dict[str, Any] | None,
    ) -> None:
        entry.tally.note(error.code, self._timer() - call.started)
        # An error may be shared (by all who awaited one sync), so its id is set for this encoding only.
        error.request_id = call.request_id
        self._encoder.append_error(batch.out, identifier, error)
        batch.identifiers.append(identifier)
        if isinstance(error, NotAuthorizedError) and call.refusal is not None:
            self._refusals.add(call.refusal, call.session.place)
        elif isinstance(error, UsedWhilePendingDeletionError):
            self._pending_uses.note(error.arn, call)
        if call.began:
            return
        if call.budget.exceeded:
            call.budget.count(call.session.actor, call.operation.name, error.code)
        else:
            batch.records.append(call.record(_REQUEST, parameters=parameters, error=error))

    async def drain(self) -> None:
        """Wait until every change under way has its outcome in the trail."""
        await self._changing.drain()


def _wipe(params: bytearray) -> None:
    """Forget the members of a request, which may be a secret."""
    params[:] = bytes(len(params))
