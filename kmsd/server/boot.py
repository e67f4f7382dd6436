"""What a host's kernel tells of its boot, and nobody can set."""

from __future__ import annotations

import time
from pathlib import Path


def host_uptime() -> float:
    """Return for how many seconds the host has been up, also while it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def host_boot_id() -> str:
    """Return the name of the host's boot; once confined, the daemon cannot read it any more."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
