"""The time as a host tells it, for tests that let years pass."""

from __future__ import annotations

import time
import uuid

BOOT_SECONDS = 10.0


class HostTime:
    """A wall clock that may be set, and the uptime of a boot, which may not; both in seconds."""

    def __init__(self, wall: float | None = None) -> None:
        self.wall = time.time() if wall is None else wall
        self.uptime = 1000.0
        self.boot_id = str(uuid.uuid4())

    def let_pass(self, seconds: float) -> None:
        """Let time pass, whether the host works or sleeps."""
        self.wall += seconds
        self.uptime += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock."""
        self.wall += seconds

    def boot(self, off_seconds: float) -> None:
        """Switch the host off, and on again later."""
        self.wall += off_seconds + BOOT_SECONDS
        self.uptime = BOOT_SECONDS
        self.boot_id = str(uuid.uuid4())
