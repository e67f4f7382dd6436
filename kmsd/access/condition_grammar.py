"""The grammar of conditions: a statement's member Condition to what is evaluated.

What a condition asks must be what its author means. So an operator has to fit the type of the key, a value has to be
of that type, and keys with several values, and only these, say whether each or any of them has to fit.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kmsd.access import comparisons
from kmsd.access.comparisons import Comparison
from kmsd.access.condition_keys import CONDITION_KEYS, ConditionKey, ValueType, condition_key
from kmsd.access.conditions import Clause, Condition, Quantifier, shown
from kmsd.access.document import Number
from kmsd.access.places import GrammarError, Place, readable
from kmsd.access.wildcards import Wildcard, has_wildcard
from kmsd.api.errors import LimitExceededError

# These bound what one decision costs, whatever the request: some 2 ms. AWS bounds a policy's bytes only.
#
# One asks for a fact and reads a value of up to 8,192 characters without regard to case, which takes 15 us.
MAX_CONDITIONS = 128
# Patterns under ForAllValues and ForAnyValue, or such conditions without patterns: each is compared with up to 512
# values, in some 200 ns.
MAX_SET_COMPARISONS = 16
# Patterns in conditions take a fraction of a microsecond each for what stands at their ends,
MAX_PATTERNS = 64
# and what stands between two * of all of them is searched: each character is compared with up to 8,192 of a value, in
# 1 ns.
MAX_SEARCHED_CHARACTERS = 128

_IF_EXISTS = "IfExists"
_NULL = "Null"
# What a message suggests in the place of; longer names resemble nothing.
_LONGEST_SUGGESTED = 64


class Family(enum.Enum):
    """What the operators of a family compare: the types of keys that they fit."""

    STRING = frozenset({ValueType.STRING, ValueType.ARN})
    ARN = frozenset({ValueType.ARN})
    BOOL = frozenset({ValueType.BOOL})
    # AWS: keys with a time may be compared as seconds since 1970.
    NUMERIC = frozenset({ValueType.NUMBER, ValueType.DATE})
    DATE = frozenset({ValueType.DATE})


@dataclass(frozen=True)
class Operator:
    """How values are compared; `negated` for the opposite, and `words` for what a value is wanted to be."""

    family: Family
    compare: Callable[..., Comparison]
    words: str = ""
    negated: bool = False


OPERATORS = {
    "StringEquals": Operator(Family.STRING, comparisons.equal),
    "StringNotEquals": Operator(Family.STRING, comparisons.equal, negated=True),
    "StringEqualsIgnoreCase": Operator(Family.STRING, comparisons.equal_ignoring_case, "in any case "),
    "StringNotEqualsIgnoreCase": Operator(Family.STRING, comparisons.equal_ignoring_case, "in any case ", negated=True),
    "StringLike": Operator(Family.STRING, comparisons.like, "like "),
    "StringNotLike": Operator(Family.STRING, comparisons.like, "like ", negated=True),
    # AWS: ArnEquals is ArnLike.
    "ArnEquals": Operator(Family.ARN, comparisons.like_arn, "like "),
    "ArnNotEquals": Operator(Family.ARN, comparisons.like_arn, "like ", negated=True),
    "ArnLike": Operator(Family.ARN, comparisons.like_arn, "like "),
    "ArnNotLike": Operator(Family.ARN, comparisons.like_arn, "like ", negated=True),
    "Bool": Operator(Family.BOOL, comparisons.same_truth),
    "NumericEquals": Operator(Family.NUMERIC, comparisons.same_number),
    "NumericNotEquals": Operator(Family.NUMERIC, comparisons.same_number, negated=True),
    "NumericLessThan": Operator(Family.NUMERIC, comparisons.below, "below "),
    "NumericLessThanEquals": Operator(Family.NUMERIC, comparisons.at_most, "at most "),
    "NumericGreaterThan": Operator(Family.NUMERIC, comparisons.above, "above "),
    "NumericGreaterThanEquals": Operator(Family.NUMERIC, comparisons.at_least, "at least "),
    "DateEquals": Operator(Family.DATE, comparisons.same_number),
    "DateNotEquals": Operator(Family.DATE, comparisons.same_number, negated=True),
    "DateLessThan": Operator(Family.DATE, comparisons.below, "before "),
    "DateLessThanEquals": Operator(Family.DATE, comparisons.at_most, "at the latest "),
    "DateGreaterThan": Operator(Family.DATE, comparisons.above, "after "),
    "DateGreaterThanEquals": Operator(Family.DATE, comparisons.at_least, "at the earliest "),
}
# Of IAM's grammar, but nothing here has values of their kind.
_FOREIGN_OPERATORS = {"IpAddress": "addresses", "NotIpAddress": "addresses", "BinaryEquals": "binary values"}
_READERS = {ValueType.NUMBER: comparisons.read_number, ValueType.DATE: comparisons.read_date}


@dataclass(frozen=True)
class _Spoken:
    """An operator as a policy has it: ForAllValues:StringLikeIfExists."""

    operator: Operator | None
    quantifier: Quantifier | None
    if_exists: bool


class ConditionReader:
    """Reads the conditions of one document, and counts what is bounded over all of them."""

    def __init__(self) -> None:
        self._conditions = 0
        self._set_comparisons = 0
        self._patterns = 0
        self._searched = 0

    def condition(self, value: object, place: Place) -> Condition:
        """Return what a member Condition asks; raises GrammarError and LimitExceededError."""
        clauses: list[Clause] = []
        for name, keys in _members(value, place, "operators").items():
            spoken = _operator(name, place.name(name))
            at = place.member(name)
            listed = _members(keys, at, "condition keys")
            _check_distinct(listed, at)
            clauses += [self._clause(spoken, key, wanted, at) for key, wanted in listed.items()]
        return Condition(clauses)

    def _clause(self, spoken: _Spoken, said: str, value: object, parent: Place) -> Clause:
        _bound(self._conditions, 1, MAX_CONDITIONS, "conditions")
        self._conditions += 1
        key = condition_key(said)
        if key is None:
            raise GrammarError(parent.name(said), f"the condition key {said!a:.80} is unknown{_similar_key(said)}")
        _check_quantifier(spoken, key, said, parent.name(said))
        place = parent.member(said)
        if spoken.operator is None:
            return _null_clause(said, _texts(value, place, ValueType.BOOL))
        if key.type not in spoken.operator.family.value:
            raise GrammarError(
                parent.name(said),
                f"{said!a:.80} has values of the type {key.type}, which this operator does not compare; "
                f"{_fitting(key.type)} do",
            )
        # What a number is compared with has to be a number, also where the key's own values are dates.
        compared = ValueType.NUMBER if spoken.operator.family is Family.NUMERIC else key.type
        if spoken.operator.family is Family.STRING:
            compared = ValueType.STRING
        texts = _texts(value, place, compared)
        patterns = self._count_patterns(spoken.operator, texts)
        if spoken.quantifier is not None:
            _bound(
                self._set_comparisons,
                max(1, patterns),
                MAX_SET_COMPARISONS,
                "conditions and patterns for several values",
            )
            self._set_comparisons += max(1, patterns)
        return _compared_clause(spoken, spoken.operator, key, said, texts)

    def _count_patterns(self, operator: Operator, texts: Iterable[str]) -> int:
        """Count the patterns among `texts`, and return how many they are."""
        if operator.compare not in {comparisons.like, comparisons.like_arn}:
            return 0
        patterns = [text for text in texts if has_wildcard(text)]
        searched = sum(Wildcard(text).searched for text in patterns)
        _bound(self._patterns, len(patterns), MAX_PATTERNS, "patterns in conditions")
        _bound(self._searched, searched, MAX_SEARCHED_CHARACTERS, "characters between two * of patterns in conditions")
        self._patterns += len(patterns)
        self._searched += searched
        return len(patterns)


def _bound(so_far: int, more: int, limit: int, what: str) -> None:
    if so_far + more > limit:
        raise LimitExceededError(f"A policy may have at most {limit} {what}.")


def _members(value: object, place: Place, what: str) -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        raise GrammarError(place, f"must be an object of at least one of {what}")
    return value


def _check_distinct(keys: Iterable[str], place: Place) -> None:
    """Raise GrammarError for a key that is there twice: both would have to hold, so that a Deny never might."""
    seen: set[str] = set()
    for said in keys:
        if said.lower() in seen:
            raise GrammarError(
                place.name(said),
                f"the condition key {said!a:.80} is there in another case already; give all values in one list",
            )
        seen.add(said.lower())


def _operator(name: str, place: Place) -> _Spoken:
    prefix, separator, rest = name.rpartition(":")
    quantifier = next((one for one in Quantifier if one == prefix), None)
    base = rest.removesuffix(_IF_EXISTS)
    known = base == _NULL or base in OPERATORS
    if not known or (separator and quantifier is None):
        if base in _FOREIGN_OPERATORS:
            raise GrammarError(place, f"the operator {base!r} has no use here: no key has {_FOREIGN_OPERATORS[base]}")
        raise GrammarError(place, f"the operator {name!a:.80} is unknown{_similar_operator(name)}")
    if base == _NULL and name != _NULL:
        raise GrammarError(place, "Null asks whether a key is there, and goes with neither IfExists nor ForAllValues")
    return _Spoken(OPERATORS.get(base), quantifier, rest != base)


def _check_quantifier(spoken: _Spoken, key: ConditionKey, said: str, place: Place) -> None:
    if spoken.operator is None:
        return
    if key.several and spoken.quantifier is None:
        raise GrammarError(
            place, f"{said!a:.80} can have several values: put ForAllValues: or ForAnyValue: before the operator"
        )
    if spoken.quantifier is not None and not key.several:
        raise GrammarError(place, f"{said!a:.80} has one value only: leave {spoken.quantifier}: out")


def _texts(value: object, place: Place, wanted: ValueType) -> list[str]:
    """Return the values that a policy gives for a key, all of the type that is wanted."""
    if not isinstance(value, list):
        return [_text(value, place, wanted)]
    if not value:
        raise GrammarError(place, "must be a value or a list of at least one value")
    return [_text(one, place.item(index), wanted) for index, one in enumerate(value)]


def _text(value: object, place: Place, wanted: ValueType) -> str:
    """Return a value as text; JSON's numbers and truth values are as good as their texts."""
    if isinstance(value, bool) and wanted is ValueType.BOOL:
        return "true" if value else "false"
    if isinstance(value, Number) and wanted in {ValueType.NUMBER, ValueType.DATE}:
        text = value.text
    elif isinstance(value, str):
        text = value
    else:
        raise GrammarError(place, f"holds something that is not {_WORDS[wanted]}")
    if "${" in text:
        raise GrammarError(place, "policy variables are not supported")
    if (problem := _PROBLEMS[wanted](text)) is not None:
        raise GrammarError(place, f"{text!a:.80} {problem}")
    return text


