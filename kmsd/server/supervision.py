"""What the service manager of a running daemon asks for and is told: signs of life, a new look at the policy."""

from __future__ import annotations

import asyncio

from kmsd.access.host import HostPolicyError
from kmsd.api.errors import AuditUnavailableError
from kmsd.logs import Logger
from kmsd.processes.zygote import Zygote
from kmsd.server.assembly import Service
from kmsd.server.notify import Notifier
from kmsd.server.watchdog import Watchdog

# `Service.close` waits up to its grace for each of: files, connections, mutations, and what is left of the files.
_GRACES = 4
# What it does beside waiting takes less.
_OWN_STOP_SECONDS = 20.0


class Supervision:
    """Speaks with the service manager from when `service` accepts connections until it stops."""

    def __init__(self, service: Service, zygote: Zygote, notifier: Notifier, logger: Logger) -> None:
        self._service = service
        self._notifier = notifier
        self._logger = logger
        self._stopping = False
        self._reloads: set[asyncio.Task[None]] = set()
        self._watchdog = Watchdog(
            notifier, {"zygote": zygote.ping, "store": service.ping_store}, status=self.status, logger=logger
        )

    def status(self) -> str:
        """Tell in a line how the service is."""
        state = "sealed: an administrator has to run `kms unseal`" if self._service.sealed else "unsealed"
        fault = self._service.host_policy_fault
        return f"{state}; the old host policy is in force: {fault}" if fault else state

    def start(self) -> None:
        """Tell that the service accepts connections."""
        self._notifier.ready(self.status())
        self._watchdog.start()

    def reload(self) -> None:
        """Read the host policy anew; one that is not valid, or cannot be recorded, does not take the old one's place.

        The manager cannot be told of a failure other than by the status: it would stop the service.
        """
        if self._stopping:  # nothing is decided any more
            return
        self._notifier.reloading()
        reload = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(reload)
        reload.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        try:
            digest = await self._service.reload_host_policy()
        except (HostPolicyError, AuditUnavailableError) as error:
            self._logger.warning("host_policy_not_reloaded", reason=str(error))
        else:
            self._logger.info("host_policy_reloaded", digest=digest)
        if not self._stopping:  # the manager must not hear that it goes on
            self._notifier.ready(self.status())

    def stop(self, grace_seconds: float) -> None:
        """Tell that the service stops, and takes so long for each thing it waits for."""
        self._stopping = True
        for reload in self._reloads:
            reload.cancel()
        self._watchdog.stop()
        self._notifier.stopping(_GRACES * grace_seconds + _OWN_STOP_SECONDS)
