"""What a host's kernel tells of its boot, and nobody can set."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

# Said by the unit, whose /proc has processes and nothing else.
BOOT_ID_VARIABLE = "KMSD_BOOT_ID"


def host_uptime() -> float:
    """Return for how many seconds the host has been up, also while it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def host_boot_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of the host's boot; once confined, the daemon cannot read it any more."""
    said = environment.get(BOOT_ID_VARIABLE)
    found = said or Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return found.strip().replace("-", "")