_WORDS = {
    ValueType.STRING: "a string",
    ValueType.ARN: "an ARN",
    ValueType.BOOL: 'one of "true" and "false"',
    ValueType.NUMBER: "a number",
    ValueType.DATE: "a date",
}
_PROBLEMS: dict[ValueType, Callable[[str], str | None]] = {
    ValueType.STRING: lambda _: None,
    ValueType.ARN: lambda text: (
        None
        if text.startswith("arn:") and text.count(":") >= comparisons.ARN_PARTS - 1
        else "is not an ARN of six parts, each of which may be *: arn:aws:iam::*:user/*"
    ),
    ValueType.BOOL: lambda text: 'is neither "true" nor "false"' if comparisons.read_bool(text) is None else None,
    ValueType.NUMBER: lambda text: (
        "is not a decimal number of at most 20 digits on either side of the point"
        if comparisons.read_number(text) is None
        else None
    ),
    ValueType.DATE: lambda text: (
        "is neither a date as in 2026-01-31 or 2026-01-31T12:00:00Z nor seconds since 1970"
        if comparisons.read_date(text) is None
        else None
    ),
}


def _null_clause(said: str, texts: list[str]) -> Clause:
    truths = {comparisons.read_bool(text) for text in texts}
    return Clause(
        key=said.lower(),
        shown=readable(said),
        wanted="none" if truths == {True} else "one" if truths == {False} else "one or none",
        comparison=None,
        negated=False,
        quantifier=None,
        present=False in truths,
        absent=True in truths,
    )


