"""The service of a stopped `kmsd dev FOLDER` in this process, for what as requests would take minutes."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from kmsd.config import Config
from kmsd.hsm.pkcs11 import JOB_ENTRY, Pkcs11Root, run_job
from kmsd.identity.principals import Administrators
from kmsd.logs import StructuredLogger
from kmsd.memory.arena import Arena, default_limit_bytes
from kmsd.processes.zygote import Zygote
from kmsd.server.assembly import Service
from kmsd.server.deployment import development
from kmsd.server.foundation import Foundation
from tests.support.at_once import Processes, directory_of


def with_service(folder: Path, work: Callable[[Service], Awaitable[None]]) -> None:
    """Do `work` with the service, unsealed, which serves nobody."""
    zygote = Zygote.start({JOB_ENTRY: run_job})
    deployment = development(folder, Config(), shared=False, only_uid=None, ready=lambda: None)

    async def run() -> None:
        try:
            token = await deployment.find_token(zygote)
            service = await Service.open(
                Foundation(
                    config=deployment.config,
                    zygote=zygote,
                    arena=Arena(default_limit_bytes(), allow_fallback=True),
                    logger=StructuredLogger(),
                    root=Pkcs11Root(zygote, token.config, token.pin),
                    pin_configured=True,
                    administrators=Administrators(uids=frozenset({os.getuid()}), groups=()),
                    admit=lambda _peer: None,
                    directory=directory_of(),
                    processes=Processes(),
                    findings=(),
                    host_policy=None,
                    store_path=deployment.store_path,
                    audit_path=deployment.audit_path,
                    founds=True,
                    log_is_kept=False,
                )
            )
            await service.unseal()
            await work(service)
            await service.close()
        finally:
            await zygote.close()

    asyncio.run(run())
