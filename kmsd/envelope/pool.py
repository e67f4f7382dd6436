"""The daemon's side of file workers: who gets one, and what became of it.

Rules:
1. A worker serves one file and ends; `spare` workers wait, so that a file need not wait for a process to be made.
2. At most `size` files at once, and for one uid at most `per_uid` and a quarter of all (at least one).
3. A worker that does not end when it should is killed; one that even then does not end (a process inside a hostile
   FUSE file system ignores SIGKILL) is abandoned: its place is free again, but its uid stays charged for it.
4. The key page is wiped when the worker has reported, after which it writes nothing more, or when its control socket
   is closed and it is known to have ended: one that could still go on must never make frames under a wiped key. Of
   such a worker the page is only unmapped; the kernel clears it when the worker's own mapping goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from kmsd.api.errors import KmsError, KMSInternalError, ShuttingDownError, ThrottlingError
from kmsd.api.failure import Failure
from kmsd.envelope import control
from kmsd.envelope.control import WORKER_ENTRY, Acknowledgement, Direction, Job, Outcome
from kmsd.envelope.conversation import MAX_DATAGRAM_BYTES
from kmsd.memory.page import Page
from kmsd.processes.zygote import Child, SpawnError, Zygote, ZygoteGoneError

__all__ = ["WORKER_ENTRY", "Direction", "FileJob", "FileOutcome", "FileStream", "WorkerPool"]

# One uid's share of all workers (DESIGN 4).
_SHARE = 4
# A worker gives up a silent client after START_SECONDS by itself; one that does not say so soon after hangs.
_START_SECONDS = control.START_SECONDS + 5
# From the acknowledgement to the worker's end; longer than it waits for a client that does not read.
_END_SECONDS = 10.0
# SIGKILL ends a process within milliseconds, unless it waits inside the kernel for somebody else.
_KILL_SECONDS = 2.0


@dataclass(frozen=True)
class FileJob:
    """One file: the whole serialized header, and the message key (32 bytes, borrowed while `start` runs)."""

    direction: Direction
    header: bytes
    message_key: memoryview


@dataclass(frozen=True)
class FileOutcome:
    """How a file ended; lengths in bytes, the message's with its header.

    They are None when the worker did not tell them: some of it may have been written.
    """

    plaintext_bytes: int | None
    message_bytes: int | None
    error: KmsError | None


class _Worker:
    """A worker process and the daemon's end of its control socket."""

    def __init__(self, child: Child, daemon_end: socket.socket) -> None:
        self.child = child
        self.socket = daemon_end


