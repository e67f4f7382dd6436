"""The host policy in force: read anew while requests are decided, and the names in it looked up again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kmsd.access.decision import Authorizer
from kmsd.access.host import HostPolicy, HostPolicyError
from kmsd.api import policies as api
from kmsd.api.errors import AuditUnavailableError, MalformedPolicyDocumentError
from kmsd.api.operation import Operation
from kmsd.identity.directory import Directory
from kmsd.identity.principals import NameServiceError
from kmsd.logs import Logger
from kmsd.service.call import Call
from kmsd.service.changing import Trail
from kmsd.service.unsealing import system_record

# How long the names of users and groups are trusted before they are looked up again: as long as nscd and sssd keep an
# answer by default.
NAMES_TRUSTED_SECONDS = 60.0


class HostPolicies:
    """Reads the documents of `path` and puts them in force; whatever is wrong with them, the policy in force stays."""

    def __init__(
        self,
        host_policy: HostPolicy,
        *,
        path: Path | None,
        account: str,
        directory: Directory,
        authorizer: Authorizer,
        trail: Trail,
        logger: Logger,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._host_policy = host_policy
        self._path = path
        self._account = account
        self._directory = directory
        self._authorizer = authorizer
        self._trail = trail
        self._logger = logger
        self._sleep = sleep
        # Held from reading to adopting, so that what was read last is what is in force.
        self._reading = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        # Why what was read last is not in force.
        self.fault: str | None = None

    def start(self) -> None:
        """Begin to look the names up again from time to time."""
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    def stop(self) -> None:
        """Look no names up any more."""
        if self._renewing is not None:
            self._renewing.cancel()

    async def reload(self) -> HostPolicy:
        """Read the documents, on nobody's request, and return what is in force now.

        Raises HostPolicyError when they are not valid, AuditUnavailableError when it cannot be recorded.
        """
        async with self._reading:
            try:
                host_policy = await self._read()
                self._trail.append([system_record("ReloadHostPolicy", hostPolicy=host_policy.digest)])
            except (HostPolicyError, AuditUnavailableError) as error:
                self.fault = str(error)
                raise
            self._adopt(host_policy)
            return host_policy

    async def handle(self, call: Call, request: api.ReloadHostPolicyRequest) -> api.ReloadHostPolicyResponse:  # noqa: ARG002 - handlers share one form
        """Read the documents; the outcome's record tells which are in force."""
        async with self._reading:
            try:
                host_policy = await self._read()
            except HostPolicyError as error:
                self.fault = str(error)
                raise MalformedPolicyDocumentError(f"{error}; the host policy in force stays") from None
            self._adopt(host_policy)
            return api.ReloadHostPolicyResponse(digest=host_policy.digest, documents=host_policy.documents)

    async def _read(self) -> HostPolicy:
        return await read_host_policy(self._path, account=self._account, directory=self._directory)

    async def _renew(self) -> None:
        """Look the names up again from time to time; while that cannot be done, they stay as they were."""
        told = False
        while True:
            await self._sleep(NAMES_TRUSTED_SECONDS)
            host_policy = self._host_policy
            try:
                names = await self._directory.known(host_policy.named)
            except NameServiceError as error:
                if not told:
                    self._logger.warning("host_policy_names_not_renewed", reason=error.message)
                told = True
            else:
                host_policy.resolve(names)
                told = False

    def _adopt(self, host_policy: HostPolicy) -> None:
        self._authorizer.adopt(host_policy)
        self._host_policy = host_policy
        self.fault = None


async def read_host_policy(path: Path | None, *, account: str, directory: Directory) -> HostPolicy:
    """Return the policy of the documents in `path`, with the shipped default; raises HostPolicyError."""
    documents = HostPolicy.documents_of(path)
    try:
        names = await directory.known(HostPolicy.named_in(documents))
    except NameServiceError as error:
        raise HostPolicyError(f"the names in the host policy cannot be looked up: {error.message}") from None
    return HostPolicy(documents, account=account, names=names)


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {api.RELOAD_HOST_POLICY: HostPolicies.handle}
