"""Statements as they are evaluated: compiled once, looked up by action and resource.

The work that depends on a document's size is done when it is parsed and when an action is first asked about. What is
left for a request is to go through the statements about that action, and each of these asks sets.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from kmsd.access.audience import Audience, EverybodyElse
from kmsd.access.conditions import Condition
from kmsd.access.facts import Facts
from kmsd.access.wildcards import Wildcard, has_wildcard
from kmsd.identity.principals import ADMINISTRATORS, Caller, Principal

# What is remembered of one policy: more than there are operations, so that a key policy, which is asked about one
# resource, forgets nothing.
_MAX_REMEMBERED = 256


class Effect(enum.StrEnum):
    """What a statement does."""

    ALLOW = "Allow"
    DENY = "Deny"


@dataclass(frozen=True)
class Decision:
    """Why a request is allowed: `rule` names the statement, for the audit trail."""

    rule: str


class Patterns:
    """Some patterns, of which one has to match; those without a wildcard are only looked up."""

    __slots__ = ("_everything", "_literals", "_wildcards")

    def __init__(self, patterns: Iterable[str]) -> None:
        distinct = frozenset(patterns)
        self._everything = "*" in distinct
        wildcards = frozenset(filter(has_wildcard, distinct)) - {"*"}
        self._literals = distinct - wildcards
        self._wildcards = tuple(Wildcard(one) for one in wildcards)

    @property
    def everything(self) -> bool:
        """Whether they match whatever there is."""
        return self._everything

    def match(self, text: str) -> bool:
        """Tell whether one of them matches the whole of `text`."""
        return self._everything or text in self._literals or any(one.matches(text) for one in self._wildcards)


class AllBut:
    """What NotAction and NotResource mean: everything that `patterns` do not match."""

    __slots__ = ("_patterns",)

    # There may be something that they match.
    everything = False

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns

    def match(self, text: str) -> bool:
        """Tell whether none of the patterns matches the whole of `text`."""
        return not self._patterns.match(text)


Selection: TypeAlias = Patterns | AllBut


class Statement:
    """A statement of a policy.

    `origin` says which document it stands in ("key policy"), `number` counts from 1. A Deny holds for everybody whom
    its principals may mean and whenever its condition may be met, an Allow only where both are certain. With
    `excepting` the statement, a Deny, is about everybody but its principals.
    """

    __slots__ = (
        "actions",
        "audience",
        "condition",
        "decision",
        "effect",
        "excepting",
        "number",
        "origin",
        "principals",
        "resources",
        "sid",
    )

    def __init__(
        self,
        *,
        origin: str,
        number: int,
        sid: str | None,
        effect: Effect,
        principals: tuple[Principal, ...],
        excepting: bool,
        actions: Selection,
        resources: Selection,
        condition: Condition | None,
    ) -> None:
        self.origin = origin
        self.number = number
        self.sid = sid
        self.effect = effect
        self.principals = principals
        self.excepting = excepting
        # Actions are compared without regard to case, as AWS does, and are in lower case here; resources are not.
        self.actions = actions
        self.resources = resources
        self.condition = condition
        self.decision = Decision(f'{origin}: "{sid}" (statement {number})' if sid else f"{origin}: statement {number}")
        self.audience: Audience | EverybodyElse
        if excepting:
            self.audience = EverybodyElse(principals)
        elif effect is Effect.DENY:
            self.audience = Audience.possible(principals)
        else:
            self.audience = Audience.certain(principals)

    @property
    def names_administrators(self) -> bool:
        """Whether the account's root is among the principals."""
        return not self.excepting and ADMINISTRATORS in self.principals

    def concerns(self, caller: Caller) -> bool:
        """Tell whether the statement is about `caller`, whatever its condition says."""
        return self.audience.includes(caller)

    def met(self, facts: Facts) -> bool:
        """Tell whether the condition lets the statement hold: for a Deny it is enough that it may be met."""
        if self.condition is None:
            return True
        met = self.condition.holds(facts)
        return met is not False if self.effect is Effect.DENY else met is True


@dataclass(frozen=True, slots=True)
class Rules:
    """The statements about one action on one resource.

    `delegated` tells whether the host policy may allow it too; None: that depends on the request.
    """

    denies: tuple[Statement, ...]
    allows: tuple[Statement, ...]
    delegated: bool | None

    def denied(self, caller: Caller, facts: Facts) -> Decision | None:
        """Return which statement refuses `caller`, if one does."""
        for statement in self.denies:
            if statement.audience.includes(caller) and (statement.condition is None or statement.met(facts)):
                return statement.decision
        return None

    def allowed(self, caller: Caller, facts: Facts) -> Decision | None:
        """Return which statement lets `caller`, if one does."""
        for statement in self.allows:
            if statement.audience.includes(caller) and (statement.condition is None or statement.met(facts)):
                return statement.decision
        return None

    def delegates(self, facts: Facts) -> bool:
        """Tell whether the host policy may allow it too: an Allow names the account's root, and no Deny does."""
        if self.delegated is not None:
            return self.delegated
        return any(one.names_administrators and one.met(facts) for one in self.allows) and not any(
            one.names_administrators and one.met(facts) for one in self.denies
        )


class RuleTable:
    """Statements, found by action and resource."""

    def __init__(self, statements: Iterable[Statement]) -> None:
        self._statements = tuple(statements)
        # By action where every statement about it is about all resources, as is usual, and else by both.
        self._remembered: dict[str | tuple[str, str], Rules] = {}

    def rules(self, action: str, resource: str) -> Rules:
        """Return the statements about `action` on `resource`."""
        rules = self._remembered.get(action) or self._remembered.get((action, resource))
        return rules if rules is not None else self._find(action, resource)

    def _find(self, action: str, resource: str) -> Rules:
        folded = action.lower()
        about = [one for one in self._statements if one.actions.match(folded)]
        found = [one for one in about if one.resources.match(resource)]
        denies = tuple(one for one in found if one.effect is Effect.DENY)
        allows = tuple(one for one in found if one.effect is Effect.ALLOW)
        rules = Rules(denies, allows, _delegated(denies, allows))
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        every_resource = all(one.resources.everything for one in about)
        self._remembered[action if every_resource else (action, resource)] = rules
        return rules


def _delegated(denies: tuple[Statement, ...], allows: tuple[Statement, ...]) -> bool | None:
    delegating = [one for one in allows if one.names_administrators]
    ending = [one for one in denies if one.names_administrators]
    if not delegating or any(one.condition is None for one in ending):
        return False
    if not ending and any(one.condition is None for one in delegating):
        return True
    return None
