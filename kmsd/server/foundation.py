"""What a service is built on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kmsd.config import Config
from kmsd.hsm.root import Root
from kmsd.identity.callers import ProcessSource
from kmsd.identity.directory import Directory
from kmsd.identity.peer import Peer
from kmsd.identity.principals import Administrators
from kmsd.logs import Logger
from kmsd.memory.arena import Arena
from kmsd.processes.confinement import Finding
from kmsd.processes.zygote import Zygote
from kmsd.server.boot import host_boot_id, host_uptime


@dataclass(frozen=True)
class Foundation:
    """What exists before the event loop does, or what the command decided."""

    config: Config
    zygote: Zygote
    arena: Arena
    logger: Logger
    root: Root
    # Whether `root` has a source of the PIN of its own.
    pin_configured: bool
    administrators: Administrators
    admit: Callable[[Peer], None]
    directory: Directory
    processes: ProcessSource
    findings: Sequence[Finding]
    host_policy: Path | None
    store_path: Path
    audit_path: Path
    # Whether it may make a store, where there is none.
    founds: bool
    # Whether the service log goes where it is kept, and so may hold anchors of the trail.
    log_is_kept: bool
    # Of a store that is yet to be made.
    recovery_key: memoryview | None = None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    # The host's clock, in seconds since 1970 UTC, which anybody may set; and for how many seconds the host has been up,
    # also while it was suspended, in the boot that has this name.
    clock: Callable[[], float] = time.time
    uptime: Callable[[], float] = host_uptime
    boot_id: str = field(default_factory=host_boot_id)
