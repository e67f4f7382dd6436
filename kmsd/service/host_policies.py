"""Reading the host policy anew, while requests are decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.access.decision import Authorizer
from kmsd.access.host import HostPolicy, HostPolicyError
from kmsd.api import policies as api
from kmsd.api.errors import AuditUnavailableError, MalformedPolicyDocumentError
from kmsd.api.operation import Operation
from kmsd.service.call import Call
from kmsd.service.pipeline import Trail
from kmsd.service.unsealing import system_record


class HostPolicies:
    """Puts what `read` returns in force; whatever is wrong with that, the policy in force stays."""

    def __init__(self, read: Callable[[], HostPolicy], *, authorizer: Authorizer, trail: Trail) -> None:
        self._read = read
        self._authorizer = authorizer
        self._trail = trail
        # Why what was read last is not in force.
        self.fault: str | None = None

    def reload(self) -> HostPolicy:
        """Read the documents, on nobody's request, and return what is in force now.

        Raises HostPolicyError when they are not valid, AuditUnavailableError when it cannot be recorded.
        """
        try:
            host_policy = self._read()
            self._trail.append([system_record("ReloadHostPolicy", hostPolicy=host_policy.digest)])
        except (HostPolicyError, AuditUnavailableError) as error:
            self.fault = str(error)
            raise
        self._adopt(host_policy)
        return host_policy

    async def handle(self, call: Call, request: api.ReloadHostPolicyRequest) -> api.ReloadHostPolicyResponse:  # noqa: ARG002 - handlers share one form
        """Read the documents; the outcome's record tells which are in force."""
        try:
            host_policy = self._read()
        except HostPolicyError as error:
            self.fault = str(error)
            raise MalformedPolicyDocumentError(f"{error}; the host policy in force stays") from None
        self._adopt(host_policy)
        return api.ReloadHostPolicyResponse(digest=host_policy.digest, documents=host_policy.documents)

    def _adopt(self, host_policy: HostPolicy) -> None:
        self._authorizer.adopt(host_policy)
        self.fault = None


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {api.RELOAD_HOST_POLICY: HostPolicies.handle}
