"""The root key in a PKCS#11 token, each use of it a one-shot process.

Nothing here loads the vendor's module, or python-pkcs11: both run only in the job's process (`job`), which lives for
one request and at most for the deadline.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from typing import TypeVar

import msgspec

from kmsd.hsm.conversation import (
    KEYS_IN_A_JOB,
    MAX_DATAGRAM_BYTES,
    PIN_LENGTH_BYTES,
    AnchorKept,
    Done,
    Failed,
    KeepAnchor,
    Look,
    Looked,
    MakeDomainKey,
    Reply,
    Request,
    RootKeyReady,
    TokenConfig,
    Unwrap,
    Unwrapped,
    WrapDomainKey,
    Wrapped,
)
from kmsd.hsm.job import JOB_ENTRY, run_job
from kmsd.hsm.pin import FilePin, PinSource
from kmsd.hsm.root import (
    DOMAIN_KEY_BYTES,
    AnchorInvalidError,
    PinUnavailableError,
    RootError,
    TokenCrashedError,
    TokenFailedError,
    TokenInfo,
    TokenTimeoutError,
    WrappedDomainKey,
    WrappedKeyInvalidError,
)
from kmsd.hsm.wrapped import associated_data, split
from kmsd.memory.page import Page
from kmsd.metrics.meter import CANCELED, OF_TOKEN_JOBS, OK, Meter
from kmsd.processes.zygote import Child, SpawnError, Zygote, ZygoteGoneError

__all__ = ["JOB_ENTRY", "FilePin", "PinSource", "Pkcs11Root", "TokenConfig", "TokenJobs", "run_job"]

# Long enough for a network HSM that reconnects, short enough for someone who waits for `kms unseal`.
DEADLINE_SECONDS = 30.0
# How long a job may go on of which nobody awaits the answer any more. A module may be writing to its token, and what is
# killed then can be lost: at each login SoftHSM empties the file of its token before it writes that anew. It is done
# within milliseconds; a token in the network within a second or two, or it hangs.
UNAWAITED_SECONDS = 5.0
# A UUID in its usual form. A store's id is read before its row can be verified, and may be anything.
_STORE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

_Answer = TypeVar("_Answer", Looked, Wrapped, Unwrapped, AnchorKept, Done, RootKeyReady)


class TokenJobs:
    """Runs requests, one at a time: many modules bear no second process, and a wrong PIN must not be tried twice.

    A job may take `deadline_seconds`, and once nobody awaits its answer `unawaited_seconds` more.
    """

    def __init__(
        self,
        zygote: Zygote,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        unawaited_seconds: float = UNAWAITED_SECONDS,
    ) -> None:
        self._zygote = zygote
        self._deadline_seconds = deadline_seconds
        self._unawaited_seconds = unawaited_seconds
        self._turn = asyncio.Lock()
        self.meter = Meter(OF_TOKEN_JOBS)

    async def run(self, request: Request, pages: Sequence[Page], answer: type[_Answer]) -> _Answer:
        """Return the job's reply to `request`, which is an `answer`; raises the `RootError` it reports.

        The job gets `pages` by their descriptors, which are closed here. When this ends, in whatever way, so does the
        job's process: it is killed only if it takes too long.
        """
        tally, started = self.meter.of(type(request).__name__), time.monotonic()
        outcome = CANCELED
        try:
            done = await self._run(request, pages, answer)
            outcome = OK
        except RootError as error:
            outcome = type(error).__name__
            raise
        finally:
            tally.note(outcome, time.monotonic() - started)
        return done

    async def _run(self, request: Request, pages: Sequence[Page], answer: type[_Answer]) -> _Answer:
        async with self._turn:
            reply = await self._converse(request, pages)
        if isinstance(reply, answer):
            return reply
        if isinstance(reply, Failed):
            raise reply.to_error()
        raise TokenCrashedError(f"the token job answered {type(reply).__name__} instead of {answer.__name__}")

    async def _converse(self, request: Request, pages: Sequence[Page]) -> Reply:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours:
            with theirs:
                ours.send(msgspec.json.encode(request))
                child = await self._spawn([theirs.fileno(), *(page.fd for page in pages)])
            for page in pages:
                page.close_descriptor()
            answering = asyncio.ensure_future(self._reply(ours, child))
            try:
                return await self._awaited(answering)
            except ZygoteGoneError:
                raise _zygote_gone() from None
            finally:
                answering.cancel()
                await asyncio.wait({answering})
                # Also after a reply: some modules hang when their process ends.
                with suppress(ZygoteGoneError, SpawnError):  # it is gone, or the zygote is beyond being asked
                    await self._zygote.kill(child)

    async def _awaited(self, answering: asyncio.Future[Reply]) -> Reply:
        try:
            await asyncio.wait({answering}, timeout=self._deadline_seconds)
        except asyncio.CancelledError:
            await asyncio.wait({answering}, timeout=self._unawaited_seconds)
            raise
        if not answering.done():
            raise TokenTimeoutError(
                f"the token did not answer within {self._deadline_seconds:g} s, so its process was killed: look at the "
                "token and its connection, then try again"
            )
        return answering.result()

    async def _spawn(self, descriptors: Sequence[int]) -> Child:
        try:
            return await self._zygote.spawn(JOB_ENTRY, descriptors)
        except SpawnError as error:
            raise TokenFailedError(f"no process for the token could be started: {error}") from None
        except ZygoteGoneError:
            raise _zygote_gone() from None

    @staticmethod
    async def _reply(channel: socket.socket, child: Child) -> Reply:
        try:
            datagram = await asyncio.get_running_loop().sock_recv(channel, MAX_DATAGRAM_BYTES)
        except ConnectionResetError:  # it died before it read the request
            datagram = b""
        if not datagram:
            raise TokenCrashedError(
                f"the process that ran the PKCS#11 module {_ending(await child.wait())} before it answered: update "
                "the module, or look into its own log"
            )
        try:
            reply: Reply = msgspec.json.decode(datagram, type=Reply)
        except msgspec.DecodeError:
            raise TokenCrashedError("the token job gave no valid answer: update the PKCS#11 module") from None
        return reply


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _zygote_gone() -> TokenFailedError:
    return TokenFailedError("the process that starts token jobs has ended: restart kmsd")


class Pkcs11Root:
    """A `Root` whose key is in the token that `config` names.

    `pin` gives the PIN for each login that comes without one; None: no login does.

    The zygote's entry `JOB_ENTRY` has to be `run_job`. Methods also raise `SecretMemoryUnavailableError`.
    """

    def __init__(
        self, zygote: Zygote, config: TokenConfig, pin: PinSource | None, *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._jobs = TokenJobs(zygote, deadline_seconds=deadline_seconds)
        self._config = config
        self._pin = pin
        self.seen: TokenInfo | None = None

    @property
    def meter(self) -> Meter:
        """What counts its uses of the token."""
        return self._jobs.meter

    async def look(self) -> TokenInfo:
        """Ask the token who it is and what it can do; needs no PIN."""
        info = (await self._jobs.run(Look(self._config), [], Looked)).info
        self.seen = info
        return info

    async def make_domain_key(
        self, domain_key_id: str, generation: int, into: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        """Write a new random domain key into `into` (`DOMAIN_KEY_BYTES` long) and return it wrapped."""
        associated_data(domain_key_id, generation)  # refuses what no wrap could be bound to
        with ExitStack() as stack:
            login, page = stack.enter_context(self._login(pin)), stack.enter_context(Page.create())
            request = MakeDomainKey(self._config, pin is not None, domain_key_id, generation)
            reply = await self._jobs.run(request, [login, page], Wrapped)
            self.seen = reply.info
            record = WrappedDomainKey(domain_key_id, generation, reply.wrapped)
            split(record)
            into[:] = page.view[:DOMAIN_KEY_BYTES]
        return record

    async def unwrap(
        self,
        records: Sequence[WrappedDomainKey],
        into: Sequence[memoryview],
        pin: PinSource | None = None,
        *,
        anchor: str | None = None,
    ) -> int | None:
        """Write each record's domain key into the buffer at the same place of `into`.

        With the id of a store as `anchor`, return the number that `keep_anchor` left for it; None when there is none.
        When this raises, some buffers may already hold their key: the caller wipes them all.
        """
        if anchor is not None:
            _check_store_id(anchor)
        for record in records:
            _check(record)
        pairs = zip(records, into, strict=True)
        sequence = None
        while batch := list(islice(pairs, KEYS_IN_A_JOB)):
            with ExitStack() as stack:
                login = stack.enter_context(self._login(pin))
                pages = [stack.enter_context(Page.create()) for _ in batch]
                request = Unwrap(self._config, pin is not None, tuple(record for record, _ in batch), anchor)
                reply = await self._jobs.run(request, [login, *pages], Unwrapped)
                self.seen, sequence = reply.info, reply.anchor
                for (_, buffer), page in zip(batch, pages, strict=True):
                    buffer[:] = page.view[:DOMAIN_KEY_BYTES]
        return sequence

    async def keep_anchor(self, store_id: str, sequence: int, pin: PinSource | None = None) -> bool:
        """Have the token hold `sequence` for the store, unless it holds a higher one; return whether it can."""
        _check_store_id(store_id)
        with self._login(pin) as login:
            request = KeepAnchor(self._config, pin is not None, store_id, sequence)
            return (await self._jobs.run(request, [login], AnchorKept)).kept

    async def wrap_domain_key(
        self, domain_key_id: str, generation: int, key: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        """Return a domain key wrapped that another root key has wrapped until now; `key` is borrowed."""
        associated_data(domain_key_id, generation)
        with self._login(pin) as login, Page.create() as page:
            page.view[:DOMAIN_KEY_BYTES] = key
            request = WrapDomainKey(self._config, pin is not None, domain_key_id, generation)
            reply = await self._jobs.run(request, [login, page], Wrapped)
        self.seen = reply.info
        record = WrappedDomainKey(domain_key_id, generation, reply.wrapped)
        split(record)
        return record

    def _login(self, pin: PinSource | None) -> Page:
        source = pin or self._pin
        if source is None:
            raise PinUnavailableError("no source of the token's PIN is configured: an administrator has to bring it")
        return pin_page(source)


def pin_page(source: PinSource) -> Page:
    """Return a new page with the PIN, as a job expects it. Raises PinUnavailableError."""
    page = Page.create()
    try:
        with page.view[PIN_LENGTH_BYTES:] as room:
            length = source.read_into(room)
        page.view[:PIN_LENGTH_BYTES] = length.to_bytes(PIN_LENGTH_BYTES, "big")
    except BaseException:
        page.close()
        raise
    return page


def _check_store_id(store_id: str) -> None:
    if not _STORE_ID.fullmatch(store_id):
        raise AnchorInvalidError("the store's id is damaged: restore the store from a backup")


def _check(record: WrappedDomainKey) -> None:
    split(record)
    try:
        associated_data(record.domain_key_id, record.generation)
    except ValueError as error:
        raise WrappedKeyInvalidError(f"a domain key's record is damaged ({error}): restore the store") from None
