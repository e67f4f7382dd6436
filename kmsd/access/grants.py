"""Grants as they are evaluated: permissions on one key, found by what is asked and not one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from kmsd.access.explanation import Step
from kmsd.access.facts import Facts
from kmsd.access.rules import Decision
from kmsd.api.encryption_context import serialize
from kmsd.api.grants import GrantOperation
from kmsd.identity.principals import Caller

# What a grant can permit. About anything else no grant is asked.
GRANTABLE_ACTIONS = frozenset(f"kms:{operation.value}" for operation in GrantOperation)
# These have no encryption context, and are permitted whatever a grant's constraint says, as in AWS. What CreateGrant
# says of contexts concerns the grant that is made: whoever makes it has `Grant.covers` compare them.
_UNCONSTRAINED_ACTIONS = frozenset({"kms:CreateGrant", "kms:DescribeKey", "kms:RetireGrant"})

_Pair: TypeAlias = tuple[str, str]
# What grants with one and the same constraint permit: actions, and by which grant.
_Permits: TypeAlias = tuple[tuple[frozenset[str], str], ...]


class Granting(Protocol):
    """What the grants of one key permit.

    Grants that are not in memory make both methods raise an error of the implementation's, which is passed on.
    """

    def allowed(self, caller: Caller, action: str, facts: Facts) -> Decision | None:
        """Return which grant lets `caller` do `action` ("kms:Decrypt"), if one does."""

    def steps(self, caller: Caller, action: str, facts: Facts) -> tuple[Step, ...]:
        """Tell of the caller's grants that permit `action` whether each holds, and why."""


@dataclass(frozen=True)
class Grant:
    """What a grant permits, to whom is known: `actions` on its key, under an encryption context if it is constrained.

    With `equals` the encryption context has to be exactly that, with `subset` it has to have at least those pairs.
    """

    grant_id: str
    actions: frozenset[str]
    equals: Mapping[str, str] | None = None
    subset: Mapping[str, str] | None = None

    def unmet(self, action: str, context: Mapping[str, str] | None) -> str | None:
        """Say in words what is wrong with the encryption context; None if nothing is."""
        if action in _UNCONSTRAINED_ACTIONS or (self.equals is None and not self.subset):
            return None
        if context is None:
            return "the request can have no encryption context, and the grant wants one"
        if self.equals is not None and dict(self.equals) != dict(context):
            return "the encryption context is not exactly what the grant wants"
        missing = [name for name, value in (self.subset or {}).items() if context.get(name) != value]
        return f"the encryption context has not what the grant wants for {missing[0]!a:.80}" if missing else None

    def covers(self, child: Grant) -> bool:
        """Tell whether `child` permits nothing that this grant does not: a grant made under this one may be so.

        Its actions are some of this one's, and its constraint is the same or a stricter one. Constraints that differ
        in form are compared by what they say, not by which contexts there may be: when in doubt, it is not covered.
        """
        if not child.actions <= self.actions or (self.equals is not None and self.equals != child.equals):
            return False
        wanted = child.equals if child.equals is not None else child.subset or {}
        return (self.subset or {}).items() <= wanted.items()

    def step(self, action: str, facts: Facts) -> Step:
        """Tell whether the grant, which permits `action`, holds for a request, and why."""
        unmet = self.unmet(action, facts.encryption_context())
        reason = unmet or "the grantee is the caller"
        return Step(f"grant {self.grant_id}", 0, "", "Allow", unmet is None, reason)


class GrantIndex:
    """The grants of one key to one caller, found by action and encryption context.

    Grants may be added one by one; of those that permit the same, the one that was added first is found, and the others
    take no memory. A key may have 50,000, so what is kept of each is little, and little of it containers, which the
    garbage collector would go through again and again.
    """

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._unconstrained: dict[str, str] = {}
        # By a digest of the encryption context.
        self._equals: dict[bytes, _Permits] = {}
        # By one pair of an encryption context, and all pairs that are wanted.
        self._subsets: dict[_Pair, dict[tuple[_Pair, ...], _Permits]] = {}
        self._constrained = 0
        for grant in sorted(grants, key=lambda one: one.grant_id):
            self.add(grant)

    @property
    def constrained(self) -> int:
        """How many of the grants have a constraint: only these take memory, and ask for the encryption context."""
        return self._constrained

    def add(self, grant: Grant) -> None:
        """Find `grant` too."""
        subset = tuple(sorted((grant.subset or {}).items()))
        if grant.equals is None and not subset:
            self._add_unconstrained(grant, grant.actions)
            return
        self._constrained += 1
        self._add_unconstrained(grant, grant.actions & _UNCONSTRAINED_ACTIONS)
        actions = grant.actions - _UNCONSTRAINED_ACTIONS
        if not actions:
            return
        if grant.equals is None:
            # By the pair that leads to the fewest so far: constraints mostly share some pairs and differ in one.
            rarest = min(subset, key=lambda pair: len(self._subsets.get(pair, ())))
            alike = self._subsets.setdefault(rarest, {})
            alike[subset] = _and(alike.get(subset, ()), actions, grant.grant_id)
        elif (grant.subset or {}).items() <= grant.equals.items():
            digest = _digest(grant.equals)
            self._equals[digest] = _and(self._equals.get(digest, ()), actions, grant.grant_id)

    def _add_unconstrained(self, grant: Grant, actions: Iterable[str]) -> None:
        for action in actions:
            self._unconstrained.setdefault(action, grant.grant_id)

    def find(self, action: str, context: Mapping[str, str] | None) -> str | None:
        """Return the id of a grant that permits `action` under this encryption context, if one does.

        One without a constraint is found first. The time it takes grows with the pairs of the context, not with the
        grants, as long as constraints differ in a pair that few of them share.
        """
        if (found := self._unconstrained.get(action)) is not None or context is None:
            return found
        for actions, grant_id in self._equals.get(_digest(context), ()) if self._equals else ():
            if action in actions:
                return grant_id
        for pair in context.items() if self._subsets else ():
            for wanted, permits in self._subsets.get(pair, {}).items():
                for actions, grant_id in permits:
                    if action in actions and all(context.get(name) == value for name, value in wanted):
                        return grant_id
        return None


def _and(permits: _Permits, actions: frozenset[str], grant_id: str) -> _Permits:
    """Return what is permitted together with what one more grant permits, if that is anything new."""
    new = actions.difference(*(known for known, _ in permits))
    return (*permits, (actions, grant_id)) if new else permits


def _digest(context: Mapping[str, str]) -> bytes:
    return hashlib.sha256(serialize(context)).digest()