def _compared_clause(spoken: _Spoken, operator: Operator, key: ConditionKey, said: str, texts: list[str]) -> Clause:
    reader = _READERS.get(key.type)
    quantity = {None: "", Quantifier.EVERY: "each to be ", Quantifier.ANY: "one to be "}[spoken.quantifier]
    # AWS: a key that is not there is not what is wanted, unless all of its values have to be or none may.
    absent = spoken.if_exists or spoken.quantifier is Quantifier.EVERY
    return Clause(
        key=said.lower(),
        shown=readable(said),
        wanted=f"{quantity}{'not ' * operator.negated}{operator.words}{shown(texts, ' or ')}",
        comparison=operator.compare(texts) if reader is None else operator.compare(texts, reader),
        negated=operator.negated,
        quantifier=spoken.quantifier,
        present=False,
        absent=absent or (operator.negated and spoken.quantifier is None),
    )


def _fitting(kind: ValueType) -> str:
    families = [family for family in Family if kind in family.value]
    return " and ".join(f"{family.name.title()} operators" for family in families)


def _similar_operator(name: str) -> str:
    prefix, _, rest = name.rpartition(":")
    base = rest.removesuffix(_IF_EXISTS)
    quantifiers = difflib.get_close_matches(prefix, list(Quantifier), 1) if len(prefix) <= _LONGEST_SUGGESTED else []
    before = f"{quantifiers[0]}:" if quantifiers else ""
    return _similar(base, [_NULL, *OPERATORS], lambda one: f"{before}{one}{rest.removeprefix(base)}")


def _similar_key(said: str) -> str:
    for ending in ("x", ":x", "/x"):
        if (named := condition_key(said + ending)) is not None and named.open:
            return f"; a name follows it, as in {named.name}NAME"
    return _similar(said, [key.name for key in CONDITION_KEYS], lambda one: one)


def _similar(name: str, known: list[str], whole: Callable[[str], str]) -> str:
    close = difflib.get_close_matches(name, known, 1) if len(name) <= _LONGEST_SUGGESTED else []
    return f"; did you mean {whole(close[0])!r}?" if close else ""
