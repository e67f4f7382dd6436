"""How a decision came about, for people: every statement and grant that was looked at, and why it holds or not."""

from __future__ import annotations

from dataclasses import dataclass

from kmsd.access.facts import Facts
from kmsd.access.rules import Effect, Statement
from kmsd.api.policies import Outcome
from kmsd.identity.principals import ATTRIBUTES, Caller, Principal, PrincipalKind

# Principals that a reason shows of a statement that names many.
_SHOWN_PRINCIPALS = 3
_WORDS = {
    PrincipalKind.ADMINISTRATORS: "whether the caller is an administrator",
    PrincipalKind.UNIT: "unit",
    PrincipalKind.USER_UNIT: "user unit",
    PrincipalKind.EXE: "executable",
}


@dataclass(frozen=True)
class Step:
    """A statement or grant that fits the action and the resource.

    `origin` is "key policy", "host policy FILE" or "grant ID"; `number` counts the statements of a document from 1.
    `concerns` tells whether the caller is meant, whatever the condition says: of what is said about others, who may not
    read the document learns nothing.
    """

    origin: str
    number: int
    sid: str
    effect: str
    holds: bool
    reason: str
    concerns: bool = True


@dataclass(frozen=True)
class Explanation:
    """How a request was decided, by which rule, and what was looked at."""

    outcome: Outcome
    rule: str
    trace: tuple[Step, ...]


def step_of(statement: Statement, caller: Caller, facts: Facts) -> Step:
    """Tell whether `statement` holds for a request, and why."""
    holds = concerns = statement.concerns(caller)
    reason = _principal_reason(statement, caller)
    if holds and statement.condition is not None:
        holds = statement.met(facts)
        reason = f"{reason}; {statement.condition.reason(facts)}"
        if statement.condition.holds(facts) is None:
            reason += _for_doubt(statement)
    sid = statement.sid or ""
    return Step(statement.origin, statement.number, sid, statement.effect.value, holds, reason, concerns)


def _principal_reason(statement: Statement, caller: Caller) -> str:
    by_outcome: dict[bool | None, Principal] = {one.matches(caller): one for one in reversed(statement.principals)}
    if (meant := by_outcome.get(True)) is not None:
        return f"the principal is {_described(meant)}" + (", who is excepted" if statement.excepting else "")
    if (doubtful := by_outcome.get(None)) is not None:
        return _doubt(doubtful) + _for_doubt(statement)
    listed = ", ".join(str(one) for one in statement.principals[:_SHOWN_PRINCIPALS])
    more = len(statement.principals) - _SHOWN_PRINCIPALS
    return f"the principal is {'none of' if ',' in listed else 'not'} {listed}" + (f" and {more} more" * (more > 0))


def _described(principal: Principal) -> str:
    if principal.kind is PrincipalKind.ANY:
        return "*, which is everybody"
    if principal.name is None:
        return str(principal)
    return f"{principal} ({principal.kind.value} {principal.value})"


def _doubt(principal: Principal) -> str:
    if principal.kind in ATTRIBUTES:
        return f"{_WORDS[principal.kind]} cannot be determined"
    return f"{principal} is not whom it was when the policy was written"


def _for_doubt(statement: Statement) -> str:
    return ", which counts for a Deny" if statement.effect is Effect.DENY else ", which does not count for an Allow"
