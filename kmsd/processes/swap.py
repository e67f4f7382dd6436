"""Swap: keys in use are in memory that is never swapped, but what a library copied for a moment is not."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

# sys/mman.h: what is mapped now and later, each page when it is first touched.
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_OWN_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


class _SystemInfo(ctypes.Structure):
    """struct sysinfo of linux/sysinfo.h: 112 bytes, of which this names the first that are needed."""

    _fields_ = (
        ("uptime", ctypes.c_long),
        ("loads", ctypes.c_ulong * 3),
        ("memory", ctypes.c_ulong * 4),
        ("swap", ctypes.c_ulong),
        ("rest", ctypes.c_ubyte * 64),
    )


class SwapPossibleError(RuntimeError):
    """Memory of this process may be written to swap; the message says what to change."""


def rule_out_swap() -> str:
    """Make sure that no memory of this process is swapped, and return why it is not; raises SwapPossibleError.

    Locking all memory is the last resort, and only where it has no limit: under one, the mapping that exceeds it fails,
    wherever that happens to be.
    """
    if _is_forbidden():
        return "the control group forbids it (memory.swap.max = 0)"
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
            raise SwapPossibleError(f"mlockall(2) failed: {os.strerror(ctypes.get_errno())}")
        return "all memory is locked"
    if not _has_swap():
        return "the host has no swap now"
    raise SwapPossibleError("the host has swap: set MemorySwapMax=0 in the unit, or lift RLIMIT_MEMLOCK")


def _is_forbidden() -> bool:
    try:
        lines = _OWN_GROUP.read_text(encoding="utf-8").splitlines()
        group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
        return group is not None and (_GROUPS / group / "memory.swap.max").read_text(encoding="ascii").strip() == "0"
    except (OSError, UnicodeDecodeError):
        return False


def _has_swap() -> bool:
    """Ask the kernel by sysinfo(2): /proc/swaps is not there for a service that sees its own processes only."""
    info = _SystemInfo()
    return bool(ctypes.CDLL(None).sysinfo(ctypes.byref(info)) != 0 or info.swap != 0)
