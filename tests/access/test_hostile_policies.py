"""What a policy that was written to be slow can make a decision cost: counted, not timed."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from kmsd.access.condition_grammar import MAX_CONDITIONS, MAX_PATTERNS, MAX_SET_COMPARISONS
from kmsd.access.conditions import MAX_CHARACTERS, MAX_VALUES
from kmsd.access.decision import Authorizer, HostPolicy, NotAuthorizedError
from kmsd.access.facts import Values
from kmsd.access.policy import parse_policy
from tests.support.given_requests import GivenNames, made_caller

ACCOUNT = "111122223333"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
KEY = f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
NAMES = GivenNames({"alice": 1000}, {"backup": 34})
MANY_GROUPS = made_caller({"uid": 1000, "groups": range(5000, 70_000)})


class CountedText(str):
    """A text that counts how often something is looked for in it."""

    __slots__ = ("counts",)
    counts: Counter[str]

    def __new__(cls, text: str, counts: Counter[str]) -> Self:
        made = super().__new__(cls, text)
        made.counts = counts
        return made

    def find(self, *arguments: Any) -> int:
        self.counts["searches"] += 1
        return super().find(*arguments)

    def startswith(self, *arguments: Any) -> bool:
        self.counts["comparisons"] += 1
        return super().startswith(*arguments)

    def lower(self) -> str:
        self.counts["foldings"] += 1
        return super().lower()


@dataclass
class CountedFacts:
    """A request that has as many and as long values for every key as it can."""

    given: Values
    counts: Counter[str] = field(default_factory=Counter)

    def values(self, key: str) -> Values:
        self.counts["facts"] += bool(key)
        if isinstance(self.given, list):
            return [CountedText(value, self.counts) for value in self.given]
        return self.given

    def encryption_context(self) -> dict[str, str] | None:
        return None


def decided(statements: list[dict[str, Any]], given: Values) -> Counter[str]:
    """Decide a request under a key policy that was written by somebody hostile, and return what that took."""
    text = json.dumps({"Version": "2012-10-17", "Statement": statements}, separators=(",", ":"))
    policy = parse_policy(text, account=ACCOUNT, names=NAMES)
    host = HostPolicy({"a.json": '{"Version": "2012-10-17", "Statement": []}'}, account=ACCOUNT, names=NAMES)
    facts = CountedFacts(given)
    with pytest.raises(NotAuthorizedError):
        Authorizer(host).authorize(MANY_GROUPS, "kms:Decrypt", resource=KEY, key_policy=policy, facts=facts)
    return facts.counts


def conditional(effect: str, principal: object, operator: str, key: str, wanted: object) -> dict[str, Any]:
    asked = {"Effect": effect, "Principal": principal, "Action": "*", "Resource": "*"}
    return asked | {"Condition": {operator: {key: wanted}}}


def test_a_fact_is_asked_for_once_for_each_condition() -> None:
    """Twice where the statement also decides whether the host policy counts."""
    key = "kms:EncryptionContext:app"
    plain = [conditional("Allow", "*", "StringEquals", key, f"{number}") for number in range(MAX_CONDITIONS)]
    rooted = [conditional("Deny", {"AWS": ROOT, "Unix": "*"}, "StringEquals", key, "b")] * (MAX_CONDITIONS // 2)
    rooted += [conditional("Allow", {"AWS": ROOT, "Unix": "*"}, "StringEquals", key, "b")] * (MAX_CONDITIONS // 2)

    assert decided(plain, ["a"])["facts"] == MAX_CONDITIONS
    assert decided(rooted, ["a"])["facts"] <= 2 * MAX_CONDITIONS


def test_a_long_value_is_read_without_regard_to_case_once_for_each_condition() -> None:
    """However many values the policy compares it with."""
    wanted = [f"{number}" for number in range(10)]
    statements = [
        conditional("Allow", "*", "StringEqualsIgnoreCase", "kms:EncryptionContext:app", wanted)
        for _ in range(MAX_CONDITIONS)
    ]

    assert decided(statements, ["A" * MAX_CHARACTERS])["foldings"] == MAX_CONDITIONS


def test_a_value_is_searched_once_for_what_stands_between_two_wildcards() -> None:
    """A pattern that almost fits everywhere goes over the value as often as it has parts, and never back."""
    patterns = ["*a*a*b*", *(f"*{chr(99 + number)}*" for number in range(20))]
    counts = decided(
        [conditional("Allow", "*", "StringLike", "kms:EncryptionContext:app", patterns)], ["a" * MAX_CHARACTERS]
    )

    assert counts["searches"] <= 3 + 20
    assert counts["comparisons"] <= 2 * MAX_PATTERNS


def test_many_values_are_compared_with_few_patterns() -> None:
    """The product of both is what ForAnyValue costs."""
    patterns = [f"x{number}*" for number in range(MAX_SET_COMPARISONS)]
    statements = [conditional("Allow", "*", "ForAnyValue:StringLike", "aws:TagKeys", patterns)]

    assert 0 < decided(statements, ["a" * 16] * MAX_VALUES)["comparisons"] <= MAX_SET_COMPARISONS * MAX_VALUES * 2
    assert decided(statements, ["a"] * (MAX_VALUES + 1))["comparisons"] == 0


def test_statements_about_others_ask_for_nothing() -> None:
    """As many as a document can hold of them."""
    statements = [
        conditional("Deny", {"Unix": f"gid:{number}"}, "Null", "aws:TagKeys", "true")
        for number in range(MAX_CONDITIONS)
    ]

    assert decided(statements, ["a"])["facts"] == 0
