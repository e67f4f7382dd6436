"""What would be decided, and why something was refused.

Everybody may ask about himself, which he could find out by trying; administrators about anybody. Of key and host
policies who asks sees the statements that speak of whom he asks about: the others are not his business, unless he may
read the key's policy (kms:GetKeyPolicy) or is an administrator.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from kmsd.access.condition_keys import condition_key
from kmsd.access.decision import Authorizer, Explanation, NotAuthorizedError, Step
from kmsd.access.facts import UNDETERMINED, Facts, Values
from kmsd.access.policy import Policy, named_in, parse_policy
from kmsd.api import OPERATIONS
from kmsd.api import policies as api
from kmsd.api.encryption_context import check_size
from kmsd.api.errors import AccessDeniedError, NotFoundError, ValidationError
from kmsd.api.operation import Operation
from kmsd.identity.directory import Directory
from kmsd.identity.principals import Caller
from kmsd.service.call import Call
from kmsd.service.facts import CallFacts, Surroundings
from kmsd.service.key_lookup import KeyLookup
from kmsd.service.loading import loaded
from kmsd.service.records import KeyRecord
from kmsd.service.refusals import Refusals
from kmsd.service.subjects import Subjects, described

# As the declarations write them, by the same in lower case.
_ACTIONS = {action.lower(): action for operation in OPERATIONS for action in operation.actions}
# Condition keys, by how they begin, that tell of a key what only some may know.
_OTHERS_BUSINESS = ("aws:resourcetag/", "kms:resourcealiases", "kms:trailingdayswithoutkeyusage")
_CONDITION_KEY = re.compile(r"(?:aws|kms|kmsd):[A-Za-z]{1,64}", re.IGNORECASE)
# What has an encryption context, be it an empty one.
_WITH_CONTEXT = {
    action
    for operation in OPERATIONS
    if any(member.endswith("encryption_context") for member in operation.request.__struct_fields__)
    for action in operation.actions
}


class SimulatedFacts:
    """What is given, and for all else what is known of the key, the caller and the time."""

    def __init__(self, given: Mapping[str, Values], known: Facts) -> None:
        self._given = given
        self._known = known

    def values(self, key: str) -> Values:
        """Return the values of a condition key, which is in lower case."""
        return self._given[key] if key in self._given else self._known.values(key)

    def encryption_context(self) -> dict[str, str] | None:
        """Return the encryption context that was given."""
        return self._known.encryption_context()


class FactsWithoutSecrets:
    """Facts of a key whose policy who asks may not read: its tags, aliases and uses cannot be determined.

    His own policy could ask for them, and he would learn what they are.
    """

    def __init__(self, known: Facts) -> None:
        self._known = known

    def values(self, key: str) -> Values:
        """Return the values of a condition key."""
        return UNDETERMINED if key.startswith(_OTHERS_BUSINESS) else self._known.values(key)

    def encryption_context(self) -> dict[str, str] | None:
        """Return the encryption context."""
        return self._known.encryption_context()


class Simulation:
    """Handlers of what explains decisions."""

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        lookup: KeyLookup,
        refusals: Refusals,
        subjects: Subjects,
        directory: Directory,
        surroundings: Surroundings,
    ) -> None:
        self._authorizer = authorizer
        self._lookup = lookup
        self._refusals = refusals
        self._subjects = subjects
        self._directory = directory
        self._surroundings = surroundings

    async def simulate(self, call: Call, request: api.SimulatePolicyRequest) -> api.SimulatePolicyResponse:
        """Tell how requests of somebody for some actions would be decided."""
        actions = [_known_action(action) for action in request.actions]
        given = _known_values(request.values)
        check_size(request.encryption_context)
        subject, told_as = call.caller, described(call.caller)
        if request.principals:
            if not call.caller.administrator:
                raise AccessDeniedError(
                    "only administrators may ask about others: without Principals it is about yourself"
                )
            subject, told_as = await self._subjects.read(request.principals)
        key = None
        if request.key_id is not None:
            key = await self._lookup.find(request.key_id, call.operation.key_access, subject)
            call.resources.append(key.arn)
        policy = None if key is None else key.policy
        if request.policy is not None:
            names = await self._directory.known(named_in(request.policy))
            policy = parse_policy(request.policy, account=self._surroundings.account, names=names)
        sees_all = call.caller.administrator
        may_read = sees_all or (key is not None and await self._may_read(call, key))
        sees_key_policy = may_read or request.policy is not None
        hides = request.policy is not None and not may_read
        results: list[api.SimulationResult] = []
        room = api.MAX_TRACE if request.trace else 0
        for action in actions:
            known: Facts = self._known(subject, action, key, request)
            facts = SimulatedFacts(given, FactsWithoutSecrets(known) if hides else known)
            explanation = await self._explained(subject, action, key, policy, facts)
            shown = _shown(explanation.trace, everything=sees_all, key_policy=sees_key_policy)[:room]
            room -= len(shown)
            results.append(_result(action, explanation, shown))
            await asyncio.sleep(0)  # a long policy takes milliseconds for each
        resource = "*" if key is None else key.arn
        return api.SimulatePolicyResponse(principal=told_as, resource=resource, results=results)

    def _known(
        self, subject: Caller, action: str, key: KeyRecord | None, request: api.SimulatePolicyRequest
    ) -> CallFacts:
        context = request.encryption_context if request.encryption_context or action in _WITH_CONTEXT else None
        return CallFacts(self._surroundings, subject, action, key=key, named=request.key_id, context=context)

    async def _explained(
        self, subject: Caller, action: str, key: KeyRecord | None, policy: Policy | None, facts: Facts
    ) -> Explanation:
        explain = partial(
            self._authorizer.explain,
            subject,
            action,
            resource="*" if key is None else key.arn,
            key_policy=policy,
            facts=facts,
            grants=None if key is None else key.grants,
        )
        return await loaded(explain)

    async def _may_read(self, call: Call, key: KeyRecord) -> bool:
        facts = CallFacts(self._surroundings, call.caller, _READING, key=key)
        try:
            await loaded(
                partial(
                    self._authorizer.authorize,
                    call.caller,
                    _READING,
                    resource=key.arn,
                    key_policy=key.policy,
                    facts=facts,
                )
            )
        except NotAuthorizedError:
            return False
        return True

    async def explain(self, call: Call, request: api.ExplainRefusalRequest) -> api.ExplainRefusalResponse:
        """Tell why a request was refused, as it was decided then."""
        refusal = self._refusals.find(request.request_id)
        everything = call.caller.administrator
        if refusal is None or not (everything or refusal.caller.uid == call.caller.uid):
            raise NotFoundError(
                f"no refusal of yours with the id {request.request_id} is remembered: of older ones, and of those of "
                "others, the audit trail tells (kms audit)"
            )
        explanation = refusal.explanation
        shown = _shown(explanation.trace, everything=everything, key_policy=everything)[: api.MAX_TRACE]
        return api.ExplainRefusalResponse(
            request_id=refusal.request_id,
            operation=refusal.operation,
            principal=described(refusal.caller),
            resource=refusal.resource,
            result=_result(refusal.action, explanation, shown),
        )


_READING = api.GET_KEY_POLICY.action


def _known_action(action: str) -> str:
    known = _ACTIONS.get(action.lower())
    if known is None:
        raise ValidationError(f"{action} permits no operation of this version")
    return known


def _known_values(values: Mapping[str, Sequence[str]]) -> dict[str, Values]:
    for name in values:
        if condition_key(name) is None:
            # The caller's own text, which is told only where it looks like a name that was mistyped.
            which = f"'{name}'" if _CONDITION_KEY.fullmatch(name) else "a name in Values"
            raise ValidationError(f"{which} is no condition key, as kms:KeySpec and kmsd:Uid are")
    return {name.lower(): tuple(given) or None for name, given in values.items()}


def _shown(trace: Sequence[Step], *, everything: bool, key_policy: bool) -> list[Step]:
    return [one for one in trace if everything or one.concerns or (key_policy and one.origin == "key policy")]


def _result(action: str, explanation: Explanation, shown: Sequence[Step]) -> api.SimulationResult:
    trace = [
        api.TraceEntry(
            origin=step.origin,
            number=step.number,
            sid=step.sid,
            effect=step.effect,
            holds=step.holds,
            reason=step.reason,
        )
        for step in shown
    ]
    return api.SimulationResult(action=action, decision=explanation.outcome, rule=explanation.rule, trace=trace)


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.SIMULATE_POLICY: Simulation.simulate,
    api.EXPLAIN_REFUSAL: Simulation.explain,
}
