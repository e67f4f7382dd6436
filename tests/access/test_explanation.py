"""Explanations: they decide as `authorize` does, and say of every statement why it holds or not."""

import dataclasses
import json
from typing import Any

import pytest

from kmsd.access.decision import Authorizer, Explanation, HostPolicy, NotAuthorizedError, Step, would_lock_out
from kmsd.access.facts import UNDETERMINED, Facts, Values
from kmsd.access.grants import Grant
from kmsd.access.policy import Policy, parse_policy
from kmsd.access.rules import Decision
from kmsd.api.policies import Outcome
from kmsd.identity.principals import Caller, Names
from tests.support.given_facts import NO_FACTS, GivenFacts

ACCOUNT = "111122223333"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
KEY = f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
GRANT_ID = "3f" * 32
APP = "kms:EncryptionContext:app"
WEB, DB = (GivenFacts({APP.lower(): [app]}, {"app": app}) for app in ("web", "db"))


def document(*statements: dict[str, Any]) -> str:
    basis = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*"}
    whole = [basis | one if "NotPrincipal" in one else {"Principal": "*"} | basis | one for one in statements]
    return json.dumps({"Version": "2012-10-17", "Statement": whole})


class Given:
    """One grant to everybody."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant

    def allowed(self, caller: Caller, action: str, facts: Facts) -> Decision | None:  # noqa: ARG002 - to everybody
        permitted = action in self.grant.actions and self.grant.unmet(action, facts.encryption_context()) is None
        return Decision(f"grant {self.grant.grant_id}") if permitted else None

    def steps(self, caller: Caller, action: str, facts: Facts) -> tuple[Step, ...]:  # noqa: ARG002 - to everybody
        return (self.grant.step(action, facts),) if action in self.grant.actions else ()


@dataclasses.dataclass
class Bench:
    """Policies to decide under."""

    names: Names
    host: str = document()
    key: str | None = None
    grant: Grant | None = None

    def explain(self, caller: Caller, facts: Facts = NO_FACTS, action: str = "kms:Decrypt") -> Explanation:
        """Explain a decision, after making sure that it is the one that is made."""
        under = Authorizer(HostPolicy({"10-test.json": self.host}, account=ACCOUNT, names=self.names))
        about: dict[str, Any] = {
            "resource": KEY if self.key else "*",
            "key_policy": parse(self.key, self.names) if self.key else None,
            "facts": facts,
            "grants": Given(self.grant) if self.grant else None,
        }
        explanation = under.explain(caller, action, **about)
        try:
            rule = under.authorize(caller, action, **about).rule
        except NotAuthorizedError as refusal:
            assert explanation.outcome is not Outcome.ALLOWED
            rule = refusal.rule
        else:
            assert explanation.outcome is Outcome.ALLOWED
        assert explanation.rule == rule
        return explanation


def parse(text: str, names: Names) -> Policy:
    return parse_policy(text, account=ACCOUNT, names=names)


def reasons(explanation: Explanation) -> list[tuple[str, bool, str]]:
    return [(f"{step.origin} {step.number}", step.holds, step.reason) for step in explanation.trace]


@pytest.mark.parametrize(
    ("principal", "holds", "reason"),
    [
        ("*", True, "the principal is *, which is everybody"),
        ({"Unix": "user:alice"}, True, "the principal is user:alice (uid 1000)"),
        ({"Unix": ["user:bob", "gid:1000"]}, True, "the principal is gid:1000"),
        ({"Unix": "user:bob"}, False, "the principal is not user:bob"),
        ({"Unix": [f"uid:{n}" for n in range(5)]}, False, "the principal is none of uid:0, uid:1, uid:2 and 2 more"),
        ({"Unix": "unit:a.service"}, False, "unit cannot be determined, which does not count for an Allow"),
        ({"Unix": "user-unit:1000/a.service"}, False, "the principal is not user-unit:1000/a.service"),
    ],
)
def test_a_step_says_whether_the_caller_is_meant(
    names: Names, alice: Caller, principal: object, holds: bool, reason: str
) -> None:
    """By which of the principals, or by none."""
    caller = dataclasses.replace(alice, undetermined=frozenset({"unit"}))
    explanation = Bench(names, key=document({"Principal": principal})).explain(caller)

    assert reasons(explanation) == [("key policy 1", holds, reason)]
    assert explanation.outcome is (Outcome.ALLOWED if holds else Outcome.IMPLICIT_DENY)


@pytest.mark.parametrize(
    ("members", "holds", "reason"),
    [
        ({"NotPrincipal": {"Unix": "user:alice"}}, False, "the principal is user:alice (uid 1000), who is excepted"),
        ({"NotPrincipal": {"Unix": "user:bob"}}, True, "the principal is not user:bob"),
        ({"NotPrincipal": {"Unix": "exe:/bin/a"}}, True, "executable cannot be determined, which counts for a Deny"),
        ({"Principal": {"Unix": "exe:/bin/a"}}, True, "executable cannot be determined, which counts for a Deny"),
        ({"Principal": {"Unix": "unit:a.service"}}, False, "the principal is not unit:a.service"),
        (
            {"Condition": {"StringEquals": {APP: "db"}}},
            False,
            "the principal is *, which is everybody; kms:EncryptionContext:app is 'web', wanted 'db'",
        ),
        (
            {"Condition": {"StringEquals": {APP: "web"}}},
            True,
            "the principal is *, which is everybody; its conditions are met",
        ),
        (
            {"Condition": {"StringEquals": {"kmsd:SystemdUnit": "a.service"}}},
            True,
            "the principal is *, which is everybody; kmsd:SystemdUnit cannot be determined, which counts for a Deny",
        ),
    ],
)
def test_a_deny_holds_where_it_cannot_be_told(
    names: Names, alice: Caller, members: dict[str, Any], holds: bool, reason: str
) -> None:
    """And an Allow does not, as the reason says."""
    caller = dataclasses.replace(alice, undetermined=frozenset({"exe"}))
    facts = GivenFacts({APP.lower(): ["web"], "kmsd:systemdunit": UNDETERMINED})
    bench = Bench(names, key=document({}, members | {"Effect": "Deny", "Sid": "not so"}))
    explanation = bench.explain(caller, facts)

    assert explanation.outcome is (Outcome.EXPLICIT_DENY if holds else Outcome.ALLOWED)
    concerns = holds or "Condition" in members
    assert explanation.trace[0] == Step("key policy", 2, "not so", "Deny", holds, reason, concerns)
    if holds:
        assert explanation.rule == 'key policy: "not so" (statement 2)'


def test_a_suspended_principal_says_so(names: Names, alice: Caller) -> None:
    """Whom it meant cannot be told any more."""
    policy = parse_policy(
        document({"Principal": {"Unix": "user:alice"}}), account=ACCOUNT, names=names, resolved={"user:alice": 5}
    )
    under = Authorizer(HostPolicy({}, account=ACCOUNT, names=names))
    explanation = under.explain(alice, "kms:Decrypt", resource=KEY, key_policy=policy, facts=NO_FACTS)

    assert reasons(explanation)[0][2] == (
        "user:alice is not whom it was when the policy was written, which does not count for an Allow"
    )


def test_the_trace_has_what_is_about_the_action_and_the_resource_only(names: Names, alice: Caller) -> None:
    """Also by what NotAction and NotResource leave."""
    key = document(
        {"Action": "kms:Encrypt"},
        {"Action": "kms:De*"},
        {"Resource": f"{KEY}0"},
        {"Action": ["kms:*"], "Resource": KEY},
    ).replace('"Action": ["kms:*"]', '"NotAction": ["kms:Encrypt"]')
    explanation = Bench(names, key=key).explain(alice)

    assert [step.number for step in explanation.trace] == [2, 4]


def test_a_grant_is_asked_after_the_policies(names: Names, alice: Caller) -> None:
    """Where the key policy does not allow, and nothing denies."""
    grant = Grant(GRANT_ID, frozenset({"kms:Decrypt"}), subset={"app": "db"})
    bench = Bench(names, key=document({"Principal": {"Unix": "user:bob"}}), grant=grant)

    assert bench.explain(alice, DB).rule == f"grant {GRANT_ID}"
    assert reasons(bench.explain(alice, WEB))[1] == (
        f"grant {GRANT_ID} 0",
        False,
        "the encryption context has not what the grant wants for 'app'",
    )
    bench.host = document({"Effect": "Deny"})
    assert bench.explain(alice, DB).rule == "host policy 10-test.json: statement 1"


def test_grants_are_not_asked_about_what_they_cannot_permit(names: Names, alice: Caller) -> None:
    """Managing a key's policy is no operation of grants."""
    bench = Bench(names, key=document({"Action": "kms:Encrypt"}))
    bench.grant = Grant(GRANT_ID, frozenset({"kms:PutKeyPolicy"}))

    assert bench.explain(alice, action="kms:PutKeyPolicy") == Explanation(
        Outcome.IMPLICIT_DENY, "no statement allows it", ()
    )


