"""When the daemon has its keys: at its start, on request, and when the token comes back.

1. There is one attempt at a time, and each attempt is one login. Further ones wait for it.
2. Sealing ends the attempt under way and those that wait; none of them counts as a wish for keys any more.
3. What may pass (a token that is away, slow or crashed; a trail or a store that cannot be written) is tried again with
   the configured PIN, in intervals that double. A PIN that was refused, or that the token's own counters forbid to try,
   is not: tokens count and then lock. Nor is what only a person can mend.
4. After an administrator sealed it, nothing but an administrator or a restart unseals it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import kmsd
from kmsd.api.errors import (
    AuditUnavailableError,
    DependencyTimeoutError,
    KmsError,
    SealedError,
    StorageError,
    TokenError,
)
from kmsd.audit.record import Kind, Record
from kmsd.hsm.root import Root
from kmsd.logs import Logger
from kmsd.service.changing import Trail
from kmsd.service.checkpoints import Checkpoints
from kmsd.service.gate import Gate
from kmsd.service.grace import within
from kmsd.service.seal import CONFIGURED, Means, Seal
from kmsd.service.telling import told
from kmsd.service.token_anchor import TokenAnchor
from kmsd.store.base import Store
from kmsd.store.rows import SettingsRow

# A token that was plugged in again, or a module that restarts, is there within seconds; one that is away for long must
# not fill the trail.
FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0
# A change takes milliseconds; a store that hangs must not keep the keys in memory.
_SEAL_GRACE_SECONDS = 5.0

_PASSING = (TokenError, DependencyTimeoutError, AuditUnavailableError, StorageError)


def system_record(event: str, error: KmsError | None = None, /, **details: Any) -> Record:
    """Return a record of what kmsd did on nobody's request."""
    return Record(
        kind=Kind.SYSTEM,
        event_name=event,
        actor=None,
        request_id="",
        read_only=False,
        error_code=error.code if error else None,
        error_message=error.message if error else None,
        details={"version": kmsd.__version__, **details},
    )


