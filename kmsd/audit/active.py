"""The file that the trail is being written to: whole lines are appended to it, or leave no trace.

One write(2) a batch. Short or failed, the file is cut back to its last whole line. Then the path is looked up: the
lines count only if they are now at the end of the file that bears the trail's name. One lstat (0.7 us, however large
the batch) tells a removed, renamed, replaced, truncated or foreign-written file from ours, so it is done after every
write, and no request is ever answered on a record that went into a lost file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from kmsd.audit.chain import Head, digest_of
from kmsd.audit.reading import Part, last_line_end
from kmsd.audit.system import System, unavailable

# In the place of a descriptor.
_CLOSED = -1


class End(NamedTuple):
    """Where a file ends: its size and the chain's head."""

    size: int
    head: Head


class Descriptors(NamedTuple):
    """An open file of lines: `append` is in append mode and holds the lock, `fd` reads, and writes in place.

    `identity` is its device and inode number.
    """

    append: int
    fd: int
    identity: tuple[int, int]


class ActiveFile:
    """The one writer of an open file.

    `end` is where its last accepted line ends, `synced` what of it is known to be on the disk (the syncer's to say).
    `first_seq` is the number of its first record, `began` when that was written in seconds since 1970.
    """

    def __init__(
        self, path: Path, files: Descriptors, end: End, system: System, *, first_seq: int, began: float
    ) -> None:
        self.append_fd, self.fd, self._identity = files
        self.end = self.synced = end
        self.first_seq = first_seq
        self.began = began
        self.residue: int | None = None  # the size that a refused append may have left the file with
        self.moved_to: Path | None = None  # where a rotation that failed has left it
        self._path = path
        self._system = system

    @property
    def part(self) -> Part:
        """Its lines."""
        return Part(self.fd, 0, self.end.size)

    def append(self, data: bytes, head: Head) -> None:
        """Write whole lines, of which `head` is the new end, or raise AuditUnavailableError and leave no trace."""
        size = self.end.size
        try:
            written = self._system.write(self.append_fd, data)
        except OSError as exc:
            self._take_back(size)
            raise unavailable(self._path, exc) from exc
        size += written
        if written < len(data):
            self._take_back(size)
            raise unavailable(self._path, f"took only {written} of {len(data)} bytes; no space left, or a size limit")
        misplaced = self.misplaced(size)
        if misplaced is not None:
            self._take_back(size)
            raise unavailable(self._path, misplaced)
        self.end = End(size, head)

    def recover(self) -> None:
        """See, after a refusal, whether the file is what it should be; raises AuditUnavailableError while it is not."""
        if self.residue is not None:
            self._take_back(self.residue)
            trouble = self.misplaced(self.end.size) or self._changed()
            if trouble is not None:
                raise unavailable(self._path, trouble)
            self.residue = None

    def misplaced(self, size: int) -> str | None:
        """Return what is wrong with the file that bears the trail's name, None if it is ours and has `size` bytes."""
        try:
            status = self._system.lstat(self._path)
        except OSError as exc:
            return f"the file was removed or renamed ({exc.strerror or exc})"
        if (status.st_dev, status.st_ino) != self._identity:
            return "the file was replaced by another"
        if status.st_size != size:
            return f"the file has {status.st_size} bytes and not {size}: truncated, or written by another program"
        return None

    def is_at(self, path: Path) -> bool:
        """Return whether a path leads to it; raises OSError when that cannot be seen."""
        try:
            status = self._system.lstat(path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.append_fd)
        os.close(self.fd)

    def gone(self) -> ActiveFile:
        """Return the file as it is for whoever has closed it: it takes nothing, as descriptors may get new meanings."""
        files = Descriptors(_CLOSED, _CLOSED, self._identity)
        return ActiveFile(self._path, files, self.end, self._system, first_seq=self.first_seq, began=self.began)

    @property
    def is_gone(self) -> bool:
        """Whether it was closed."""
        return self.append_fd == _CLOSED

    def _changed(self) -> str | None:
        """Return whether the last record is still where it was; asked only after a refusal.

        A truncated file that refused records were appended to can come to have the right size by chance.
        """
        if self.end.size == 0:
            return None
        try:
            start = last_line_end(self.fd, self.end.size - 1, self._system.pread)
            line = self._system.pread(self.fd, self.end.size - start, start)
        except OSError as exc:
            return f"the last record cannot be read back: {exc.strerror or exc}"
        return None if digest_of(line) == self.end.head.digest else "the last record is not in the file any more"

    def _take_back(self, size: int) -> None:
        """Cut off what a refused append left, if the file has exactly the `size` that it left it with.

        The file may be ours and elsewhere, and has to be whole should it come back; with any other size somebody else
        changed it, and cutting would make the size right over wrong content. The next append tries this again.
        """
        self.residue = size
        whole = self.end.size
        with contextlib.suppress(OSError):
            if size > whole and self._system.fstat(self.append_fd).st_size == size:
                self._system.ftruncate(self.append_fd, whole)
