"""Conditions as they are evaluated: what a statement asks about a request.

A condition holds, does not hold, or cannot be told, which is None (Kleene's three values). One that cannot be told
counts for a Deny and not for an Allow. What is evaluated here was checked and bounded when its policy was read.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kmsd.access.comparisons import Comparison
from kmsd.access.facts import UNDETERMINED, Facts
from kmsd.api import encryption_context

# A value of a key with several of them is compared in some 200 ns. This many are more than a caller's groups, a
# key's tags and aliases or an encryption context ever are; with more, the condition cannot be told.
MAX_VALUES = 512
# Of all values of a key together: what an encryption context has at most. Other values are shorter.
MAX_CHARACTERS = encryption_context.MAX_BYTES
# Values that a reason shows, each of so many characters.
_SHOWN_VALUES = 3
_SHOWN_CHARACTERS = 80


class Quantifier(enum.StrEnum):
    """Which of a request's values have to be as wanted, where a key may have several."""

    EVERY = "ForAllValues"
    ANY = "ForAnyValue"


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One condition key under one operator.

    `key` is in lower case and `shown` as the policy has it. `wanted` tells people what a value must be. `comparison`
    is the operator's without its Not, None for Null. `present` is what Null says if the key is there, and `absent`
    what the operator says if it is not.
    """

    key: str
    shown: str
    wanted: str
    comparison: Comparison | None
    negated: bool
    quantifier: Quantifier | None
    present: bool
    absent: bool

    def holds(self, facts: Facts) -> bool | None:
        """Tell whether the request is as wanted; None if that cannot be told."""
        values = facts.values(self.key)
        if values is UNDETERMINED:
            return None
        if not values:
            return self.absent
        if self.comparison is None:
            return self.present
        if len(values) > MAX_VALUES or sum(map(len, values)) > MAX_CHARACTERS:
            return None
        if self.quantifier is None:
            # Two names of an encryption context that differ in case only are one key, of which one value is asked.
            return self._fits(values[0]) if len(values) == 1 else None
        found = {self._fits(value) for value in values}
        if self.quantifier is Quantifier.EVERY:
            return False if False in found else None if None in found else True
        return True if True in found else None if None in found else False

    def reason(self, facts: Facts) -> str:
        """Say in words what the request has and what is wanted."""
        values = facts.values(self.key)
        if values is UNDETERMINED:
            return f"{self.shown} cannot be determined"
        if not values:
            return f"{self.shown} is not given, wanted {self.wanted}"
        return f"{self.shown} is {shown(values, ', ')}, wanted {self.wanted}"

    def _fits(self, value: str) -> bool | None:
        fits = self.comparison(value) if self.comparison is not None else None
        return fits if fits is None else fits is not self.negated


class Condition:
    """What a statement asks: all of its clauses."""

    __slots__ = ("clauses",)

    def __init__(self, clauses: Iterable[Clause]) -> None:
        self.clauses = tuple(clauses)

    def holds(self, facts: Facts) -> bool | None:
        """Tell whether all clauses hold; None if that cannot be told."""
        whole: bool | None = True
        for clause in self.clauses:
            found = clause.holds(facts)
            if found is False:
                return False
            if found is None:
                whole = None
        return whole

    def reason(self, facts: Facts) -> str:
        """Say which clause does not hold, or else which cannot be told, or that all do."""
        found = [(clause.holds(facts), clause) for clause in self.clauses]
        for outcome in (False, None):
            for held, clause in found:
                if held is outcome:
                    return clause.reason(facts)
        return "its conditions are met" if found else "it has no conditions"


def shown(values: Sequence[str], separator: str) -> str:
    """Return `values` for people: quoted, and not all of them if they are many."""
    listed = separator.join(f"{value!a:.{_SHOWN_CHARACTERS}}" for value in values[:_SHOWN_VALUES])
    return listed if len(values) <= _SHOWN_VALUES else f"{listed} and {len(values) - _SHOWN_VALUES} more"
