"""What a process of ours gives up: being read by others, privileges by exec, and what it inherited."""

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Collection

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38

_STANDARD = {0, 1, 2}

_libc = ctypes.CDLL(None, use_errno=True)


def harden_process() -> None:
    """Let nobody look into this process and nothing it executes gain privileges; forked children inherit all of it.

    Not dumpable: no core file, no ptrace(2) by the same uid, /proc/PID belongs to root. execve(2) and a change of uid
    make a process dumpable again, so call it after those.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # A core pattern that pipes to a program ignores the limit, but then it is the other rule that counts (core(5)).
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def close_descriptors_except(keep: Collection[int]) -> None:
    """Close every descriptor but those in `keep`, and put /dev/null in the place of 0 to 2 where they are not kept."""
    for descriptor in _open_descriptors() - set(keep):
        with contextlib.suppress(OSError):  # the one that read the list is closed already
            os.close(descriptor)
    for _ in _STANDARD - set(keep):
        null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is one of these
        os.set_inheritable(null, True)  # what every program expects of 0 to 2


def blank_descriptors_except(keep: Collection[int]) -> None:
    """Replace every descriptor but those in `keep`, and all of 0 to 2, by /dev/null; every number stays taken.

    For a process that goes on forking. Libraries that take care of themselves after a fork close, in each child, the
    numbers they once had (libuv its signal pipe, as soon as there was one loop); were those numbers free, they would
    soon be descriptors passed to that child.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (_open_descriptors() | _STANDARD) - {null, *keep}:
        os.dup2(null, descriptor, inheritable=descriptor in _STANDARD)


def _open_descriptors() -> set[int]:
    # Trying every number takes seconds where the limit is high, and close_range(2) is not in every libc that Python is
    # built with.
    return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 - descriptors, not paths


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends; ends it now if that has happened."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def name_process(name: str) -> None:
    """Set the name that `ps` and `top` show; the kernel keeps the first 15 bytes."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()))


def _prctl(option: int, argument: int | ctypes.c_char_p) -> None:
    # prctl(2) is variadic and reads unsigned longs; some options insist that the unused ones are 0.
    value = ctypes.c_ulong(argument) if isinstance(argument, int) else argument
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, value, zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed: {os.strerror(number)}")
