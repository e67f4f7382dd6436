"""The daemon's process: what has to happen in which order before it can hold keys, and after.

1. Harden the process: undumpable, no core file.
2. Fork the zygote while there is one thread and no key; only it forks from now on.
3. Make the arena.
4. Import and build the rest, and run the event loop until a signal says stop.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from kmsd.envelope.control import WORKER_ENTRY
from kmsd.envelope.worker import run_worker
from kmsd.hsm.pkcs11 import JOB_ENTRY, run_job
from kmsd.hsm.root import PinUnavailableError
from kmsd.memory.arena import Arena, default_limit_bytes
from kmsd.processes.sandbox import harden_process
from kmsd.processes.zygote import Zygote
from kmsd.server.deployment import Deployment

if TYPE_CHECKING:
    from kmsd.logs import Logger

# Half a second on an idle machine; this is for one that boots.
_OWN_START_SECONDS = 60.0


def run_daemon(deployment: Deployment) -> None:
    """Run until SIGTERM or SIGINT; raises what prevents the start."""
    harden_process()
    _raise_descriptor_limit()
    zygote = Zygote.start({JOB_ENTRY: run_job, WORKER_ENTRY: run_worker})
    memory = deployment.config.memory
    arena = Arena(memory.limit_bytes or default_limit_bytes(), allow_fallback=memory.allow_fallback)

    import uvloop  # noqa: PLC0415 - after the fork: what only the daemon needs is not in the zygote

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(deployment, zygote, arena))


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


async def _serve(deployment: Deployment, zygote: Zygote, arena: Arena) -> None:
    # First, because the rest takes a while: from here on a signal waits until the start is over.
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    from kmsd.api.errors import AccessDeniedError  # noqa: PLC0415 - all of these: after the fork, as above
    from kmsd.hsm.pkcs11 import Pkcs11Root  # noqa: PLC0415
    from kmsd.identity.peer import Peer  # noqa: PLC0415
    from kmsd.logs import DroppingStream, StructuredLogger  # noqa: PLC0415
    from kmsd.server.assembly import Foundation, Service  # noqa: PLC0415
    from kmsd.server.supervision import Supervision  # noqa: PLC0415

    def admit(peer: Peer) -> None:
        if deployment.only_uid is not None and peer.uid != deployment.only_uid:
            raise AccessDeniedError(f"this kmsd serves uid {deployment.only_uid} only")

    notifier = deployment.notifier
    # The token is asked who it is, and then for its keys; the rest takes a second or two.
    notifier.starting(2 * deployment.config.hsm.deadline_seconds + _OWN_START_SECONDS)
    logger = StructuredLogger(DroppingStream(sys.stderr))
    loop.set_exception_handler(partial(_log_fault, logger))
    config = deployment.config
    try:
        token = await deployment.find_token(zygote)
        if token.pin is None:
            raise PinUnavailableError("no source of the token's PIN is configured")
        root = Pkcs11Root(zygote, token.config, token.pin, deadline_seconds=config.hsm.deadline_seconds)
        service = await Service.open(
            Foundation(
                config=config,
                zygote=zygote,
                arena=arena,
                logger=logger,
                root=root,
                token=await root.look(),
                administrators=deployment.administrators,
                admit=admit,
                host_policy=deployment.host_policy,
                store_path=deployment.store_path,
                audit_path=deployment.audit_path,
            )
        )
        await service.unseal()
        if deployment.only_initializes:
            await service.close()
            return
        await service.listen(deployment.open_socket())
        supervision = Supervision(service, zygote, notifier, logger)
        deployment.ready()
        supervision.start()
        if deployment.host_policy is not None:
            loop.add_signal_handler(signal.SIGHUP, supervision.reload)
        await stop.wait()
        supervision.stop(config.shutdown_grace_seconds)
        deployment.close_socket()
        await service.close()
    finally:
        await zygote.close()
