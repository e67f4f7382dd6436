"""The system calls by which the trail can fail, in one place where a test can make them fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmsd.api.errors import AuditUnavailableError


@dataclass(frozen=True, slots=True)
class System:
    """What appending and syncing ask of the kernel; the defaults are the calls themselves."""

    write: Callable[[int, bytes], int] = os.write
    fdatasync: Callable[[int], None] = os.fdatasync
    ftruncate: Callable[[int, int], None] = os.ftruncate
    pread: Callable[[int, int, int], bytes] = os.pread
    fstat: Callable[[int], os.stat_result] = os.fstat
    lstat: Callable[[Path], os.stat_result] = os.lstat
    monotonic: Callable[[], float] = time.monotonic


def unavailable(path: Path, reason: str | OSError) -> AuditUnavailableError:
    """Return the error that names the trail and why it cannot be used."""
    text = reason.strerror or str(reason) if isinstance(reason, OSError) else reason
    return AuditUnavailableError(f"audit trail {path}: {text}")
