"""Read the lines of a file of which parts cannot be read."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from typing import Any

from kmsd.audit.reading import CHUNK_BYTES
from kmsd.audit.system import System
from kmsd.audit.verify import read_lines

# What a disk loses, it loses by the page.
_PAGE_BYTES = 4096


def salvage(fd: int, size: int, system: System) -> Iterator[bytes]:
    """Yield the lines of the first `size` bytes; of a page that the disk does not give, zeros stand in its place."""
    with io.BufferedReader(_Salvaged(fd, size, system), CHUNK_BYTES) as stream:
        yield from read_lines(stream)


class _Salvaged(io.RawIOBase):
    def __init__(self, fd: int, size: int, system: System) -> None:
        self._fd = fd
        self._size = size
        self._pread = system.pread
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._offset)
        try:
            data = self._pread(self._fd, wanted, self._offset)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = self._page(min(wanted, _PAGE_BYTES - self._offset % _PAGE_BYTES))
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _page(self, wanted: int) -> bytes:
        """Return the rest of the page at hand, or zeros for it."""
        try:
            return self._pread(self._fd, wanted, self._offset)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            return bytes(wanted)
