"""The system calls by which the trail can fail, in one place where a test can make them fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmsd.api.errors import AuditUnavailableError


def _link(source: Path, target: Path) -> None:
    # What is linked was opened as a regular file; a symbolic link that came since is linked itself.
    os.link(source, target, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class System:
    """What appending, syncing and rotating ask of the kernel; the defaults are the calls themselves."""

    write: Callable[[int, bytes], int] = os.write
    fdatasync: Callable[[int], None] = os.fdatasync
    ftruncate: Callable[[int, int], None] = os.ftruncate
    pread: Callable[[int, int, int], bytes] = os.pread
    fstat: Callable[[int], os.stat_result] = os.fstat
    lstat: Callable[[Path], os.stat_result] = os.lstat
    monotonic: Callable[[], float] = time.monotonic
    open: Callable[[Path, int, int], int] = os.open
    fsync: Callable[[int], None] = os.fsync
    rename: Callable[[Path, Path], None] = os.rename
    unlink: Callable[[Path], None] = os.unlink
    link: Callable[[Path, Path], None] = _link

    def sync_directory(self, path: Path) -> None:
        """Make the names in a folder durable."""
        directory = self.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0)
        try:
            self.fsync(directory)
        finally:
            os.close(directory)


def unavailable(path: Path, reason: str | OSError) -> AuditUnavailableError:
    """Return the error that names the trail and why it cannot be used."""
    text = reason.strerror or str(reason) if isinstance(reason, OSError) else reason
    return AuditUnavailableError(f"audit trail {path}: {text}")