class Unsealing:
    """Brings the keys into memory and takes them away.

    An empty `store` is begun with `settings` if it `is_new`, found so when it was opened, and with a `recovery_key` if
    the host is to have one. `settle` is awaited once the keys are there, and `keep` before they are taken away;
    `checkpoints` and `token_anchor` are brought up to date. `configured`: the root has a source of the PIN. `sleep`
    waits for so many seconds.
    """

    def __init__(
        self,
        *,
        seal: Seal,
        store: Store,
        settings: SettingsRow,
        is_new: bool,
        root: Root,
        gate: Gate,
        settle: Callable[[], Awaitable[None]],
        keep: Callable[[], Awaitable[None]],
        checkpoints: Checkpoints,
        token_anchor: TokenAnchor,
        trail: Trail,
        logger: Logger,
        configured: bool,
        recovery_key: memoryview | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seal = seal
        self._store = store
        self._settings = settings
        self._is_new = is_new
        self._recovery_key = recovery_key
        self._root = root
        self._gate = gate
        self._settle = settle
        self._keep = keep
        self._checkpoints = checkpoints
        self._token_anchor = token_anchor
        self._trail = trail
        self._logger = logger
        self._sleep = sleep
        self.configured = configured
        # Why the daemon is sealed, for people; None after it was sealed on request, and before anything was tried.
        self.failure: str | None = None
        # Whether it was the loss of the token that sealed the daemon.
        self.lost = False
        # Whether shares brought the keys: then it needs no token to have them.
        self.by_recovery = False
        self._turn = asyncio.Lock()
        self._attempt: asyncio.Task[None] | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._sealings = 0

    @property
    def sealed(self) -> bool:
        """Whether the daemon holds no keys."""
        return self._seal.sealed

    @property
    def sequence(self) -> int:
        """How many changes the store counts, 0 before that is known."""
        return self._store.sequence

    @property
    def has_recovery(self) -> bool | None:
        """Whether shares can unseal it without the token; None as long as nobody has looked."""
        return self._seal.has_recovery

    async def start(self, means: Means = CONFIGURED, *, serves_sealed: bool) -> None:
        """Unseal with the configured PIN; with `serves_sealed` a failure is recorded, and perhaps tried again later.

        Without it, `means` are used, and it raises a KmsError.
        """
        if not serves_sealed:
            await self.unseal(means, self._record_success)
        elif self.configured:
            await self.recover()
        else:
            await self._look()

    async def _look(self) -> None:
        # Nothing depends on it, but whoever is to unseal sees whether the token is there, or shares would do.
        with contextlib.suppress(KmsError), told():
            await self._seal.look_for_recovery()
        try:
            with told():
                await self._root.look()
        except KmsError as error:
            self._logger.warning("token_not_seen", code=error.code, reason=error.message)

    async def recover(self) -> None:
        """Try the configured PIN now and, as long as what prevents it may pass, again later."""
        if await self._try():
            self._stop_retrying()
            self._retrying = asyncio.ensure_future(self._retry())
            self._retrying.add_done_callback(self._tell_fault)

    async def unseal(self, means: Means, record: Callable[[], None]) -> bool:
        """Bring the keys into memory, unless they are there; return whether this call did.

        `record` is called when the keys are there, before they are of use to anybody; what it raises leaves the daemon
        sealed. Raises a KmsError.
        """
        sealings = self._sealings
        async with self._turn:
            if self._sealings != sealings:
                raise _sealed_meanwhile()
            if not self._seal.sealed:
                return False
            self._attempt = asyncio.ensure_future(self._bring_keys(means, record))
            try:
                await self._attempt
            except asyncio.CancelledError:
                if self._sealings == sealings:
                    raise
                raise _sealed_meanwhile() from None
            except KmsError as error:
                self.failure = error.message
                raise
            finally:
                self._attempt = None
            self._stop_retrying()
            return True

    async def seal(self) -> None:
        """Wipe the keys on request: nothing unseals the daemon by itself any more."""
        await self._take_keys()
        self.failure, self.lost = None, False

    async def lose(self, reason: str) -> None:
        """Wipe the keys because the token is gone, which whoever found that out records."""
        await self._take_keys()
        self.failure, self.lost = reason, True

    async def close(self) -> None:
        """Try nothing more; what is under way ends."""
        self._stop_retrying()
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait({self._attempt})

    async def _bring_keys(self, means: Means, record: Callable[[], None]) -> None:
        with told():
            # An earlier attempt may have been ended just when it had committed. Shares begin no store.
            if means.recovery_key is None and self._is_new and await self._store.settings() is None:
                await self._seal.initialize(self._settings, means.pin, self._recovery_key)
            else:
                await self._seal.unseal(self._record_acceptance, means)
            self._is_new = False
            try:
                await self._settle()
                if means.pin is not None:
                    await self._token_anchor.keep(means.pin)
                # Last, and nothing is awaited behind it: an attempt that is ended has one outcome.
                record()
                self._checkpoints.sign_soon()
            except BaseException:
                self._seal.seal()
                raise
        # Before anybody can see that it is unsealed.
        self.failure, self.lost = None, False
        self.by_recovery = means.recovery_key is not None
        self._gate.open()
        if means.pin is None and means.recovery_key is None:
            self._token_anchor.start()

    async def _take_keys(self) -> None:
        self._sealings += 1
        self._stop_retrying()
        if self._attempt is not None:
            self._attempt.cancel()
        async with self._turn:
            try:
                await self._gate.close(_SEAL_GRACE_SECONDS)
                await self._token_anchor.close()
                async with within(_SEAL_GRACE_SECONDS):
                    await self._keep()
                async with within(_SEAL_GRACE_SECONDS):
                    await self._checkpoints.sign_if_possible()
            finally:
                self._seal.seal()

    async def _try(self, attempt: int = 1) -> bool:
        """Try the configured PIN once; return whether what prevented it may pass."""
        try:
            await self.unseal(CONFIGURED, self._record_success)
        except SealedError:
            return False
        except KmsError as error:
            again = isinstance(error, _PASSING)
            self._logger.warning("unseal_failed", code=error.code, reason=error.message, tried_again=again)
            self._record(system_record("UnsealFailed", error, attempt=attempt, triedAgain=again))
            return again
        return False

    async def _retry(self) -> None:
        delay_seconds = FIRST_RETRY_SECONDS
        for attempt in itertools.count(2):
            await self._sleep(delay_seconds)
            if not await self._try(attempt):
                return
            delay_seconds = min(2 * delay_seconds, LONGEST_RETRY_SECONDS)

    def _stop_retrying(self) -> None:
        # The task may be the one that just succeeded, and ends by itself.
        if self._retrying is not None and self._retrying is not asyncio.current_task():
            self._retrying.cancel()
            self._retrying = None

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("unsealing_again_failed", fault)

    async def _record_acceptance(self, accepted: list[str]) -> None:
        # It tells no sequence of the store: what is accepted may be that it is lower than what the trail told.
        self._trail.append([system_record("AcceptChanges", accepted=accepted)])
        await self._trail.sync()

    def _record_success(self) -> None:
        self._trail.append([system_record("Unseal", storeSequence=self._store.sequence)])

    def _record(self, record: Record) -> None:
        """Record what happened anyway: a trail that cannot be written does not undo it, and the log has it."""
        try:
            self._trail.append([record])
        except AuditUnavailableError as error:
            self._logger.warning("event_not_recorded", recorded=record.event_name, reason=error.message)


def _sealed_meanwhile() -> SealedError:
    return SealedError("kmsd was sealed meanwhile: unseal it again if that is wanted")
