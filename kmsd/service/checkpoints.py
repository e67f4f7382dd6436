"""When the trail is signed, and where that is remembered outside it.

The newest checkpoint is announced, on a host in the service log, which is the journal, and goes into the store. Both
only when the trail's part up to it is durable: whoever remembered more than a power cut left of the trail would accuse
it of having been cut off. It covers the ones before, so that those that came by count meanwhile go nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from kmsd.api.errors import AuditUnavailableError, IntegrityError, KmsError, SealedError
from kmsd.audit.checkpoint import Checkpoint
from kmsd.audit.writer import Trail
from kmsd.logs import Logger
from kmsd.service.telling import told
from kmsd.store.base import Insert, Replace, Store, StoreError
from kmsd.store.rows import AnchorRow

# How often the trail is asked whether a file is full: a look at two numbers.
_LOOK_SECONDS = 5.0


class Checkpoints:
    """Signs the trail every `seconds` in which it grew, and keeps the store's anchor up to date.

    `announce` is called with what is to be remembered, which should lie out of reach of who can write the trail.
    """

    def __init__(
        self,
        *,
        trail: Trail,
        store: Store,
        announce: Callable[[Checkpoint], None],
        logger: Logger,
        seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._trail = trail
        self._store = store
        self._announce = announce
        self._logger = logger
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        # The newest that is certainly on the disk.
        self.last: Checkpoint | None = None
        self._written: Checkpoint | None = None
        self._kept: Checkpoint | None = None
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._soon: asyncio.Task[None] | None = None
        trail.on_checkpoint = self._note

    def start(self) -> None:
        """Begin to sign by time, and to look after the trail's files."""
        self._task = asyncio.ensure_future(self._go_on())
        self._task.add_done_callback(self._tell_fault)

    async def close(self) -> None:
        """Sign by time no more."""
        tasks = {task for task in (self._task, self._soon) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def sign_soon(self) -> None:
        """Sign now, without waiting, and have the store remember a moment later."""
        with contextlib.suppress(AuditUnavailableError):  # it is tried again, and then logged
            self._trail.checkpoint()
        self._soon = asyncio.ensure_future(self.sign_if_possible())
        self._soon.add_done_callback(self._tell_fault)

    async def sign(self) -> None:
        """Sign what came since the last checkpoint, and have the store remember; raises a KmsError."""
        self._trail.checkpoint()
        await self._keep()

    async def sign_if_possible(self) -> None:
        """Sign as `sign` does; a failure is logged, because the next time makes up for it."""
        try:
            await self.sign()
        except SealedError:
            return  # sealed in between: there is nothing to sign with
        except KmsError as error:
            self._logger.warning("audit_not_signed", code=error.code, reason=error.message)
        except StoreError as error:  # the anchor was changed under the daemon, which the next unseal reports
            self._logger.warning("audit_not_signed", code=IntegrityError.code, reason=str(error))

    async def _go_on(self) -> None:
        due = self._clock() + self._seconds
        told_last: str | None = None
        while True:
            await self._sleep(min(_LOOK_SECONDS, self._seconds))
            try:
                trouble = await self._trail.maintain()
            except AuditUnavailableError as error:
                trouble = error.message
            if trouble is not None and trouble != told_last:  # what stays as it is, is told once
                self._logger.warning("audit_files_not_maintained", reason=trouble)
            told_last = trouble
            if self._clock() >= due and self._trail.signer is not None:
                due = self._clock() + self._seconds
                await self.sign_if_possible()

    def _note(self, checkpoint: Checkpoint) -> None:
        self._written = checkpoint

    async def _keep(self) -> None:
        async with self._turn:
            checkpoint = self._written
            if checkpoint is None or checkpoint == self._kept:
                return
            await self._trail.sync()
            if checkpoint != self.last:
                self.last = checkpoint
                self._announce(checkpoint)
            with told():
                row = await self._store.anchor()
                new = AnchorRow(**msgspec.structs.asdict(checkpoint), version=row.version + 1 if row else 1)
                await self._store.commit(None, [Replace(new) if row else Insert(new)])
            self._kept = checkpoint

    def _tell_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._logger.fault("checkpoints_failed", fault)


def log_anchor(logger: Logger, checkpoint: Checkpoint) -> None:
    """Announce a checkpoint in the service log; `kms audit verify --anchors` finds it there."""
    logger.info("audit_checkpoint", **msgspec.to_builtins(checkpoint))


def announce_nowhere(checkpoint: Checkpoint) -> None:
    """Announce nothing: the log is a terminal that somebody works at, and nobody keeps it."""
