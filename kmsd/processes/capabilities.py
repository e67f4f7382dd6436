"""Capabilities: a process of ours needs none, whoever started it (capabilities(7))."""

from __future__ import annotations

import ctypes
import os

# linux/capability.h: version 3 has two words a set.
_VERSION = 0x20080522
_WORDS = 2
# linux/prctl.h
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
# Kernels have some 41 capabilities; two words of the sets leave room for no more.
_MOST = 64


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct; pid 0 is the thread that asks."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """struct __user_cap_data_struct."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_libc = ctypes.CDLL(None, use_errno=True)


def drop_capabilities() -> None:
    """Give up every capability of this thread, for good. To be called while there is one thread.

    A process of uid 0 keeps what root owns, but no power over what others own.
    """
    if held_capabilities() == 0:
        return  # as under a unit whose filter refuses capset(2)
    zero = ctypes.c_ulong(0)
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), zero, zero, zero)
    for number in range(_MOST):
        # Refused without CAP_SETPCAP, and for numbers that the kernel does not have: then exec, which no_new_privs and
        # the filters forbid anyway, is the only thing that the bounding set could matter for.
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), zero, zero, zero)
    header = _Header(_VERSION, 0)
    if _libc.capset(ctypes.byref(header), (_Sets * _WORDS)()) != 0:
        raise OSError(ctypes.get_errno(), f"capset(2) failed: {os.strerror(ctypes.get_errno())}")


def held_capabilities() -> int:
    """Return the capabilities that this thread has or could have, one bit each."""
    header = _Header(_VERSION, 0)
    sets = (_Sets * _WORDS)()
    if _libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), f"capget(2) failed: {os.strerror(ctypes.get_errno())}")
    words = [int(one.permitted) | int(one.effective) | int(one.inheritable) for one in sets]
    return words[0] | words[1] << 32