def test_the_host_policy_counts_where_the_key_lets_the_root_in_for_this_request(names: Names, alice: Caller) -> None:
    """A condition on the delegation is asked of the request like any other."""
    delegating = {"Principal": {"AWS": ROOT}, "Condition": {"StringEquals": {APP: "db"}}}
    bench = Bench(names, host=document({"Principal": {"Unix": "user:alice"}}), key=document(delegating))
    refused = bench.explain(alice, WEB)

    assert bench.explain(alice, DB).rule == "host policy 10-test.json: statement 1"
    assert refused.outcome is Outcome.IMPLICIT_DENY
    assert reasons(refused)[1] == (
        "host policy 10-test.json 1",
        False,
        "the principal is user:alice (uid 1000); but the key policy does not let the account's root in for this",
    )


def test_a_deny_of_the_root_ends_delegation_where_it_may_be_met(names: Names, alice: Caller) -> None:
    """Where it cannot be told, it does."""
    host = document({"Principal": {"Unix": "user:alice"}})
    deny = {"Effect": "Deny", "Principal": {"AWS": ROOT}, "Condition": {"StringEquals": {APP: "db"}}}
    bench = Bench(names, host=host, key=document({"Principal": {"AWS": ROOT}}, deny))

    assert bench.explain(alice, WEB).outcome is Outcome.ALLOWED
    assert bench.explain(alice, DB).outcome is Outcome.IMPLICIT_DENY
    assert bench.explain(alice, GivenFacts({APP.lower(): UNDETERMINED})).outcome is Outcome.IMPLICIT_DENY