class FileStream:
    """A file under way. `client_descriptor` goes to the client; whoever sends it closes it."""

    def __init__(self, worker: _Worker, page: Page, client_descriptor: int, *, uid: int) -> None:
        self.client_descriptor = client_descriptor
        self.uid = uid
        self.worker = worker
        self.page = page
        # Whether the outcome came from the worker itself, which then ends when it is acknowledged.
        self.reported = False
        self.acknowledged = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[FileOutcome] = self._loop.create_future()
        self._deadline = self._loop.call_later(_START_SECONDS, self.fail, "the file worker hangs")
        self._loop.add_reader(worker.socket.fileno(), self._read)

    async def outcome(self) -> FileOutcome:
        """Wait for the worker's report; one that died or hangs is an outcome too. May be cancelled and repeated."""
        return await asyncio.shield(self._outcome)

    async def acknowledge(self, error: KmsError | None = None) -> None:
        """Let the worker tell the client the outcome, or `error` instead; to be called when the outcome is recorded."""
        acknowledgement = Acknowledgement(Failure.of(error) if error else None)
        with contextlib.suppress(OSError):  # it died after its report; the client sees its end close
            self.worker.socket.send(control.encode(acknowledgement))
        self.acknowledged.set()

    def fail(self, reason: str) -> None:
        """Make a failure the outcome, unless there is one."""
        self.conclude(FileOutcome(None, None, KMSInternalError(reason)))

    def conclude(self, outcome: FileOutcome) -> None:
        """Set the outcome, unless there is one, and stop listening to the worker."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)
            self._deadline.cancel()
            self._loop.remove_reader(self.worker.socket.fileno())

    def _read(self) -> None:
        try:
            data = self.worker.socket.recv(MAX_DATAGRAM_BYTES)
            report = control.decode_report(data) if data else None
        except BlockingIOError:
            return
        except (ConnectionError, msgspec.DecodeError, UnicodeDecodeError):  # the last for text that is no UTF-8
            report = None
        match report:
            case None:
                self.fail("the file worker died")
            case Outcome(plaintext_bytes, message_bytes, error):
                self.reported = True
                self.conclude(FileOutcome(plaintext_bytes, message_bytes, error.error() if error else None))
            case _:
                self._deadline.cancel()


class WorkerPool:
    """All file workers: at most `size` busy, `per_uid` of them for one uid, and `spare` waiting.

    The zygote's WORKER_ENTRY is `run_worker`.
    """

    def __init__(self, zygote: Zygote, *, size: int, per_uid: int, spare: int) -> None:
        self._zygote = zygote
        self._size = size
        self._per_uid = min(per_uid, max(1, size // _SHARE))
        self._spare = spare
        self._idle: deque[_Worker] = deque()
        self._busy = 0
        self._charged: dict[int, int] = {}
        self._streams: set[FileStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._filling = asyncio.Lock()
        self._closing = False

    @property
    def size(self) -> int:
        """How many files may be under way."""
        return self._size

    @property
    def busy(self) -> int:
        """How many files are under way, abandoned workers not counted."""
        return self._busy

    async def fill(self) -> None:
        """Make the spare workers now, rather than behind the first file. Raises KMSInternalError."""
        async with self._filling:
            while len(self._idle) < self._spare and not self._closing:
                self._idle.append(await self._spawn())

    async def start(self, job: FileJob, *, uid: int) -> FileStream:
        """Give a worker `job` on behalf of `uid`.

        Raises ThrottlingError when the uid or the pool has no place left, ShuttingDownError, and KMSInternalError when
        no process can be made.
        """
        self._charge(uid)
        try:
            stream = await self._start(job, uid)
        except BaseException:
            self._busy -= 1
            self._discharge(uid)
            raise
        self._streams.add(stream)
        self._run(self._retire(stream))
        self._run(self._refill())
        return stream

    async def close(self) -> None:
        """End all workers; files under way fail with ShuttingDownError."""
        self._closing = True
        async with self._filling:
            for worker in self._idle:
                worker.socket.close()  # which a spare worker takes as its end
            self._idle.clear()
        for stream in tuple(self._streams):
            stream.conclude(FileOutcome(None, None, ShuttingDownError("the daemon is stopping")))
            # One that was acknowledged is about to tell its client and to end by itself.
            if not stream.acknowledged.is_set():
                await self._kill(stream.worker)
                stream.acknowledged.set()
        tasks = tuple(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=2 * _KILL_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _charge(self, uid: int) -> None:
        if self._closing:
            raise ShuttingDownError("the daemon is stopping")
        held = self._charged.get(uid, 0)
        if held >= self._per_uid:
            raise ThrottlingError(f"user id {uid} has {held} files under way, of at most {self._per_uid}")
        if self._busy >= self._size:
            raise ThrottlingError(f"all {self._size} file workers are busy")
        self._busy += 1
        self._charged[uid] = held + 1

    def _discharge(self, uid: int) -> None:
        self._charged[uid] -= 1
        if not self._charged[uid]:
            del self._charged[uid]

    async def _start(self, job: FileJob, uid: int) -> FileStream:
        page = Page.create()
        try:
            page.view[: len(job.message_key)] = job.message_key
            client_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with client_end, worker_end:
                encoded = control.encode(Job(job.direction, job.header))
                worker = await self._send(encoded, [page.fd, worker_end.fileno()])
                # An open descriptor of secret memory could be taken and mapped; the mapping alone cannot.
                page.close_descriptor()
                return FileStream(worker, page, client_end.detach(), uid=uid)
        except BaseException:
            page.close()
            raise

    async def _send(self, job: bytes, descriptors: list[int]) -> _Worker:
        """Send a job to the first spare worker that is alive, else to a new one."""
        while True:
            worker = self._idle.popleft() if self._idle else await self._spawn()
            try:
                socket.send_fds(worker.socket, [job], descriptors)
            except ConnectionError:
                worker.socket.close()
            except OSError as error:
                worker.socket.close()
                raise KMSInternalError(f"a file worker cannot be given its job: {error.strerror}") from error
            else:
                return worker

    async def _spawn(self) -> _Worker:
        daemon_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with worker_end:
            try:
                child = await self._zygote.spawn(WORKER_ENTRY, [worker_end.fileno()])
            except BaseException as error:
                daemon_end.close()
                if isinstance(error, SpawnError | ZygoteGoneError):
                    raise KMSInternalError(f"no file worker can be made: {error}") from error
                raise
        daemon_end.setblocking(False)
        return _Worker(child, daemon_end)

    async def _refill(self) -> None:
        with contextlib.suppress(KMSInternalError):  # the next file tries again, and is told
            await self.fill()

    async def _retire(self, stream: FileStream) -> None:
        """See a worker to its end, whatever it takes, and give back what it held."""
        ended = asyncio.ensure_future(self._ended(stream.worker.child))
        try:
            await stream.outcome()
            if stream.reported:
                stream.page.close()
                await stream.acknowledged.wait()
                await asyncio.wait({ended}, timeout=_END_SECONDS)
            if not ended.done():
                await self._kill(stream.worker)
                await asyncio.wait({ended}, timeout=_KILL_SECONDS)
        finally:
            stream.worker.socket.close()
            if stream.reported or (ended.done() and ended.result()):
                stream.page.close()
            else:
                _unmap(stream.page)
            self._streams.discard(stream)
            self._busy -= 1
        await ended
        self._discharge(stream.uid)

    @staticmethod
    async def _ended(child: Child) -> bool:
        """Wait until the child has ended, and return whether that is certain: reaped, not only bound to be killed."""
        try:
            await child.wait()
        except ZygoteGoneError:  # the kernel has sent SIGKILL to its children, which may not have taken effect yet
            return False
        return True

    async def _kill(self, worker: _Worker) -> None:
        with contextlib.suppress(ZygoteGoneError, SpawnError):
            await self._zygote.kill(worker.child)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _unmap(page: Page) -> None:
    """Give up this process's mapping of a page, and leave what is in it to the worker that still has it."""
    page.close_descriptor()
    page.view.release()
