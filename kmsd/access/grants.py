"""Grants as they are evaluated: permissions on one key, found by what is asked and not one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kmsd.access.explanation import Step
from kmsd.access.facts import Facts
from kmsd.access.rules import Decision
from kmsd.api.grants import GrantOperation
from kmsd.identity.principals import Caller

# What a grant can permit. About anything else no grant is asked.
GRANTABLE_ACTIONS = frozenset(f"kms:{operation.value}" for operation in GrantOperation)
# These have no encryption context, and are permitted whatever a grant's constraint says, as in AWS. What CreateGrant
# says of contexts concerns the grant that is made: whoever makes it has `Grant.covers` compare them.
_UNCONSTRAINED_ACTIONS = frozenset({"kms:CreateGrant", "kms:DescribeKey", "kms:RetireGrant"})

_Pair = tuple[str, str]


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

    Grants may be added one by one; of those that permit the same, the one that was added first is found.
    """

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._unconstrained: dict[str, str] = {}
        self._equals: dict[tuple[str, frozenset[_Pair]], str] = {}
        self._subsets: dict[tuple[str, _Pair], dict[frozenset[_Pair], str]] = {}
        self._constrained = 0
        for grant in sorted(grants, key=lambda one: one.grant_id):
            self.add(grant)

    @property
    def constrained(self) -> int:
        """How many of the grants have a constraint: only these take memory, and ask for the encryption context."""
        return self._constrained

    def add(self, grant: Grant) -> None:
        """Find `grant` too."""
        subset = frozenset((grant.subset or {}).items())
        equals = None if grant.equals is None else frozenset(grant.equals.items())
        self._constrained += equals is not None or bool(subset)
        for action in grant.actions:
            if action in _UNCONSTRAINED_ACTIONS or (equals is None and not subset):
                self._unconstrained.setdefault(action, grant.grant_id)
            elif equals is None:
                # By the pair that leads to the fewest so far: constraints mostly share some pairs and differ in one.
                places = ((action, pair) for pair in subset)
                place = min(places, key=lambda one: (len(self._subsets.get(one, ())), one))
                self._subsets.setdefault(place, {}).setdefault(subset, grant.grant_id)
            elif subset <= equals:
                self._equals.setdefault((action, equals), grant.grant_id)

    def find(self, action: str, context: Mapping[str, str] | None) -> str | None:
        """Return the id of a grant that permits `action` under this encryption context, if one does.

        One without a constraint is found first. The time it takes grows with the pairs of the context, not with the
        grants, as long as constraints differ in a pair that few of them share.
        """
        if (found := self._unconstrained.get(action)) is not None or context is None:
            return found
        pairs = frozenset(context.items())
        if (found := self._equals.get((action, pairs))) is not None:
            return found
        for pair in pairs if self._subsets else ():
            for wanted, grant_id in self._subsets.get((action, pair), {}).items():
                if wanted <= pairs:
                    return grant_id
        return None
