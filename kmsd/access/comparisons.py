"""How conditions compare: the operators of IAM's grammar, and the values that they compare.

A comparison is made once, of all values that a policy gives for a key, of which one has to fit. Asked about a value of
a request it answers True or False, or None if that is not of the kind that the operator compares.
"""

from __future__ import annotations

import datetime as dt
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import TypeAlias

from kmsd.access.wildcards import Wildcard, has_wildcard

# Whether a value of a request is as wanted; None: that cannot be told.
Comparison: TypeAlias = Callable[[str], bool | None]
# What numbers and dates are compared as: exactly.
Quantity: TypeAlias = Decimal | int
# None where a text is neither.
Reader: TypeAlias = Callable[[str], Quantity | None]

# More than uids, sizes, days and times in seconds have. Bounded so that comparing stays cheap.
_MAX_DIGITS = 20
_NUMBER = re.compile(rf"-?[0-9]{{1,{_MAX_DIGITS}}}(?:\.[0-9]{{1,{_MAX_DIGITS}}})?")
# RFC 3339, and of ISO 8601 also the date alone; a time without a zone would be another one on another host.
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2}))?",
)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
# arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE; only the resource may have colons.
ARN_PARTS = 6


def read_number(text: str) -> Quantity | None:
    """Return the decimal number that `text` is."""
    # Groups are many, and as integers take half the time.
    if len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def read_date(text: str) -> Quantity | None:
    """Return the seconds since 1970 UTC of a date as RFC 3339 has it, or that `text` is itself."""
    if not _DATE.fullmatch(text):
        return read_number(text)
    try:
        read = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = read if read.tzinfo is not None else read.replace(tzinfo=dt.UTC)
    return Decimal((moment - _EPOCH) // _MICROSECOND) / 1_000_000


def read_bool(text: str) -> bool | None:
    """Return the truth value that `text` is, in any case, as AWS reads it."""
    return {"true": True, "false": False}.get(text.lower())


def equal(wanted: Iterable[str]) -> Comparison:
    """Return the comparison with one of some texts."""
    return frozenset(wanted).__contains__


def equal_ignoring_case(wanted: Iterable[str]) -> Comparison:
    """Return the comparison with one of some texts, without regard to case."""
    folded = frozenset(one.lower() for one in wanted)
    return lambda value: value.lower() in folded


def like(wanted: Iterable[str]) -> Comparison:
    """Return the comparison with one of some patterns."""
    distinct = frozenset(wanted)
    literals = frozenset(one for one in distinct if not has_wildcard(one))
    patterns = tuple(Wildcard(one) for one in distinct - literals)
    return lambda value: value in literals or any(one.matches(value) for one in patterns)


def like_arn(wanted: Iterable[str]) -> Comparison:
    """Return the comparison with one of some ARNs, whose parts may be patterns that end where the part does."""
    distinct = frozenset(wanted)
    literals = frozenset(one for one in distinct if not has_wildcard(one))
    patterns = tuple(arn_patterns(one) for one in distinct - literals)

    def compare(value: str) -> bool:
        if value in literals:
            return True
        parts = value.split(":", ARN_PARTS - 1)
        return len(parts) == ARN_PARTS and any(
            all(pattern.matches(part) for pattern, part in zip(one, parts, strict=True)) for one in patterns
        )

    return compare


def arn_patterns(text: str) -> Sequence[Wildcard]:
    """Return the patterns of the parts of an ARN."""
    return [Wildcard(part) for part in text.split(":", ARN_PARTS - 1)]


def same_truth(wanted: Iterable[str]) -> Comparison:
    """Return the comparison with one of some truth values."""
    truths = frozenset(read_bool(one) for one in wanted)

    def compare(value: str) -> bool | None:
        truth = read_bool(value)
        return None if truth is None else truth in truths

    return compare


def same_number(wanted: Iterable[str], read: Reader) -> Comparison:
    """Return the comparison with one of some numbers or dates."""
    numbers = frozenset(read(one) for one in wanted)

    def compare(value: str) -> bool | None:
        number = read(value)
        return None if number is None else number in numbers

    return compare


def below(wanted: Iterable[str], read: Reader) -> Comparison:
    """Return whether a number or date is below one of some: below the highest."""
    return _ordered(operator.lt, max(_numbers(wanted, read)), read)


def at_most(wanted: Iterable[str], read: Reader) -> Comparison:
    """Return whether a number or date is one of some or below: at most the highest."""
    return _ordered(operator.le, max(_numbers(wanted, read)), read)


def above(wanted: Iterable[str], read: Reader) -> Comparison:
    """Return whether a number or date is above one of some: above the lowest."""
    return _ordered(operator.gt, min(_numbers(wanted, read)), read)


def at_least(wanted: Iterable[str], read: Reader) -> Comparison:
    """Return whether a number or date is one of some or above: at least the lowest."""
    return _ordered(operator.ge, min(_numbers(wanted, read)), read)


def _numbers(wanted: Iterable[str], read: Reader) -> list[Quantity]:
    return [number for number in map(read, wanted) if number is not None]


def _ordered(compared: Callable[[Quantity, Quantity], bool], limit: Quantity, read: Reader) -> Comparison:
    def compare(value: str) -> bool | None:
        number = read(value)
        return None if number is None else compared(number, limit)

    return compare
