"""Reading and writing a caller's descriptors: files, pipes, sockets or devices, blocking or not.

Errors become FileAccessError, which says the direction and the system's reason. Positions are the descriptors' own, so
a caller finds its descriptor just behind what was taken or given.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat

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
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError as error:
        raise FileAccessError(f"the {name} cannot be used: {_reason(error)}") from None
    if directory:
        raise FileAccessError(f"the {name} is a directory")
    # O_PATH descriptors report access mode 0, which would pass for O_RDONLY.
    if flags & os.O_ACCMODE == forbidden_mode or flags & os.O_PATH:
        raise FileAccessError(f"the {name} is not open for {purpose}")


def _wait(fd: int, event: int) -> None:
    """Wait until a non-blocking descriptor is ready; an error on it is told by the next read or write."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)
