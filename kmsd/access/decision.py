"""Whether a caller may do something. POLICY.md tells it at length.

1. A Deny of the key's policy that concerns the caller refuses.
2. A Deny of the host policy refuses.
3. An Allow of the key's policy allows.
4. For an operation without a key, and for one whose key policy lets the account's root in for this action (and does
   not deny it to the root), an Allow of the host policy allows.
5. Everything else is refused.

The order of statements does not matter: what a decision depends on is the caller, the statements, the action and the
resource.
"""

from __future__ import annotations

from kmsd.access.host import HostPolicy, HostPolicyError
from kmsd.access.policy import Policy
from kmsd.access.rules import Decision
from kmsd.api.errors import AccessDeniedError
from kmsd.identity.principals import Caller

__all__ = ["Authorizer", "Decision", "HostPolicy", "HostPolicyError", "NotAuthorizedError", "would_lock_out"]

# The rule that decides when no statement does.
DEFAULT_DENY = "no statement allows it"


class NotAuthorizedError(AccessDeniedError):
    """A policy refuses the request. `rule` names the statement, for the audit trail; the caller is not told it."""

    def __init__(self, message: str, rule: str) -> None:
        super().__init__(message)
        self.rule = rule


class Authorizer:
    """Decides under one host policy, which another may take the place of."""

    def __init__(self, host_policy: HostPolicy) -> None:
        self._host_policy = host_policy

    def adopt(self, host_policy: HostPolicy) -> None:
        """Decide under `host_policy` from now on."""
        self._host_policy = host_policy

    def authorize(self, caller: Caller, action: str, *, resource: str, key_policy: Policy | None) -> Decision:
        """Return why `caller` may do `action` ("kms:Encrypt") on `resource`, an ARN or "*".

        `key_policy` is the policy of the key that the action is about, None if it is about no key. Raises
        NotAuthorizedError.
        """
        host = self._host_policy.rules(action, resource)
        if key_policy is None:
            if host.denies and (refusal := host.denied(caller)):
                raise _refusal(caller, action, resource, "with an explicit deny in a host policy", refusal.rule)
            if allowance := host.allowed(caller):
                return allowance
            raise _refusal(caller, action, resource, "because no host policy allows it", DEFAULT_DENY)
        key = key_policy.table.rules(action, resource)
        if key.denies and (refusal := key.denied(caller)):
            raise _refusal(caller, action, resource, "with an explicit deny in the key policy", refusal.rule)
        if host.denies and (refusal := host.denied(caller)):
            raise _refusal(caller, action, resource, "with an explicit deny in a host policy", refusal.rule)
        if allowance := key.allowed(caller):
            return allowance
        if key.delegated and (allowance := host.allowed(caller)):
            return allowance
        raise _refusal(caller, action, resource, "because no policy allows it", DEFAULT_DENY)


def _refusal(caller: Caller, action: str, resource: str, why: str, rule: str) -> NotAuthorizedError:
    who = f"uid {caller.uid}" if caller.user is None else f"{caller.user} (uid {caller.uid})"
    message = f"User: {who} is not authorized to perform: {action} on resource: {resource} {why}"
    return NotAuthorizedError(message, rule)


def would_lock_out(policy: Policy, caller: Caller, *, resource: str = "*") -> bool:
    """Tell whether `caller`, under `policy`, could not change the policy later: AWS's lockout safety check.

    It is enough that the policy lets the account's root in for that, since administrators are never locked out then.
    `resource` is the key's ARN, "*" while it has none.
    """
    rules = policy.table.rules("kms:PutKeyPolicy", resource)
    return rules.denied(caller) is not None or not (rules.delegated or rules.allowed(caller))
