"""Seal and Unseal, as administrators ask for them.

PIN and shares never come in a request, whose frames are ordinary memory: Unseal answers with one end of a socketpair,
and what the client sends there is read straight into a page of secret memory. Its `intent` record stands in the trail
before the client gets that end, its `outcome` record before the client is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from kmsd.api import administration as api
from kmsd.api.errors import (
    AuditUnavailableError,
    KmsError,
    KMSInternalError,
    RecoverySharesError,
    ShuttingDownError,
    ThrottlingError,
    TokenPinUnavailableError,
    ValidationError,
)
from kmsd.api.failure import Failure
from kmsd.api.operation import Operation
from kmsd.api.unsealing import MAX_PIN_BYTES, MAX_SHARES_BYTES, Outcome, Unsealed, encode
from kmsd.audit.record import Kind
from kmsd.hsm.pin import PagePin
from kmsd.logs import Logger
from kmsd.memory.page import Page
from kmsd.recovery import RECOVERY_KEY_BYTES
from kmsd.recovery.jobs import shares_page
from kmsd.service.call import Call
from kmsd.service.changing import Trail
from kmsd.service.seal import Means, no_recovery
from kmsd.service.table import WithDescriptors
from kmsd.service.telling import told
from kmsd.service.unsealing import Unsealing

# A client has the PIN, or the shares, before it asks; this is for one that was stopped in between.
PIN_SECONDS = 30.0
# Unsealing is for a few administrators; each holds a page of secret memory and a descriptor until it is told.
_MOST_AT_ONCE = 8


class _Expected(NamedTuple):
    """What a client is to send, and what its absence is called."""

    name: str
    most_bytes: int
    missing: type[KmsError]


_PIN = _Expected("PIN", MAX_PIN_BYTES, TokenPinUnavailableError)
_SHARES = _Expected("shares", MAX_SHARES_BYTES, RecoverySharesError)


class SealRequests:
    """Handlers of Seal and Unseal; a client has `pin_seconds` to send the PIN or the shares.

    `combine` makes the recovery key of a `shares_page`.
    """

    def __init__(
        self,
        *,
        unsealing: Unsealing,
        combine: Callable[[Page], Awaitable[Page]],
        trail: Trail,
        logger: Logger,
        pin_seconds: float = PIN_SECONDS,
    ) -> None:
        self._unsealing = unsealing
        self._combine = combine
        self._trail = trail
        self._logger = logger
        self._pin_seconds = pin_seconds
        self._conversations: set[asyncio.Task[None]] = set()

    async def seal(self, call: Call, request: api.SealRequest) -> api.SealResponse:  # noqa: ARG002 - handlers share one form
        """Wipe the keys; sealing what is sealed makes sure that it stays so."""
        await self._unsealing.seal()
        return api.SealResponse(state=self._state())

    async def unseal(self, call: Call, request: api.UnsealRequest) -> WithDescriptors:
        """Begin an attempt, and give the client the end over which it sends PIN or shares and is told the outcome."""
        if request.configured and request.shares:
            raise ValidationError("the PIN of the configured source and shares are two ways to unseal: choose one")
        if request.shares and self._unsealing.has_recovery is False:
            raise no_recovery()
        if len(self._conversations) >= _MOST_AT_ONCE:
            raise ThrottlingError(f"{_MOST_AT_ONCE} requests to unseal are under way already")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as unless_begun:
            unless_begun.enter_context(ours)
            unless_begun.enter_context(theirs)
            ours.setblocking(False)
            call.budget.charge(self._trail.append([call.record(Kind.INTENT, parameters=_parameters(request))]))
            call.began = True
            unless_begun.pop_all()
        task = asyncio.ensure_future(self._converse(call, request, ours))
        self._conversations.add(task)
        task.add_done_callback(self._ended)
        return WithDescriptors(api.UnsealResponse(state=self._state()), [theirs.detach()])

    def _state(self) -> api.SealState:
        return api.SealState.SEALED if self._unsealing.sealed else api.SealState.UNSEALED

    async def _converse(self, call: Call, request: api.UnsealRequest, channel: socket.socket) -> None:
        def record(error: KmsError | None = None, details: dict[str, Any] | None = None) -> None:
            outcome = call.record(Kind.OUTCOME, parameters=_parameters(request), error=error, details=details)
            call.budget.charge(self._trail.append([outcome]))

        with channel:
            try:
                outcome = Outcome(done=Unsealed(already=not await self._unseal(request, channel, record)))
            except KmsError as error:
                outcome = Outcome(error=Failure.of(_recorded(record, error)))
            except asyncio.CancelledError:
                stopping = ShuttingDownError("kmsd is stopping; ask again when it has started")
                _tell(channel, Outcome(error=Failure.of(_recorded(record, stopping))))
                raise
            except BaseException:
                _recorded(record, KMSInternalError("kmsd failed to unseal; its log tells why"))
                raise
            _tell(channel, outcome)

    async def _unseal(self, request: api.UnsealRequest, channel: socket.socket, record: Callable[..., None]) -> bool:
        with told(), Page.create() as page:
            # An open descriptor of secret memory could be taken and mapped; the mapping alone cannot.
            page.close_descriptor()
            if request.shares:
                unsealed = await self._unseal_by_shares(request, channel, page, record)
            else:
                pin = None if request.configured else PagePin(page, await self._receive(channel, page.view, _PIN))
                await self._trail.sync()
                means = Means(pin=pin, accepts_changes=request.accept_changes)
                unsealed = await self._unsealing.unseal(means, record)
            if not unsealed:
                record(details={"already": True})
            return unsealed

    async def _unseal_by_shares(
        self, request: api.UnsealRequest, channel: socket.socket, page: Page, record: Callable[[], None]
    ) -> bool:
        length = await self._receive(channel, page.view, _SHARES)
        await self._trail.sync()
        with (
            page.view[:length] as text,
            shares_page(text) as shares,
            await self._combine(shares) as key,
            key.view[:RECOVERY_KEY_BYTES] as recovery_key,
        ):
            means = Means(recovery_key=recovery_key, accepts_changes=request.accept_changes)
            return await self._unsealing.unseal(means, record)

    async def _receive(self, channel: socket.socket, page: memoryview, expected: _Expected) -> int:
        """Read one datagram into the page and return its length; there is no control buffer for descriptors."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(channel, readable.set)
        try:
            async with asyncio.timeout(self._pin_seconds):
                await readable.wait()
            # Of a longer datagram the rest is lost, and the page is full then: that is longer than anything may be.
            length = channel.recv_into(page)
        except TimeoutError:
            raise expected.missing(f"no {expected.name} came within {self._pin_seconds:g} s") from None
        except ConnectionResetError:
            length = 0
        finally:
            loop.remove_reader(channel)
        if length == 0:
            raise expected.missing(f"the client went away without the {expected.name}, or sent nothing")
        if length > expected.most_bytes:
            raise ValidationError(f"the {expected.name} may have at most {expected.most_bytes} bytes")
        return length

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._conversations.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("unsealing_failed", fault)

    async def close(self) -> None:
        """End what is under way; whoever waits is told that kmsd stops."""
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.SEAL: SealRequests.seal,
    api.UNSEAL: SealRequests.unseal,
}


def _parameters(request: api.UnsealRequest) -> dict[str, Any]:
    chosen = {"shares": request.shares, "acceptChanges": request.accept_changes}
    return {"configured": request.configured, **{name: True for name, value in chosen.items() if value}}


def _recorded(record: Callable[[KmsError], None], error: KmsError) -> KmsError:
    """Record how it ended and return what to tell the client: nobody is told what is not on record."""
    try:
        record(error)
    except AuditUnavailableError as unavailable:
        return unavailable
    return error


def _tell(channel: socket.socket, outcome: Outcome) -> None:
    with contextlib.suppress(OSError):  # the client is gone; its record has the outcome
        channel.send(encode(outcome))
