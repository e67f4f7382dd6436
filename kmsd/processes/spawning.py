"""The zygote's own side: a single thread that forks children when the daemon asks and says how they ended.

It holds no keys and never will: it was forked before any existed. It lives as long as the daemon's end of the socket
is open, and its children no longer than it.
"""

import array
import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

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
from kmsd.processes.sandbox import (
    blank_descriptors_except,
    close_descriptors_except,
    die_with_parent,
    harden_process,
    name_process,
)

# Runs in the forked child with its descriptors. Returning is exit code 0, an exception is 1; nothing is printed, since
# a traceback could carry data.
Entry = Callable[[list[int]], None]

# How long the last children may take to die. SIGKILL needs milliseconds; a child in an uninterruptible call (FUSE) may
# never go, and is left to init.
_LAST_CHILDREN_SECONDS = 1.0
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)


def run_zygote(control: socket.socket, entries: Mapping[str, Entry], confine: Callable[[], None]) -> NoReturn:
    """Serve the daemon's requests until it closes its end, then end this process. Call in a process just forked.

    `confine` restricts it when it is set up; its children inherit that.
    """
    code = 1
    try:
        gc.freeze()  # what was inherited is never collected: no finalizer runs, and its pages stay shared
        # A process group of its own: keys pressed at the daemon's terminal are the daemon's affair. Not a session: each
        # is scheduled as one (sched(7), autogroup), and a worker's nice value would count for nothing beside the
        # daemon. Two busy workers in a session of their own were measured to leave the daemon 100 requests a second of
        # 40,000.
        os.setpgid(0, 0)
        name_process("kmsd-zygote")
        blank_descriptors_except({control.fileno()})
        os.environ.clear()
        harden_process()
        _reset_signals()
        confine()
        _Spawner(control, entries).serve()
        code = 0
    finally:
        os._exit(code)


class _Spawner:
    def __init__(self, control: socket.socket, entries: Mapping[str, Entry]) -> None:
        self._control = control
        self._entries = entries
        self._pid = os.getpid()
        self._children: dict[int, int] = {}  # process id to request number
        self._decoder = msgspec.msgpack.Decoder(Request)
        # A child's end becomes a readable byte, so that one poll waits for both. The handler itself has nothing to do.
        self._signalled, signals = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(signals.detach(), warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._signalled, select.POLLIN)

    def serve(self) -> None:
        self._poll.register(self._control, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._signalled.fileno() in ready:
                self._report_ends()
            if self._control.fileno() in ready and not self._serve_request():
                break
        self._poll.unregister(self._control)
        self._end_children()

    def _serve_request(self) -> bool:
        try:
            # socket.recv_fds of Python 3.11 ignores its flags, and so would leave the descriptors inheritable.
            message, ancillary, _, _ = self._control.recvmsg(
                MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # the daemon died with messages of ours unread
            return False
        if not message:
            return False
        descriptors = array.array("i")
        for _, _, content in ancillary:  # nothing but SCM_RIGHTS comes here
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        try:
            match self._decoder.decode(message):
                case Spawn() as request:
                    self._spawn(request, descriptors.tolist())
                case Kill(number):
                    for pid in [pid for pid, child in self._children.items() if child == number]:
                        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the process id is still its own
                case Ping():
                    self._send(Pong())
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _spawn(self, request: Spawn, descriptors: list[int]) -> None:
        if len(descriptors) != request.descriptors:
            # What does not fit into a process's table is dropped by the kernel (MSG_CTRUNC), never queued.
            reason = (
                f"only {len(descriptors)} of {request.descriptors} descriptors arrived; "
                "the zygote has reached RLIMIT_NOFILE (LimitNOFILE= in the unit, `ulimit -n` in a shell)"
            )
            return self._send(Refused(request.number, reason))
        try:
            pid = os.fork()
        except OSError as error:
            return self._send(Refused(request.number, f"fork failed: {error.strerror}"))
        if pid == 0:
            self._become_child(request.entry, descriptors)
        self._children[pid] = request.number
        return self._send(Spawned(request.number, pid))

    def _become_child(self, entry: str, descriptors: list[int]) -> NoReturn:
        # Python's `random` and OpenSSL reseed themselves after a fork; os.urandom is the kernel's.
        code = 1
        try:
            die_with_parent(self._pid)
            name_process(entry)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            close_descriptors_except(descriptors)
            self._entries[entry](descriptors)
            code = 0
        finally:
            os._exit(code)

    def _report_ends(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._signalled.recv(MAX_MESSAGE_BYTES):  # one byte for each signal; how many does not matter
                pass
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            self._send(Exited(self._children.pop(pid), os.waitstatus_to_exitcode(status)))

    def _end_children(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _LAST_CHILDREN_SECONDS
        while self._children and (left := deadline - time.monotonic()) > 0:
            self._poll.poll(left * 1000)
            self._report_ends()

    def _send(self, reply: Reply) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the daemon is gone; the next read says so
            self._control.send(msgspec.msgpack.encode(reply))


def _reset_signals() -> None:
    """Forget the daemon's handlers and its mask, in which `Zygote.start` blocked everything until now.

    SIGINT and SIGTERM are for the daemon, and the zygote ends when the daemon does.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
