"""Reading and writing a caller's descriptors: files, pipes, sockets or devices, blocking or not.

Errors become FileAccessError, which says the direction and the system's reason. Positions are the descriptors' own, so
a caller finds its descriptor just behind what was taken or given.

What is written through a descriptor is written by this process, whose uid is the daemon's. Where the receiver looks at
who writes, and not at who opened, a caller could speak in the daemon's name, so such descriptors are refused: datagram
sockets and Unix sockets with a name behind them (SO_PASSCRED: the journal, a service manager, syslog), and /proc, where
a write is judged when it happens.
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
    if status.st_dev == _proc_device():
        raise FileAccessError(f"the {name} is a file of /proc")
    # O_PATH descriptors report access mode 0, which would pass for O_RDONLY.
    if flags & os.O_ACCMODE == forbidden_mode or flags & os.O_PATH:
        raise FileAccessError(f"the {name} is not open for {purpose}")


def _check_socket(fd: int, name: str) -> None:
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.type != socket.SOCK_STREAM:
            raise FileAccessError(f"the {name} is a socket, but no stream")
        if sock.family == socket.AF_UNIX and sock.getpeername():
            raise FileAccessError(f"the {name} is a Unix socket that leads to a named one; put a pipe between")


def _proc_device() -> int | None:
    try:
        return Path("/proc/self").stat().st_dev
    except OSError:
        return None  # not mounted here, so no descriptor of it was opened here


def _wait(fd: int, event: int) -> None:
    """Wait until a non-blocking descriptor is ready; an error on it is told by the next read or write."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)
