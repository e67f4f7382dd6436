"""Statements as they are evaluated: compiled once, looked up by action and resource.

The work that depends on a document's size is done when it is parsed and when an action is first asked about. What is
left for a request is to go through the statements about that action, and each of these asks sets.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kmsd.access.wildcards import has_wildcard, matches
from kmsd.identity.principals import Caller, Principal, PrincipalKind

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
        self._wildcards = frozenset(filter(has_wildcard, distinct)) - {"*"}
        self._literals = distinct - self._wildcards

    @property
    def everything(self) -> bool:
        """Whether they match whatever there is."""
        return self._everything

    def match(self, text: str) -> bool:
        """Tell whether one of them matches the whole of `text`."""
        return self._everything or text in self._literals or any(matches(one, text) for one in self._wildcards)


class Statement:
    """A statement of a policy.

    `origin` says which document it stands in ("key policy"), `number` counts from 1. A Deny holds for everybody whom
    its principals may mean, an Allow only for those whom they mean for certain.
    """

    __slots__ = (
        "_administrators",
        "_everybody",
        "_gids",
        "_uids",
        "actions",
        "decision",
        "effect",
        "principals",
        "resources",
    )

    def __init__(
        self,
        *,
        origin: str,
        number: int,
        sid: str | None,
        effect: Effect,
        principals: tuple[Principal, ...],
        actions: Iterable[str],
        resources: Iterable[str],
    ) -> None:
        self.effect = effect
        self.principals = principals
        # Actions are compared without regard to case, as AWS does; resources are not.
        self.actions = Patterns(action.lower() for action in actions)
        self.resources = Patterns(resources)
        self.decision = Decision(f'{origin}: "{sid}" (statement {number})' if sid else f"{origin}: statement {number}")
        heard = [one for one in principals if effect is Effect.DENY or not one.suspended]
        kinds = {one.kind for one in heard}
        self._everybody = PrincipalKind.ANY in kinds
        self._administrators = PrincipalKind.ADMINISTRATORS in kinds
        self._uids = frozenset[int]().union(*(one.ids for one in heard if one.kind is PrincipalKind.UID))
        self._gids = frozenset[int]().union(*(one.ids for one in heard if one.kind is PrincipalKind.GID))

    @property
    def names_administrators(self) -> bool:
        """Whether the account's root is among the principals."""
        return self._administrators

    def concerns(self, caller: Caller) -> bool:
        """Tell whether the statement holds for `caller`."""
        return (
            caller.uid in self._uids
            or self._everybody
            or (self._administrators and caller.administrator)
            or caller.gid in self._gids
            or not self._gids.isdisjoint(caller.groups)
        )


class Rules(NamedTuple):
    """The statements about one action on one resource; `delegated` tells whether the host policy may allow it too."""

    denies: tuple[Statement, ...]
    allows: tuple[Statement, ...]
    delegated: bool

    def denied(self, caller: Caller) -> Decision | None:
        """Return which statement refuses `caller`, if one does."""
        for statement in self.denies:
            if statement.concerns(caller):
                return statement.decision
        return None

    def allowed(self, caller: Caller) -> Decision | None:
        """Return which statement lets `caller`, if one does."""
        for statement in self.allows:
            if statement.concerns(caller):
                return statement.decision
        return None


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
        delegated = any(one.names_administrators for one in allows) and not any(
            one.names_administrators for one in denies
        )
        rules = Rules(denies, allows, delegated)
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        every_resource = all(one.resources.everything for one in about)
        self._remembered[action if every_resource else (action, resource)] = rules
        return rules
