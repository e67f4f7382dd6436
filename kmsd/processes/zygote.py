"""The daemon's side of the zygote: the only way it makes processes.

What ends what:
- a child ends: the zygote reaps it at once, and `Child.wait` returns its exit code;
- the zygote ends: the kernel kills its children; `spawn`, `kill` and `wait` raise `ZygoteGoneError`;
- the daemon ends, however: its end of the socket closes; the zygote kills and reaps its children and ends.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import msgspec

from kmsd.processes.messages import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE_BYTES,
    Exited,
    Kill,
    Ping,
    Pong,
    Refused,
    Reply,
    Request,
    Spawn,
    Spawned,
)
from kmsd.processes.spawning import Entry, run_zygote

__all__ = ["Child", "Entry", "SpawnError", "Zygote", "ZygoteGoneError"]

# The zygote gives its last children a second (spawning.py); what takes much longer hangs.
_CLOSE_SECONDS = 3.0
# A thread that was joined leaves the kernel's list some microseconds later; so many milliseconds are waited for it.
_THREAD_EXIT_ATTEMPTS = 100


class ZygoteGoneError(RuntimeError):
    """The zygote has ended, and with it all its children; no process can be made until the daemon is started anew."""


class SpawnError(RuntimeError):
    """The child could not be made; the message says which limit or failure it was. Another attempt may succeed."""


class Child:
    """A process made by the zygote. `number` is the zygote's name for it, never used twice."""

    def __init__(self, number: int, pid: int, ended: asyncio.Future[int]) -> None:
        self.number = number
        self.pid = pid
        self._ended = ended

    async def wait(self) -> int:
        """Return the exit code (0: the entry returned, 1: it raised, negative: a signal ended it).

        May be called any number of times, and cancelled. Raises `ZygoteGoneError` when the zygote ended first.
        """
        return await asyncio.shield(self._ended)