def test_the_host_policy_alone_decides_about_what_is_no_key(names: Names, alice: Caller) -> None:
    """With conditions too."""
    bench = Bench(names, host=document({"Condition": {"StringEquals": {APP: "db"}}}))

    assert bench.explain(alice, DB).outcome is Outcome.ALLOWED
    assert bench.explain(alice, WEB).outcome is Outcome.IMPLICIT_DENY


@pytest.mark.parametrize(
    ("members", "locked_out"),
    [
        ({"Condition": {"StringEquals": {APP: "db"}}}, False),
        ({"Condition": {"StringEquals": {APP: "web"}}}, True),
        ({"Condition": {"StringEquals": {"kmsd:SystemdUnit": "a.service"}}}, True),
        ({"Principal": {"AWS": ROOT}, "Condition": {"StringEquals": {APP: "db"}}}, False),
        ({"Principal": {"AWS": ROOT}, "Condition": {"StringEquals": {APP: "web"}}}, True),
    ],
)
def test_whether_a_policy_locks_out_is_asked_of_the_request_at_hand(
    names: Names, alice: Caller, members: dict[str, Any], locked_out: bool
) -> None:
    """What cannot be told does not let anybody change the policy later."""
    facts = GivenFacts({APP.lower(): ["db"], "kmsd:systemdunit": UNDETERMINED})
    policy = parse(document(members | {"Action": "kms:PutKeyPolicy"}), names)
    denying = parse(document({"Action": "*"}, members | {"Effect": "Deny", "Action": "kms:Put*"}), names)

    assert would_lock_out(policy, alice, facts=facts) is locked_out
    if "Principal" not in members:
        undetermined = "kmsd:SystemdUnit" in members["Condition"]["StringEquals"]
        assert would_lock_out(denying, alice, facts=facts) is (undetermined or not locked_out)


class Untouched:
    """A request of which nothing may be asked."""

    def values(self, key: str) -> Values:
        """Fail."""
        raise AssertionError(key)

    def encryption_context(self) -> dict[str, str] | None:
        """Fail."""
        raise AssertionError


def test_a_request_is_asked_nothing_that_no_statement_about_the_caller_asks(names: Names, alice: Caller) -> None:
    """Conditions of statements about others, or about other actions, cost nothing."""
    condition = {"Condition": {"StringEquals": {APP: "db"}}}
    key = document(
        {"Effect": "Deny", "Principal": {"Unix": "user:bob"}} | condition,
        {"Effect": "Deny", "Action": "kms:Encrypt"} | condition,
        {},
        condition,
    )
    under = Authorizer(HostPolicy({}, account=ACCOUNT, names=names))
    grants = Given(Grant(GRANT_ID, frozenset({"kms:Decrypt"}), subset={"app": "db"}))

    decision = under.authorize(
        alice, "kms:Decrypt", resource=KEY, key_policy=parse(key, names), facts=Untouched(), grants=grants
    )

    assert decision.rule == "key policy: statement 3"
