"""The daemon's process: what has to happen in which order before it can hold keys, and after.

1. Harden the process: undumpable, no core file.
2. Fork the zygote while there is one thread and no key; only it forks from now on.
3. Restrict what the process may open, while there is one thread.
4. Make the arena, import and build the rest, open store, trail and socket.
5. Restrict its system calls, before there is a key. The self-check looks at all processes.
6. Unseal, and run the event loop until a signal says stop.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from kmsd.memory.arena import Arena, default_limit_bytes
from kmsd.processes.confinement import Confinement, Finding, missing
from kmsd.processes.sandbox import harden_process
from kmsd.processes.selfcheck import inspect_children
from kmsd.processes.zygote import Zygote
from kmsd.server.boot import host_boot_id
from kmsd.server.confinement import CHILDREN, Confinements, check_required, describe, memory_finding
from kmsd.server.deployment import Deployment

if TYPE_CHECKING:
    from kmsd.logs import Logger
    from kmsd.server.activation import Sockets
    from kmsd.server.supervision import Supervision

# Half a second on an idle machine; this is for one that boots.
_OWN_START_SECONDS = 60.0


def run_daemon(deployment: Deployment) -> None:
    """Run until SIGTERM or SIGINT; raises what prevents the start."""
    harden_process()
    _raise_descriptor_limit()
    confinements = Confinements(deployment)
    zygote = Zygote.start(confinements.entries(), confinements.zygote.enter)
    confinement = confinements.daemon()
    boot_id = host_boot_id()
    confinement.restrict_process()
    memory = deployment.config.memory
    arena = Arena(memory.limit_bytes or default_limit_bytes(), allow_fallback=memory.allow_fallback)

    import uvloop  # noqa: PLC0415 - after the fork: what only the daemon needs is not in the zygote

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(deployment, zygote, arena, confinement, boot_id))


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


async def _serve(deployment: Deployment, zygote: Zygote, arena: Arena, confinement: Confinement, boot_id: str) -> None:
    # First, because the rest takes a while: from here on a signal waits until the start is over.
    loop = asyncio.get_running_loop()
    stop = _stop_event(loop)

    from kmsd.api.errors import AccessDeniedError  # noqa: PLC0415 - all of these: after the fork, as above
    from kmsd.hsm.pkcs11 import Pkcs11Root  # noqa: PLC0415
    from kmsd.identity.peer import Peer  # noqa: PLC0415
    from kmsd.logs import DroppingStream, StructuredLogger  # noqa: PLC0415
    from kmsd.server.assembly import Service  # noqa: PLC0415
    from kmsd.server.children import LookupChildren  # noqa: PLC0415
    from kmsd.server.foundation import Foundation  # noqa: PLC0415
    from kmsd.server.supervision import Supervision  # noqa: PLC0415
    from kmsd.service.seal import Means  # noqa: PLC0415

    def admit(peer: Peer) -> None:
        if deployment.only_uid is not None and peer.uid != deployment.only_uid:
            raise AccessDeniedError(f"this kmsd serves uid {deployment.only_uid} only")

    # The token is asked who it is, and then for its keys; the rest takes a second or two.
    deployment.notifier.starting(2 * deployment.config.hsm.deadline_seconds + _OWN_START_SECONDS)
    logger = StructuredLogger(DroppingStream(sys.stderr))
    loop.set_exception_handler(partial(_log_fault, logger))
    config = deployment.config
    findings: list[Finding] = []
    children = LookupChildren(zygote)
    sockets: Sockets | None = None
    try:
        await children.start()
        token = await deployment.find_token(zygote)
        root = Pkcs11Root(zygote, token.config, token.pin, deadline_seconds=config.hsm.deadline_seconds)
        service = await Service.open(
            Foundation(
                config=config,
                zygote=zygote,
                arena=arena,
                logger=logger,
                root=root,
                pin_configured=token.pin is not None,
                administrators=deployment.administrators,
                admit=admit,
                directory=children.directory,
                processes=children.processes,
                findings=findings,
                host_policy=deployment.host_policy,
                store_path=deployment.store_path,
                audit_path=deployment.audit_path,
                founds=deployment.founds,
                log_is_kept=deployment.log_is_kept,
                recovery_key=deployment.recovery_key() if deployment.recovery_key is not None else None,
                boot_id=boot_id,
            )
        )
        sockets = deployment.open_sockets() if deployment.open_sockets is not None else None
        confinement.restrict_calls()
        findings += await _inspect(confinement, arena, zygote)
        logger.info("hardening", missing=[describe(one) for one in missing(findings)])
        check_required(findings, required=config.hardening == "require")
        means = Means(accepts_changes=deployment.accepts_changes)
        await service.unseal(means, serves_sealed=deployment.serves_sealed)
        if sockets is not None:
            await service.listen(sockets)
            await _supervise(deployment, Supervision(service, zygote, deployment.notifier, logger), stop)
            deployment.close_sockets()
            sockets = None
        await service.close()
    finally:
        if sockets is not None:  # the start failed after they were there
            deployment.close_sockets()
        children.close()
        await zygote.close()


async def _supervise(deployment: Deployment, supervision: Supervision, stop: asyncio.Event) -> None:
    """Tell everybody who waits that the service accepts connections, and return when it has to stop."""
    if deployment.host_policy is not None:
        # Before anybody is told that it is ready, since they may ask for it at once.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervision.reload)
    deployment.ready()
    supervision.start()
    await stop.wait()
    supervision.stop(deployment.config.shutdown_grace_seconds)


def _stop_event(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """Return the event that a signal to stop sets."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _inspect(confinement: Confinement, arena: Arena, zygote: Zygote) -> list[Finding]:
    """Return what protects this process, its memory, and each kind of child."""
    return [*confinement.report(), memory_finding(arena.kind), *await inspect_children(zygote, CHILDREN)]
