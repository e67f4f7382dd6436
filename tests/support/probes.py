"""What a process that was taken over would try, each with the name of the error that it met, or "allowed"."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
from collections.abc import Callable

# asm/unistd_64.h and asm-generic/unistd.h: the same numbers on every architecture from 424 on.
PIDFD_GETFD, MEMFD_SECRET, IO_URING_SETUP = 438, 447, 425
# linux/ptrace.h, linux/prctl.h, linux/sched.h
PTRACE_SEIZE, PR_SET_DUMPABLE, CLONE_NEWUSER = 0x4206, 4, 0x10000000
PAGE = mmap.PAGESIZE

libc = ctypes.CDLL(None, use_errno=True)


def called(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def execute() -> None:
    os.execv("/bin/true", ["true"])  # noqa: S606 - it is refused


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def read_shadow() -> None:
    os.close(os.open("/etc/shadow", os.O_RDONLY))


def read_passwd() -> None:
    os.close(os.open("/etc/passwd", os.O_RDONLY))


def write_outside() -> None:
    os.close(os.open("/tmp/kmsd-was-here", os.O_WRONLY | os.O_CREAT, 0o600))


def connect_out() -> None:
    with socket.socket(socket.AF_INET) as sock:
        sock.connect(("127.0.0.1", 9))


def connect_locally() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0nobody")


def trace() -> None:
    called(libc.ptrace(PTRACE_SEIZE, os.getppid(), 0, 0))


def take_descriptor() -> None:
    called(libc.syscall(PIDFD_GETFD, 0, 0, 0))


def read_memory() -> None:
    called(libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0))


def signal_parent() -> None:
    os.kill(os.getppid(), 0)


def signal_everybody() -> None:
    os.kill(-1, 0)


def make_namespace() -> None:
    called(libc.unshare(CLONE_NEWUSER))


def make_ring() -> None:
    called(libc.syscall(IO_URING_SETUP, 1, 0))


def become_dumpable() -> None:
    called(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))


def allow_cores() -> None:
    called(libc.setrlimit(resource.RLIMIT_CORE, (ctypes.c_ulong * 2)(0, 0)))


def run_new_code() -> None:
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    called(libc.mprotect(ctypes.c_void_p(address), PAGE, mmap.PROT_READ | mmap.PROT_EXEC))


def become_root() -> None:
    os.setresuid(0, 0, 0)


FORBIDDEN: tuple[Callable[[], None], ...] = (
    execute,
    fork,
    read_shadow,
    read_passwd,
    write_outside,
    connect_out,
    connect_locally,
    trace,
    take_descriptor,
    read_memory,
    signal_parent,
    signal_everybody,
    make_namespace,
    make_ring,
    become_dumpable,
    allow_cores,
    run_new_code,
    become_root,
)


def lock_memory() -> None:
    called(libc.mlock(ctypes.create_string_buffer(PAGE), PAGE))


def make_secret_memory() -> None:
    descriptor = libc.syscall(MEMFD_SECRET, 0)
    called(descriptor)
    os.close(descriptor)


NEEDED: tuple[Callable[[], None], ...] = (lock_memory, make_secret_memory)


def outcomes(probes: tuple[Callable[[], None], ...]) -> dict[str, str]:
    """What became of each probe."""
    found = {}
    for probe in probes:
        try:
            probe()
        except OSError as error:
            found[probe.__name__] = errno.errorcode[error.errno or 0]
        else:
            found[probe.__name__] = "allowed"
    return found


def report() -> str:
    """All outcomes in a line, short enough for the text of an error."""
    return json.dumps(outcomes(FORBIDDEN + NEEDED), separators=(",", ":"))
