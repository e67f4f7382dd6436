"""Reading and writing a caller's descriptors: files, pipes, sockets or devices, blocking or not.

Errors become FileAccessError, which says the direction and the system's reason. Positions are the descriptors' own, so
a caller finds its descriptor just behind what was taken or given.

What is written through a descriptor is written by this process, whose uid is the daemon's. Where the receiver looks at
who writes, and not at who opened, a caller could speak in the daemon's name, so such descriptors are refused: datagram
sockets and Unix sockets with a name at either end, which only a socketpair has not (SO_PASSCRED: the journal, a service
manager, syslog), other sockets that are not TCP, and /proc, where a write is judged when it happens.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
from pathlib import Path

from kmsd.api.errors import FileAccessError

# Streams of other families are nothing that a file is sent through.
_STREAM_FAMILIES = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6}
# The block size of every proc file system (fs/proc/root.c: s_blocksize); what else counts no blocks has whole pages.
_PROC_BLOCK_BYTES = 1024


class Source:
    """Where bytes come from; `taken` counts them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.taken = 0

    def check(self) -> None:
        """Refuse early what cannot be read; raises FileAccessError."""
        _check(self._fd, "source", "reading", os.O_WRONLY)

    def fill(self, view: memoryview) -> int:
        """Read until `view` is full or the input ends, and return how much was read; raises FileAccessError."""
        filled = 0
        while filled < len(view):
            try:
                count = os.readv(self._fd, [view[filled:]])
            except BlockingIOError:
                _wait(self._fd, select.POLLIN)
                continue
            except OSError as error:
                raise FileAccessError(f"reading the source failed: {_reason(error)}") from None
            if count == 0:
                break
            filled += count
            self.taken += count
        return filled


class Sink:
    """Where bytes go; `given` counts them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.given = 0

    def check(self) -> None:
        """Refuse early what cannot be written; raises FileAccessError."""
        _check(self._fd, "destination", "writing", os.O_RDONLY)

    def write(self, view: memoryview) -> None:
        """Write all of `view`; raises FileAccessError."""
        written = 0
        while written < len(view):
            try:
                count = os.writev(self._fd, [view[written:]])
            except BlockingIOError:
                _wait(self._fd, select.POLLOUT)
                continue
            except BrokenPipeError:
                raise FileAccessError("writing the destination failed: its reader went away") from None
            except OSError as error:
                raise FileAccessError(f"writing the destination failed: {_reason(error)}") from None
            written += count
            self.given += count


def _check(fd: int, name: str, purpose: str, forbidden_mode: int) -> None:
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        status = os.fstat(fd)
        if stat.S_ISSOCK(status.st_mode):
            _check_socket(fd, name)
    except OSError as error:
        raise FileAccessError(f"the {name} cannot be used: {_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise FileAccessError(f"the {name} is a directory")
    if status.st_dev == _proc_device() or _looks_like_proc(fd, status):
        raise FileAccessError(f"the {name} is a file of /proc")
    # O_PATH descriptors report access mode 0, which would pass for O_RDONLY.
    if flags & os.O_ACCMODE == forbidden_mode or flags & os.O_PATH:
        raise FileAccessError(f"the {name} is not open for {purpose}")


def _check_socket(fd: int, name: str) -> None:
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.type != socket.SOCK_STREAM or sock.family not in _STREAM_FAMILIES:
            raise FileAccessError(f"the {name} is a socket, but no stream")
        peer = sock.getpeername()
        if sock.family == socket.AF_UNIX and (peer or sock.getsockname()):
            raise FileAccessError(f"the {name} is a Unix socket of a named connection; put a pipe between")


def _proc_device() -> int | None:
    try:
        return Path("/proc/self").stat().st_dev
    except OSError:
        return None  # not mounted here


def _looks_like_proc(fd: int, status: os.stat_result) -> bool:
    """Tell files of other proc file systems, which anyone can mount in namespaces of their own.

    fstatfs(2) would name the type, but Python has only what is left of it in fstatvfs(3).
    """
    return stat.S_ISREG(status.st_mode) and status.st_blksize == _PROC_BLOCK_BYTES and os.fstatvfs(fd).f_blocks == 0


def _wait(fd: int, event: int) -> None:
    """Wait until a non-blocking descriptor is ready; an error on it is told by the next read or write."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)
