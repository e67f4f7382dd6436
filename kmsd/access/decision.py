"""Whether a caller may do something. POLICY.md tells it at length.

1. A Deny of the key's policy that concerns the request refuses.
2. A Deny of the host policy refuses.
3. An Allow of the key's policy allows, but not kms:RetireGrant, which only grants and host policies do, as in AWS.
4. A grant of the key to the caller allows the operation that it names, under the encryption context that it wants.
5. For an operation without a key, and for one whose key policy lets the account's root in for this request (and does
   not deny it to the root), an Allow of the host policy allows.
6. Everything else is refused.

A statement concerns a request if action, resource, principal and condition fit. Where it cannot be told whether
principal or condition do, a Deny concerns the request and an Allow does not. The order of statements does not matter:
what a decision depends on is the caller, the statements, the action, the resource, the key's grants and the facts that
conditions and constraints ask for; no fact is looked at that none of them asks for.
"""

from __future__ import annotations

from dataclasses import replace

from kmsd.access.explanation import Explanation, Step, step_of
from kmsd.access.facts import Facts
from kmsd.access.grants import GRANTABLE_ACTIONS, Granting
from kmsd.access.host import HostPolicy, HostPolicyError
from kmsd.access.policy import Policy
from kmsd.access.rules import Decision, Effect, Rules
from kmsd.api.errors import AccessDeniedError
from kmsd.api.policies import Outcome
from kmsd.identity.principals import Caller

__all__ = [
    "Authorizer",
    "Decision",
    "Explanation",
    "HostPolicy",
    "HostPolicyError",
    "NotAuthorizedError",
    "Outcome",
    "Step",
    "refusal",
    "would_lock_out",
]

# The rule that decides when no statement does.
DEFAULT_DENY = "no statement allows it"
_BY_GRANT_ONLY = "kms:RetireGrant"


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

    def authorize(
        self,
        caller: Caller,
        action: str,
        *,
        resource: str,
        key_policy: Policy | None,
        facts: Facts,
        grants: Granting | None = None,
    ) -> Decision:
        """Return why `caller` may do `action` ("kms:Encrypt") on `resource`, an ARN or "*".

        `key_policy` is the policy of the key that the action is about, None if it is about no key, and `grants` are
        that key's. Raises NotAuthorizedError, and what `grants` raise when they are not in memory.
        """
        host = self._host_policy.rules(action, resource)
        if key_policy is None:
            if host.denies and (denial := host.denied(caller, facts)):
                raise refusal(caller, action, resource, "with an explicit deny in a host policy", denial.rule)
            if allowance := host.allowed(caller, facts):
                return allowance
            raise refusal(caller, action, resource, "because no host policy allows it", DEFAULT_DENY)
        key = key_policy.table.rules(action, resource)
        if key.denies and (denial := key.denied(caller, facts)):
            raise refusal(caller, action, resource, "with an explicit deny in the key policy", denial.rule)
        if host.denies and (denial := host.denied(caller, facts)):
            raise refusal(caller, action, resource, "with an explicit deny in a host policy", denial.rule)
        if action != _BY_GRANT_ONLY and (allowance := key.allowed(caller, facts)):
            return allowance
        if (
            grants is not None
            and action in GRANTABLE_ACTIONS
            and (allowance := grants.allowed(caller, action, facts)) is not None
        ):
            return allowance
        if key.delegates(facts) and (allowance := host.allowed(caller, facts)):
            return allowance
        raise refusal(caller, action, resource, "because no policy allows it", DEFAULT_DENY)

    def explain(
        self,
        caller: Caller,
        action: str,
        *,
        resource: str,
        key_policy: Policy | None,
        facts: Facts,
        grants: Granting | None = None,
    ) -> Explanation:
        """Return how `authorize` decides, and every statement and grant that is about this action and resource.

        Raises what `grants` raise when they are not in memory.
        """
        host = self._host_policy.rules(action, resource)
        trace = _steps(host, caller, facts)
        if key_policy is not None:
            key = key_policy.table.rules(action, resource)
            if not key.delegates(facts):
                why = "but the key policy does not let the account's root in for this"
                trace = [_ineffective(step, why) for step in trace]
            given = grants.steps(caller, action, facts) if grants is not None and action in GRANTABLE_ACTIONS else ()
            own = _steps(key, caller, facts)
            if action == _BY_GRANT_ONLY:
                own = [_ineffective(step, "but a key policy does not allow this, only grants do") for step in own]
            trace = [*own, *given, *trace]
        try:
            decision = self.authorize(
                caller, action, resource=resource, key_policy=key_policy, facts=facts, grants=grants
            )
        except NotAuthorizedError as error:
            outcome = Outcome.IMPLICIT_DENY if error.rule == DEFAULT_DENY else Outcome.EXPLICIT_DENY
            return Explanation(outcome, error.rule, tuple(trace))
        return Explanation(Outcome.ALLOWED, decision.rule, tuple(trace))


def _steps(rules: Rules, caller: Caller, facts: Facts) -> list[Step]:
    return [step_of(statement, caller, facts) for statement in (*rules.denies, *rules.allows)]


def _ineffective(step: Step, why: str) -> Step:
    """Return the step of a document whose Allows do not count here."""
    if step.effect == Effect.DENY or not step.holds:
        return step
    return replace(step, holds=False, reason=f"{step.reason}; {why}")


def refusal(caller: Caller, action: str, resource: str, why: str, rule: str) -> NotAuthorizedError:
    """Return the error of a refusal, in AWS's words; `rule` is for the trail."""
    who = f"uid {caller.uid}" if caller.user is None else f"{caller.user} (uid {caller.uid})"
    message = f"User: {who} is not authorized to perform: {action} on resource: {resource} {why}"
    return NotAuthorizedError(message, rule)


def would_lock_out(policy: Policy, caller: Caller, *, facts: Facts, resource: str = "*") -> bool:
    """Tell whether `caller`, under `policy`, could not change the policy later: AWS's lockout safety check.

    It is enough that the policy lets the account's root in for that, since administrators are never locked out then.
    Conditions are looked at as for the request at hand, of which `facts` tell. `resource` is the key's ARN, "*" while
    it has none.
    """
    rules = policy.table.rules("kms:PutKeyPolicy", resource)
    return rules.denied(caller, facts) is not None or not (rules.delegates(facts) or rules.allowed(caller, facts))
