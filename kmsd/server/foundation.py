"""What a service is built on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
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
