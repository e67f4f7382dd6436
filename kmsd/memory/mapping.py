"""The system calls behind secret memory; the only module of this package that knows libc.

Python's own `mmap.mmap` keeps a hidden duplicate of the descriptor for as long as the mapping lives, and root could
take that duplicate with pidfd_getfd(2) and map it. So mmap(2) is called directly, and the caller decides when the
descriptor is closed.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import weakref
from enum import StrEnum


class SecretMemoryUnavailableError(RuntimeError):
    """The kernel gives no memory that is fit for keys; the message says why and what to change."""


class MemoryKind(StrEnum):
    """How memory is kept secret, best first."""

    HIDDEN = "memfd_secret"  # taken out of the kernel's own mapping: not even /proc/PID/mem or ptrace(2) reads it
    LOCKED = "memfd_create+mlock"  # never swapped and not in core dumps, but root and debuggers can read it


# memfd_secret(2) has no libc wrapper; its number is the same on every architecture that has it (linux/unistd.h).
_SYS_MEMFD_SECRET = 447
# With these a kernel says that the call is not there (also: secretmem.enable=0), or a filter of system calls says so.
_NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.EPERM})
# No holder of the other end can shrink a shared page under our feet, which would end us with SIGBUS. memfd_secret(2)
# needs no seals: its size can be set only once.
_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.getrandom.restype = ctypes.c_ssize_t
_libc.getrandom.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]


def create_descriptor(size: int, *, allow_fallback: bool) -> int:
    """Return a descriptor of `size` bytes of fresh, zeroed secret memory, close-on-exec.

    `allow_fallback` permits `MemoryKind.LOCKED` where the kernel has no memfd_secret(2). Raises
    `SecretMemoryUnavailableError`, and OSError when descriptors run out.
    """
    descriptor = _libc.syscall(ctypes.c_long(_SYS_MEMFD_SECRET), ctypes.c_uint(os.O_CLOEXEC))
    if descriptor >= 0:
        return _sized(descriptor, size)
    failure = _last_error()
    if failure.errno not in _NO_SUCH_CALL:
        raise failure
    if not allow_fallback:
        raise SecretMemoryUnavailableError(
            f"memfd_secret(2) is not available ({failure.strerror}) and nothing less is allowed; before Linux 6.5 the "
            "kernel needs secretmem.enable=1 on its command line, and a unit needs SystemCallFilter=memfd_secret"
        )
    descriptor = _sized(os.memfd_create("kmsd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _FIXED_SIZE)
    return descriptor


def kind_of(descriptor: int) -> MemoryKind:
    """Return which kind of memory a descriptor made by `create_descriptor` stands for, here or in another process."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:  # how memfd_secret(2) answers: it knows no seals
            raise
        return MemoryKind.HIDDEN
    return MemoryKind.LOCKED


def map_descriptor(descriptor: int, size: int) -> memoryview:
    """Map secret memory and return it as one writable view of bytes.

    The mapping is left out of core dumps and of forked children, and stays when the descriptor is closed. It goes
    when the last view of it (slices included) is gone, so that no view ever points to unmapped memory; whoever made
    it wipes it first. Raises ValueError when the descriptor holds fewer than `size` bytes, and
    `SecretMemoryUnavailableError` when the limit of locked memory is reached.
    """
    if os.fstat(descriptor).st_size < size:  # touching what lies behind the end would raise SIGBUS
        raise ValueError(f"the descriptor holds {os.fstat(descriptor).st_size} bytes of memory, not {size}")
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address == _MAP_FAILED:
        raise _refusal(size, _last_error())
    memory = (ctypes.c_ubyte * size).from_address(address)
    unmapping = weakref.finalize(memory, _unmap, address, size, os.getpid())
    unmapping.atexit = False  # the kernel does it then, and views may still be in use
    for advice in (mmap.MADV_DONTDUMP, mmap.MADV_DONTFORK):
        _checked(_libc.madvise(address, size, advice))
    # memfd_secret(2) is locked by its nature (and mlock(2) refuses it).
    if kind_of(descriptor) is MemoryKind.LOCKED and _libc.mlock(address, size) != 0:
        raise _refusal(size, _last_error())
    return memoryview(memory).cast("B")


def fill_random(view: memoryview) -> None:
    """Fill `view` by getrandom(2); the random bytes exist nowhere else in this process."""
    done = 0
    while done < len(view):
        # Above 256 bytes a signal may end the call early (getrandom(2)), so what came counts.
        count = _libc.getrandom(ctypes.byref(ctypes.c_ubyte.from_buffer(view, done)), len(view) - done, 0)
        if count < 0:
            error = _last_error()
            if error.errno != errno.EINTR:
                raise error
        else:
            done += count


def _sized(descriptor: int, size: int) -> int:
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _unmap(address: int, size: int, owner: int) -> None:
    # A forked child never had the mapping; what stands at this address there is something else.
    if os.getpid() == owner:
        _libc.munmap(address, size)


def _checked(result: int) -> None:
    if result != 0:
        raise _last_error()


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _refusal(size: int, error: OSError) -> SecretMemoryUnavailableError:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    return SecretMemoryUnavailableError(
        f"{size} more bytes of memory cannot be locked ({error.strerror}): RLIMIT_MEMLOCK is {limit}; raise it with "
        "LimitMEMLOCK= in the unit, or `ulimit -l` in a shell"
    )
