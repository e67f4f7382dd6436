"""Landlock: which files a process may still open, by folder (landlock(7)).

Rules belong to the folders and files themselves, not to their paths: one that is replaced later has none, so rules for
what changes name its folder. Descriptors that are open stay as they are. The restriction is on the thread that asks
and on all that it starts, so it comes before there are others.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# The same on every architecture (asm-generic/unistd.h: calls from 424 on are).
_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
# What kernels without it, or that were started without it, answer.
_ABSENT = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


class Access(enum.IntFlag):
    """What can be restricted (linux/landlock.h)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_READ = Access.READ_FILE | Access.READ_DIR
# The daemon's own socket lies in its folder; no device files, pipes or links are ever made.
_WRITE = (
    _READ
    | Access.WRITE_FILE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SOCK
    | Access.REFER
    | Access.TRUNCATE
    | Access.IOCTL_DEV
)
# What may be asked for on something that is no folder.
_ON_FILES = Access.READ_FILE | Access.WRITE_FILE | Access.TRUNCATE | Access.IOCTL_DEV


class _Version(NamedTuple):
    """A version of the kernel's interface: what it can restrict beside what the ones before it can."""

    number: int
    files: Access
    network: int = 0  # bind and connect by TCP
    scopes: int = 0  # abstract Unix sockets, and signals, of whom is not under the same restriction


_VERSIONS = (
    _Version(1, Access(Access.REFER - 1)),
    _Version(2, Access.REFER),
    _Version(3, Access.TRUNCATE),
    _Version(4, Access(0), network=0b11),
    _Version(5, Access.IOCTL_DEV),
    _Version(6, Access(0), scopes=0b11),
)


class LandlockUnavailableError(RuntimeError):
    """The kernel has no Landlock, or not now; the message says why."""


@dataclass(frozen=True)
class Reach:
    """The files a process may open: `readable` and `writable` folders, files and devices.

    What does not exist, or cannot be reached, counts for nothing. `network` leaves TCP open, `local` lets it connect to
    abstract Unix sockets.
    """

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    network: bool = False
    local: bool = False


class _RulesetAttributes(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def restrict_files(reach: Reach) -> None:
    """Let this thread, and what it starts, open no file beyond `reach`, and execute none; needs no_new_privs.

    What an older kernel cannot restrict stays open: how much that is, `version` tells. Raises
    LandlockUnavailableError, and OSError when a path cannot be looked at.
    """
    known = version()
    versions = [one for one in _VERSIONS if one.number <= known]
    files = Access(0)
    network = scopes = 0
    for one in versions:
        files |= one.files
        network |= 0 if reach.network else one.network
        # Bit 0 is about abstract sockets, bit 1 about signals.
        scopes |= one.scopes & (0b10 if reach.local else 0b11)
    attributes = _RulesetAttributes(files, network, scopes)
    ruleset = _call(_SYS_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(_size_for(known)), ctypes.c_uint(0))
    try:
        _add_rules(ruleset, reach.readable, _READ & files)
        _add_rules(ruleset, reach.writable, _WRITE & files)
        _call(_SYS_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def version() -> int:
    """Return the version of the kernel's Landlock; raises LandlockUnavailableError when it has none."""
    return _call(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_CREATE_RULESET_VERSION))


def _size_for(known: int) -> int:
    """Return how much of the attributes a kernel of this version knows: more, unless zero, would be refused."""
    for number, size in ((4, 8), (6, 16)):
        if known < number:
            return size
    return ctypes.sizeof(_RulesetAttributes)


def _add_rules(ruleset: int, paths: Iterable[Path], access: Access) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not there, or not to be reached: then it is not reached afterwards either
        try:
            allowed = access if stat.S_ISDIR(os.fstat(descriptor).st_mode) else access & _ON_FILES
            rule = _PathBeneath(allowed, descriptor)
            _call(
                _SYS_ADD_RULE,
                ctypes.c_int(ruleset),
                ctypes.c_int(_RULE_PATH_BENEATH),
                ctypes.byref(rule),
                ctypes.c_uint(0),
            )
        finally:
            os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        if code in _ABSENT:
            raise LandlockUnavailableError(f"the kernel offers no Landlock ({os.strerror(code)})")
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