class Zygote:
    """The single-threaded, key-free process that forks all others. Make it with `start`."""

    def __init__(self, pid: int, control: socket.socket, entries: frozenset[str]) -> None:
        self.pid = pid
        self._control = control
        self._entries = entries
        self._decoder = msgspec.msgpack.Decoder(Reply)
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Child]] = {}
        self._running: dict[int, asyncio.Future[int]] = {}
        self._pings: deque[asyncio.Future[None]] = deque()
        self._gone = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def start(cls, entries: Mapping[str, Entry], confine: Callable[[], None] = lambda: None) -> Self:
        """Fork the zygote now. `entries` are what children can be asked to run, by name; `confine` restricts it.

        Raises RuntimeError when this process has threads already: a lock that one of them holds at this moment would
        stay locked in every child.
        """
        if _has_other_threads():
            raise RuntimeError("the zygote has to be started before any thread")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A signal for our process group must not reach the zygote before it ignores it.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = os.fork()
                if pid == 0:
                    run_zygote(theirs, entries, confine)
            except OSError:
                ours.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ours.setblocking(False)
        return cls(pid, ours, frozenset(entries))

    async def spawn(self, entry: str, descriptors: Sequence[int]) -> Child:
        """Return a new child that runs `entry` with copies of `descriptors`, in this order.

        The caller keeps its own and may close them as soon as this returns. Cancelling leaves no child behind. Raises
        ValueError for an unknown entry or too many descriptors, OSError when a descriptor is not open, `SpawnError`
        when a limit is reached, and `ZygoteGoneError`.
        """
        if entry not in self._entries:
            raise ValueError(f"the zygote knows no entry {entry!r}; it was started with {sorted(self._entries)}")
        if len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(f"a child can be given {MAX_DESCRIPTORS} descriptors, not {len(descriptors)}")
        loop = self._attach()
        number = next(self._numbers)
        self._send(Spawn(number, entry, len(descriptors)), descriptors)
        request: asyncio.Future[Child] = loop.create_future()
        self._requests[number] = request
        try:
            return await request
        except asyncio.CancelledError:
            if not request.cancelled() and request.exception() is None:  # it came in the same turn of the loop
                self._abandon(number)
            raise

    async def kill(self, child: Child) -> None:
        """Send SIGKILL to the child, unless it has ended; `child.wait` tells when it has. Raises `ZygoteGoneError`."""
        self._attach()
        if child.number in self._running:
            self._send(Kill(child.number))

    async def ping(self) -> None:
        """Return when the zygote has answered, which it does in the order of requests; may raise as `spawn` does."""
        loop = self._attach()
        self._send(Ping())
        answer: asyncio.Future[None] = loop.create_future()
        self._pings.append(answer)
        await answer

    async def close(self) -> None:
        """End the zygote and all children, and wait for it; a second call does nothing."""
        with contextlib.suppress(ZygoteGoneError):
            self._attach()
            self._control.shutdown(socket.SHUT_WR)  # it still reports how its children end
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._gone.wait()
            except TimeoutError:
                # A daemon that is confined may not signal it (Landlock); it is left to who started the daemon.
                with contextlib.suppress(PermissionError, TimeoutError):
                    os.kill(self.pid, signal.SIGKILL)
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await self._gone.wait()

    def _attach(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, which reads the zygote's messages from the first request on."""
        if self._gone.is_set():
            raise ZygoteGoneError("the zygote has ended; start the daemon anew")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            loop.add_reader(self._control.fileno(), self._read)
            self._loop = loop
        return loop

    def _send(self, request: Request, descriptors: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._control, [msgspec.msgpack.encode(request)], descriptors)
        except BlockingIOError as error:
            raise SpawnError("the zygote does not keep up: its queue of requests is full") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ZygoteGoneError("the zygote has ended; start the daemon anew") from error
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            raise SpawnError("too many descriptors are on their way: RLIMIT_NOFILE is reached") from error

    def _abandon(self, number: int) -> None:
        """End a child whose request was cancelled."""
        with contextlib.suppress(ZygoteGoneError, SpawnError):  # gone with the zygote; or, its queue full, left alone
            self._send(Kill(number))

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    message = self._control.recv(MAX_MESSAGE_BYTES)
                except ConnectionResetError:  # it ended with requests unread
                    message = b""
                if not message:
                    return self._lose_zygote()
                self._handle(self._decoder.decode(message))

    def _handle(self, reply: Reply) -> None:
        match reply:
            case Spawned(number, pid):
                request = self._requests.pop(number)
                ended = self._running[number] = request.get_loop().create_future()
                if request.cancelled():
                    self._abandon(number)
                else:
                    request.set_result(Child(number, pid, ended))
            case Refused(number, reason):
                request = self._requests.pop(number)
                if not request.cancelled():
                    request.set_exception(SpawnError(reason))
            case Exited(number, code):
                self._running.pop(number).set_result(code)
            case Pong():
                if not (answer := self._pings.popleft()).cancelled():
                    answer.set_result(None)

    def _lose_zygote(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._control.fileno())
        self._control.close()
        with contextlib.suppress(ChildProcessError):  # somebody else's waitpid(-1) was faster
            os.waitpid(self.pid, 0)  # returns at once: its end of the socket was closed by its exit
        futures: list[asyncio.Future[Any]] = [*self._requests.values(), *self._running.values(), *self._pings]
        for future in futures:
            if not future.done():
                future.set_exception(ZygoteGoneError("the zygote ended, and with it all its children"))
                future.exception()  # nobody has to wait for a child; asyncio would log an error nobody fetched
        self._requests.clear()
        self._running.clear()
        self._pings.clear()
        self._gone.set()


def _has_other_threads() -> bool:
    """Whether there are threads, those of C libraries included, beside the one that asks."""
    for _ in range(_THREAD_EXIT_ATTEMPTS):
        if len(os.listdir("/proc/self/task")) == 1:  # noqa: PTH208 - tasks, not paths
            return False
        if threading.active_count() > 1:
            break
        time.sleep(0.001)
    return True
