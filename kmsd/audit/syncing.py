"""Make appended lines durable: one thread that calls fdatasync for everybody.

1. Lines that nobody waits for are synced at most every `INTERVAL_SECONDS`.
2. Whoever waits shares one fdatasync with all who came before it began.
3. A failed fdatasync closes the trail until one succeeds. Calling it again would not do: Linux reports a write error
   once and then holds the pages for clean, so the second call succeeds over lost data. The lines are therefore read
   back, checked against the chain, written once more in their place and synced.
4. An fdatasync that does not return closes the trail after `REFUSE_AFTER_SECONDS`, instead of letting lines pile up
   that a power cut would take; whoever waits for one waits `DEADLINE_SECONDS`.

What remains: write(2) is called on the event loop, and one that itself blocks (a frozen file system, a network one
whose server is gone, a page under writeback that must stay stable) holds the daemon up for as long; no deadline can end
it. A sync that is stuck is the sign of such a disk, so refusing early leaves it little time to happen.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from concurrent.futures import Future
from pathlib import Path

from kmsd.audit.active import ActiveFile, End
from kmsd.audit.reading import lines_between
from kmsd.audit.system import System, unavailable
from kmsd.audit.verify import ChainBrokenError, verify

# What a power cut may cost, as documented for `audit.sync = interval`; 20 syncs a second leave a disk to others.
INTERVAL_SECONDS = 0.05

# A disk that is flooded by another process was measured to take 0.1 s at the 99th percentile; writeback of a busy
# ext4 journal can take seconds. A disk that takes longer than this is broken for a caller's purposes.
DEADLINE_SECONDS = 5.0

# Appending ends sooner than waiting: the refusal can be retried and nothing is lost by it, while a write to a disk that
# hangs can hold up every caller. Ten times the 99th percentile above, so that a busy disk alone rarely refuses.
REFUSE_AFTER_SECONDS = 1.0


class Syncer:
    """The thread that syncs the trail's file, and the one that follows it.

    A file's `append_fd` is what is synced; its `fd` is not in append mode, for writing lines once more where they were.
    """

    def __init__(self, path: Path, file: ActiveFile, system: System) -> None:
        self._path = path
        self._file = file
        self._left: deque[ActiveFile] = deque()
        self._system = system
        self._waiters: deque[Future[None]] = deque()
        self._pending = False
        self._parked = False
        self._closing = False
        self._wake = threading.Event()
        self._failure: str | None = None
        self._syncing_since: float | None = None
        # When the oldest line was written that the sync under way, or the failed one, was for; and of those behind it.
        self._due_since: float | None = None
        self._next_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="audit-sync", daemon=True)
        self._thread.start()

    def trouble(self) -> str | None:
        """Return why nothing may be appended now, None if all is well."""
        since = self._syncing_since
        if since is not None and self._system.monotonic() - since > REFUSE_AFTER_SECONDS:
            return f"a sync has not returned for {REFUSE_AFTER_SECONDS:.0f} s"
        return self._failure

    @property
    def lag_seconds(self) -> float:
        """For how long the oldest line that is to be synced has waited for it, 0 if there is none."""
        since = self._next_since if self._due_since is None else self._due_since
        return 0.0 if since is None else self._system.monotonic() - since

    def schedule(self) -> None:
        """Have what was appended synced within the interval; costs no system call while the thread is at work."""
        self._expect()
        if self._parked:
            self._wake.set()

    async def sync(self) -> None:
        """Return when everything appended so far is durable; raises AuditUnavailableError."""
        waiter: Future[None] = Future()
        self._waiters.append(waiter)
        self._expect()
        self._wake.set()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.wrap_future(waiter)
        except TimeoutError:
            raise unavailable(self._path, f"a sync has not returned for {DEADLINE_SECONDS:.0f} s") from None

    def _expect(self) -> None:
        if self._next_since is None:
            self._next_since = self._system.monotonic()
        self._pending = True

    def switch(self, file: ActiveFile) -> None:
        """Sync `file` from now on, and close the one before when no call uses it any more.

        All lines of the one before must be on the disk, so whoever waits for some of them is not kept waiting long.
        """
        left, self._file = self._file, file
        self._left.append(left)
        self.schedule()

    def close(self) -> bool:
        """Sync what is left and end the thread; False if it hangs in the kernel, and then keeps its descriptors."""
        self._closing = True
        self._pending = True
        self._wake.set()
        self._thread.join(DEADLINE_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            # Whoever appends sets _pending and then looks at _parked; here it is the other way round, so that one of
            # the two always sees the other.
            self._parked = True
            if not self._pending:
                self._wake.wait()
            self._parked = False
            self._wake.clear()
            closing = self._closing
            self._pending = False
            since, self._next_since = self._next_since, None
            if self._due_since is None:
                self._due_since = since
            started = self._system.monotonic()
            self._sync_once()
            while self._left:
                self._left.popleft().close()
            if closing:
                return
            # A waiter sets _wake, and ends the pause.
            self._wake.wait(max(0.0, started + INTERVAL_SECONDS - self._system.monotonic()))

    def _sync_once(self) -> None:
        waiters = []
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.set_running_or_notify_cancel():
                waiters.append(waiter)
        file = self._file
        end = file.end
        self._syncing_since = self._system.monotonic()
        try:
            if self._failure is not None:
                self._write_again(file, end)
            self._system.fdatasync(file.append_fd)
        except OSError as exc:
            self._fail(f"sync failed: {exc.strerror or exc}", waiters)
        except ChainBrokenError as exc:
            self._fail(f"lines that could not be synced were lost: {exc}", waiters)
        else:
            file.synced = end
            self._failure = None
            self._due_since = None
            for waiter in waiters:
                waiter.set_result(None)
        finally:
            self._syncing_since = None

    def _fail(self, reason: str, waiters: list[Future[None]]) -> None:
        self._failure = reason
        self._pending = True  # try again after the interval, although nothing is appended meanwhile
        for waiter in waiters:
            waiter.set_exception(unavailable(self._path, reason))

    def _write_again(self, file: ActiveFile, end: End) -> None:
        synced = file.synced
        lines = list(lines_between(file.fd, synced.size, end.size))
        report = verify(lines, start=synced.head)
        if (report.last_seq, report.last_hash) != end.head:
            raise OSError(None, "the lines to be synced are not in the file any more")
        data, offset = memoryview(b"".join(lines)), synced.size
        while data:
            written = os.pwrite(file.fd, data, offset)
            data, offset = data[written:], offset + written
