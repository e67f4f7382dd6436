"""Random policies and requests, decided by the daemon's code and by the oracle, which are to agree."""

import functools
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from kmsd.access.decision import Authorizer, Explanation, HostPolicy, NotAuthorizedError, would_lock_out
from kmsd.access.facts import UNDETERMINED
from kmsd.access.policy import Policy, parse_policy
from kmsd.identity.principals import Caller
from tests.access.oracle import counts, decide, delegates
from tests.access.random_cases import ACCOUNT, NOW, RESOLVED, random_case, random_statement
from tests.support.given_facts import GivenFacts
from tests.support.given_requests import GivenGrants, GivenNames, made_caller

CASES = 20_000
# Each property decides a case twice or more.
PROPERTY_CASES = 1_000
NAMES = GivenNames(**NOW)

Case = dict[str, Any]


def document(statements: Iterable[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


@functools.cache
def authorizer(host_policy: str) -> Authorizer:
    return Authorizer(HostPolicy({"10-test.json": host_policy}, account=ACCOUNT, names=NAMES))


def key_policy(statements: list[dict[str, Any]]) -> Policy:
    return parse_policy(document(statements), account=ACCOUNT, names=NAMES, resolved=RESOLVED)


def asked(case: Case) -> tuple[Caller, GivenFacts]:
    """Return who asks, and what can be asked of the request."""
    facts = {key: UNDETERMINED if one == "undetermined" else one for key, one in case["facts"].items()}
    groups = case["caller"]["gids"]
    return made_caller({**case["caller"], "gid": groups[0], "groups": groups}), GivenFacts(facts, case["context"])


def explained(case: Case) -> Explanation:
    """Return how the daemon's code decides `case`."""
    policy = None if case["key_policy"] is None else key_policy(case["key_policy"])
    caller, facts = asked(case)
    under, about = authorizer(document(case["host"])), (caller, case["action"])
    request = {"resource": case["resource"], "key_policy": policy, "facts": facts}
    grants = GivenGrants.of(case["grants"])
    explanation = under.explain(*about, **request, grants=grants)
    try:
        found = ("allowed", under.authorize(*about, **request, grants=grants).rule)
    except NotAuthorizedError as refusal:
        found = (explanation.outcome if explanation.outcome != "allowed" else "refused", refusal.rule)
    assert (explanation.outcome, explanation.rule) == found, json.dumps(case)
    return explanation


def allowed(case: Case) -> bool:
    return explained(case).outcome == "allowed"


def decided(case: Case) -> tuple[str, str]:
    """Return outcome and kind of what decided, as the oracle tells them."""
    explanation = explained(case)
    kinds = [kind for kind in ("key policy", "grant", "host policy") if explanation.rule.startswith(kind)]
    return explanation.outcome, kinds[0] if kinds else ""


@pytest.mark.parametrize("part", range(4))
def test_the_oracle_agrees(part: int) -> None:
    """On every outcome, and on which document or grant decides."""
    seen = set()
    for number in range(part * CASES // 4, (part + 1) * CASES // 4):
        case = random_case(random.Random(number))
        expected = decide(case)
        assert decided(case) == expected, f"case {number}: the oracle says {expected} of {json.dumps(case)}"
        seen.add(expected)
    # The vocabularies are small enough that every kind of decision comes up.
    denied = {("explicitDeny", "key policy"), ("explicitDeny", "host policy"), ("implicitDeny", "")}
    assert seen == denied | {("allowed", "key policy"), ("allowed", "grant"), ("allowed", "host policy")}


def property_cases() -> Iterable[tuple[random.Random, Case]]:
    """Yield cases that the oracle has not seen, each with a source for what is done to it."""
    for number in range(CASES, CASES + PROPERTY_CASES):
        source = random.Random(number)
        yield source, random_case(source)


def with_statement(source: random.Random, case: Case, effect: str) -> Case:
    """Return `case` with one more statement somewhere, in either policy."""
    where = "host" if case["key_policy"] is None else source.choice(("key_policy", "host"))
    listed = list(case[where])
    listed.insert(source.randint(0, len(listed)), random_statement(source, where.removesuffix("_policy"), effect))
    return case | {where: listed}


def test_an_added_allow_never_removes_access() -> None:
    """Whatever it says, and wherever it stands."""
    for source, case in property_cases():
        more = with_statement(source, case, "Allow")
        assert allowed(more) >= allowed(case), json.dumps(more)


def test_an_added_deny_never_adds_access() -> None:
    """Not even one that ends delegation, or that has exceptions."""
    for source, case in property_cases():
        more = with_statement(source, case, "Deny")
        assert allowed(more) <= allowed(case), json.dumps(more)


def test_what_cannot_be_found_out_never_gives_access() -> None:
    """Neither an attribute of the caller nor a fact of the request."""
    for source, case in property_cases():
        caller, facts = case["caller"], case["facts"]
        lost = source.choice(("unit", "user_unit", "exe", "administrator", *facts))
        if lost in facts:
            less = case | {"facts": facts | {lost: "undetermined"}}
        else:
            unknown = {lost: False if lost == "administrator" else None}
            less = case | {"caller": caller | unknown | {"undetermined": [*caller["undetermined"], lost]}}
        assert allowed(less) <= allowed(case), f"without {lost}: {json.dumps(case)}"


def test_the_order_of_statements_does_not_matter() -> None:
    """Nor that of grants: outcome and kind of what decides stay."""
    for source, case in property_cases():
        parts = {name: case[name] for name in ("key_policy", "host", "grants") if case[name]}
        mixed = case | {name: source.sample(listed, len(listed)) for name, listed in parts.items()}
        assert decided(mixed) == decided(case), json.dumps(mixed)


def test_an_attribute_that_is_lost_is_lost_to_every_allow_that_needs_it() -> None:
    """An Allow for a unit alone is worth nothing to a caller whose unit is not known, and a Deny for it holds."""
    for _, case in property_cases():
        unit = {"Principal": {"Unix": "unit:a.service"}, "Action": "kms:*", "Resource": "*"}
        everybody = unit | {"Effect": "Allow", "Principal": "*"}
        lost = {"caller": case["caller"] | {"unit": None, "undetermined": ["unit"]}, "host": [], "grants": []}
        assert not allowed(case | lost | {"key_policy": [unit | {"Effect": "Allow"}]})
        assert not allowed(case | lost | {"key_policy": [everybody, unit | {"Effect": "Deny"}]})


def test_every_step_of_an_explanation_holds_when_its_statement_counts() -> None:
    """An Allow of the host policy only where the key's policy delegates; and no statement that counts is left out."""
    for _, case in property_cases():
        origins = {"key policy": case["key_policy"] or [], "host policy 10-test.json": case["host"]}
        delegated = case["key_policy"] is None or delegates(case)
        expected = {
            (origin, number)
            for origin, listed in origins.items()
            for number, one in enumerate(listed, 1)
            if counts(one, case) and (origin == "key policy" or one["Effect"] == "Deny" or delegated)
        }
        steps = [step for step in explained(case).trace if step.number]
        assert {(step.origin, step.number) for step in steps if step.holds} == expected, json.dumps(case)
        assert all(step.reason for step in steps)


def test_a_policy_locks_out_whom_it_lets_neither_change_nor_delegate_it() -> None:
    """Under the most generous host policy, and without grants, which cannot permit it."""
    everything = {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}
    for _, case in property_cases():
        if case["key_policy"] is None:
            continue
        changing = case | {"action": "kms:PutKeyPolicy", "host": [everything], "grants": []}
        caller, facts = asked(changing)
        found = would_lock_out(key_policy(changing["key_policy"]), caller, facts=facts, resource=case["resource"])
        assert found is (decide(changing)[0] != "allowed"), json.dumps(changing)
