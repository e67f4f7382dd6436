"""Reading and writing key policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.access.decision import would_lock_out
from kmsd.access.policy import named_in, parse_policy
from kmsd.api import policies as api
from kmsd.api.errors import MalformedPolicyDocumentError, NotFoundError
from kmsd.api.operation import Operation
from kmsd.api.shapes import Empty
from kmsd.identity.directory import Directory
from kmsd.service.call import Call
from kmsd.service.identifiers import Arns
from kmsd.service.key_changes import KeyChanges
from kmsd.service.pagination import after
from kmsd.service.records import KeyRecord


class Policies:
    """Handlers of key policies, of which each key has one."""

    def __init__(self, *, changes: KeyChanges, arns: Arns, directory: Directory) -> None:
        self._changes = changes
        self._arns = arns
        self._directory = directory

    async def get(self, call: Call, request: api.GetKeyPolicyRequest, key: KeyRecord) -> api.GetKeyPolicyResponse:  # noqa: ARG002 - handlers share one form
        """Give the document as it was put."""
        _check_name(request.policy_name)
        return api.GetKeyPolicyResponse(policy=key.row.policy, policy_name=api.POLICY_NAME)

    async def put(self, call: Call, request: api.PutKeyPolicyRequest, key: KeyRecord) -> Empty:
        """Put another policy in the place of the key's; the names in it are resolved now, and kept with it."""
        _check_name(request.policy_name)
        names = await self._directory.known(named_in(request.policy))
        policy = parse_policy(request.policy, account=self._arns.account, names=names)
        if not request.bypass_policy_lockout_safety_check and would_lock_out(
            policy, call.caller, facts=call, resource=key.arn
        ):
            raise MalformedPolicyDocumentError(
                "The new key policy will not allow you to update the key policy in the future."
            )
        await self._changes.make(call, key, policy=request.policy, policy_principals=dict(policy.principals))
        return Empty()

    async def list(
        self,
        call: Call,  # noqa: ARG002 - handlers share one form
        request: api.ListKeyPoliciesRequest,
        key: KeyRecord,  # noqa: ARG002
    ) -> api.ListKeyPoliciesResponse:
        """List the one name there is."""
        names = [api.POLICY_NAME] if after(request.marker) is None else []
        return api.ListKeyPoliciesResponse(policy_names=names)


def _check_name(name: str) -> None:
    if name != api.POLICY_NAME:
        raise NotFoundError(f"No such policy exists: the one policy of a key is named '{api.POLICY_NAME}'")


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.GET_KEY_POLICY: Policies.get,
    api.PUT_KEY_POLICY: Policies.put,
    api.LIST_KEY_POLICIES: Policies.list,
}
