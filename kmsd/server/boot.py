"""What a host's kernel tells of its boot, and nobody can set."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from kmsd.config import ConfigurationError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Where a service manager tells it, since a hardened service sees only processes in /proc.
_VARIABLE = "KMSD_BOOT_ID"


def host_uptime() -> float:
    """Return for how many seconds the host has been up, also while it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def host_boot_id(environment: Mapping[str, str] = os.environ, path: Path = _BOOT_ID) -> str:
    """Return the name of the host's boot, 32 hex digits; once confined, the daemon cannot read it any more.

    Raises ConfigurationError when nobody tells it: kmsd could not tell a reboot from a clock that was set.
    """
    try:
        found = path.read_text(encoding="ascii")
    except OSError:
        found = environment.get(_VARIABLE, "")
    name = found.strip().replace("-", "")
    if not name:
        raise ConfigurationError(
            f"{path} cannot be read, and {_VARIABLE} is not set: a unit with ProcSubset=pid needs "
            f"Environment={_VARIABLE}=%b"
        )
    return name
