"""The daemon's process: what has to happen in which order before it can hold keys, and after.

1. Harden the process: undumpable, no core file.
2. Fork the zygote while there is one thread and no key; only it forks from now on.
3. Make the arena.
4. Import and build the rest, and run the event loop until a signal says stop.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmsd.config import Config
from kmsd.envelope.control import WORKER_ENTRY
from kmsd.envelope.worker import run_worker
from kmsd.hsm.pkcs11 import JOB_ENTRY, run_job
from kmsd.memory.arena import Arena, default_limit_bytes
from kmsd.processes.sandbox import harden_process
from kmsd.processes.zygote import Zygote

if TYPE_CHECKING:
    from kmsd.logs import Logger


@dataclass(frozen=True)
class Development:
    """A daemon with everything embedded in one directory (`kmsd dev`).

    `only_uid` is the one uid that is accepted, or None for all. `ready` is called once the socket accepts.
    """

    directory: Path
    config: Config
    shared: bool
    only_uid: int | None
    ready: Callable[[], None]

    @property
    def socket(self) -> Path:
        """The socket's path."""
        return self.directory / "kmsd.sock"


def run_development(development: Development) -> None:
    """Run until SIGTERM or SIGINT; raises what prevents the start."""
    harden_process()
    _raise_descriptor_limit()
    zygote = Zygote.start({JOB_ENTRY: run_job, WORKER_ENTRY: run_worker})
    memory = development.config.memory
    arena = Arena(memory.limit_bytes or default_limit_bytes(), allow_fallback=memory.allow_fallback)

    import uvloop  # noqa: PLC0415 - after the fork: what only the daemon needs is not in the zygote

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(development, zygote, arena))


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the host lets: the usual soft limit of 1,024 is for programs that call select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_fault(logger: Logger, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what reached the event loop; the default handler would print messages, which may hold anything."""
    fault = context.get("exception")
    if isinstance(fault, BaseException):
        logger.fault("event_loop_fault", fault, where=context["message"])
    else:
        logger.warning("event_loop_fault", where=context["message"])


async def _serve(development: Development, zygote: Zygote, arena: Arena) -> None:
    # First, because the rest takes a while: from here on a signal waits until the start is over.
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    from kmsd.api.errors import AccessDeniedError  # noqa: PLC0415 - all of these: after the fork, as above
    from kmsd.hsm.pkcs11 import FilePin, Pkcs11Root  # noqa: PLC0415
    from kmsd.hsm.softhsm import PIN_NAME, make_token  # noqa: PLC0415
    from kmsd.identity.peer import Peer  # noqa: PLC0415
    from kmsd.identity.principals import Administrators  # noqa: PLC0415
    from kmsd.logs import DroppingStream, StructuredLogger  # noqa: PLC0415
    from kmsd.server.assembly import Foundation, Service  # noqa: PLC0415
    from kmsd.server.listener import bind  # noqa: PLC0415

    def admit(peer: Peer) -> None:
        if development.only_uid is not None and peer.uid != development.only_uid:
            raise AccessDeniedError(f"this kmsd serves uid {development.only_uid} only")

    logger = StructuredLogger(DroppingStream(sys.stderr))
    loop.set_exception_handler(partial(_log_fault, logger))
    directory = development.directory
    try:
        token = await make_token(zygote, directory / "token", label="kmsd-dev")
        root = Pkcs11Root(
            zygote,
            token,
            FilePin(directory / "token" / PIN_NAME),
            deadline_seconds=development.config.hsm.deadline_seconds,
        )
        service = await Service.open(
            Foundation(
                config=development.config,
                zygote=zygote,
                arena=arena,
                logger=logger,
                root=root,
                token=await root.look(),
                administrators=Administrators(uids=frozenset({os.getuid()}), groups=("kms-admin",)),
                admit=admit,
                host_policy=None,
                store_path=directory / "store.sqlite",
                audit_path=directory / "audit.log",
            )
        )
        await service.unseal()
        await service.listen(bind(development.socket, 0o666 if development.shared else 0o600))
        development.ready()
        await stop.wait()
        development.socket.unlink(missing_ok=True)
        await service.close()
    finally:
        await zygote.close()
