"""One page of secret memory that crosses to another process by its descriptor.

A key crosses processes only so: in a fresh page that holds nothing else, wiped and closed after the transfer. Each
side maps the descriptor for itself.
"""

import os
from types import TracebackType
from typing import Self

from kmsd.memory.mapping import create_descriptor, map_descriptor

# The page size of x86-64 and the smallest of arm64; a kernel with larger pages rounds the mapping up.
PAGE_BYTES = 4096


class Page:
    """A page of secret memory; as a context manager it is wiped and closed at the end.

    Use `create` or `from_descriptor`. `view` is writable, 4096 bytes; what one process writes the other sees. `fd` is
    -1 once it is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            self.view = map_descriptor(fd, PAGE_BYTES)
        except BaseException:
            self.close_descriptor()
            raise
        self._closed = False

    @classmethod
    def create(cls) -> Self:
        """Return a fresh, zeroed page. Raises `SecretMemoryUnavailableError`; OSError when descriptors run out."""
        return cls(create_descriptor(PAGE_BYTES, allow_fallback=True))

    @classmethod
    def from_descriptor(cls, fd: int) -> Self:
        """Return the page behind a received descriptor, which belongs to the page from now on (also on failure).

        Raises ValueError when it is shorter than a page, and `SecretMemoryUnavailableError`.
        """
        return cls(fd)

    def close_descriptor(self) -> None:
        """Close the descriptor when it was sent or is not to be sent; the mapping stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Wipe (for both sides), unmap and close; a second call does nothing.

        Raises BufferError when something still uses the view; the page is wiped and its descriptor closed then.
        """
        if self._closed:
            return
        self.view[:] = bytes(PAGE_BYTES)
        self.close_descriptor()
        self.view.release()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
