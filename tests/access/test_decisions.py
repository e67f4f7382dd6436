"""Decisions as data: what AWS's documents say of policies, and what ours say beside them.

Each file of `decisions/` names the documents that it comes from. A scenario is a key policy (null: the request is about
no key), a host policy and grants, with requests and how they are decided; a table is an operator with values that a
request may have, each tried in an Allow and in a Deny. Values are lists, null where the request has no such key, and
"undetermined".
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kmsd.access.decision import DEFAULT_DENY, Authorizer, HostPolicy, NotAuthorizedError
from kmsd.access.facts import UNDETERMINED, Values
from kmsd.access.policy import Policy, parse_policy
from kmsd.identity.principals import Caller
from tests.support.given_facts import GivenFacts
from tests.support.given_requests import GivenGrants, GivenNames, grant_id, made_caller

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
HOST_POLICY = "10-test.json"
NAMES: dict[str, dict[str, int]] = {
    "users": {"root": 0, "www-data": 33, "alice": 1000, "bob": 1001, "carol": 1002},
    "groups": {"backup": 34, "kms-users": 500},
}
CALLERS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("callers.json").read_text("utf-8"))
FILES = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(Path(__file__).parent.glob("decisions/*"))}

Statement = dict[str, Any]


class Row(NamedTuple):
    """A decision: a scenario, and a request with its outcome."""

    scenario: dict[str, Any]
    decision: dict[str, Any]


def rows() -> Iterator[Any]:
    for stem, file in FILES.items():
        for scenario in file.get("scenarios", []):
            for number, decision in enumerate(scenario["decisions"], 1):
                name = f"{stem}: {scenario['name']} ({number}: {decision['caller']}, {decision['action']})"
                yield pytest.param(Row(scenario, decision), id=name)


def tried_in_both(table: dict[str, Any]) -> Iterator[Row]:
    """Yield a table's cases as conditions of an Allow, and of a Deny beside an Allow for all."""
    everything = {"Principal": "*", "Action": "kms:*", "Resource": "*"}
    conditional = everything | {"Condition": {table["operator"]: {table["key"]: table["wanted"]}}}
    allowing = {"name": table["name"], "key_policy": [{"Effect": "Allow", **conditional}]}
    denying = {
        "name": table["name"],
        "key_policy": [{"Effect": "Allow", **everything}, {"Effect": "Deny", **conditional}],
    }
    for values, holds in table["cases"]:
        request = {"caller": "alice", "action": "kms:Decrypt", "facts": {table["key"].lower(): values}}
        yield Row(allowing, request | (_allowed(1) if holds is True else {"outcome": "implicitDeny"}))
        yield Row(denying, request | (_allowed(1) if holds is False else _denied(2)))


def _allowed(number: int) -> dict[str, str]:
    return {"outcome": "allowed", "rule": f"key policy: statement {number}"}


def _denied(number: int) -> dict[str, str]:
    return {"outcome": "explicitDeny", "rule": f"key policy: statement {number}"}


def document(statements: list[Statement]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


@functools.cache
def compiled(scenario: str) -> tuple[Authorizer, Policy | None]:
    """Return what decides a scenario's requests, all of them, as one daemon would; it is given as JSON."""
    read = json.loads(scenario)
    return authorizer(read), key_policy(read)


def key_policy(scenario: dict[str, Any]) -> Policy | None:
    statements = scenario.get("key_policy")
    if statements is None:
        return None
    names = GivenNames(**scenario.get("names", NAMES))
    return parse_policy(document(statements), account=ACCOUNT, names=names, resolved=scenario.get("resolved"))


def authorizer(scenario: dict[str, Any]) -> Authorizer:
    statements = scenario.get("host_policy", [])
    return Authorizer(HostPolicy({HOST_POLICY: document(statements)}, account=ACCOUNT, names=GivenNames(**NAMES)))


def facts_of(decision: dict[str, Any]) -> GivenFacts:
    context: dict[str, str] | None = decision.get("context")
    given: dict[str, Values] = {f"kms:encryptioncontext:{k.lower()}": [v] for k, v in (context or {}).items()}
    if context:
        given["kms:encryptioncontextkeys"] = list(context)
    said = decision.get("facts", {})
    given |= {key: UNDETERMINED if values == "undetermined" else values for key, values in said.items()}
    return GivenFacts(given, context)


def check(row: Row) -> None:
    scenario, decision = row
    caller: Caller = made_caller(CALLERS[decision["caller"]])
    under, policy = compiled(json.dumps(scenario))
    facts = facts_of(decision)
    request = (caller, decision["action"])
    about = {"resource": decision.get("resource", KEY), "key_policy": policy, "facts": facts}
    grants = GivenGrants.of(scenario["grants"]) if "grants" in scenario else None

    explanation = under.explain(*request, **about, grants=grants)
    try:
        outcome, rule = "allowed", under.authorize(*request, **about, grants=grants).rule
    except NotAuthorizedError as refusal:
        outcome, rule = "implicitDeny" if refusal.rule == DEFAULT_DENY else "explicitDeny", refusal.rule

    assert (outcome, rule) == (decision["outcome"], _rule(decision.get("rule", DEFAULT_DENY)))
    assert (explanation.outcome, explanation.rule) == (outcome, rule)
    holding = [step for step in explanation.trace if step.holds]
    if outcome == "implicitDeny":
        assert holding == []
        return
    deciding = [step for step in holding if _label(step.origin, step.number, step.sid) == rule]
    assert [step.effect for step in deciding] == ["Allow" if outcome == "allowed" else "Deny"]
    assert outcome != "allowed" or {step.effect for step in holding} == {"Allow"}


def _rule(said: str) -> str:
    return f"grant {grant_id(int(said.removeprefix('grant ')))}" if said.startswith("grant ") else said


def _label(origin: str, number: int, sid: str) -> str:
    if origin.startswith("grant "):
        return origin
    return f'{origin}: "{sid}" (statement {number})' if sid else f"{origin}: statement {number}"


@pytest.mark.parametrize("row", list(rows()))
def test_a_request_is_decided_as_the_documents_say(row: Row) -> None:
    """By the rule they say, and the explanation agrees and has it as a step that holds."""
    check(row)


@pytest.mark.parametrize("table", FILES["operators"]["tables"], ids=lambda table: table["name"])
def test_an_operator_compares_as_the_documents_say(table: dict[str, Any]) -> None:
    """An Allow holds where the condition does for certain, a Deny also where that cannot be told."""
    for row in tried_in_both(table):
        check(row)


@pytest.mark.parametrize("file", list(FILES.values()), ids=list(FILES))
def test_every_decision_names_the_document_it_comes_from(file: dict[str, Any]) -> None:
    """With its title and address."""
    for scenario in [*file.get("scenarios", []), *file.get("tables", [])]:
        cited = file["documents"][scenario["document"]]
        assert cited["title"]
        assert cited["url"].startswith("https://docs.aws.amazon.com/")
