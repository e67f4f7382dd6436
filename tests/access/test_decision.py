"""Decisions: the evaluation of AWS, against an interpreter that reads statements naively."""

import json
import random
import re
import timeit
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access.decision import DEFAULT_DENY, Authorizer, HostPolicy, NotAuthorizedError, would_lock_out
from kmsd.access.policy import Policy, default_key_policy, parse_policy
from kmsd.api.errors import AccessDeniedError
from kmsd.identity.principals import Caller, Names
from tests.support.given_facts import NO_FACTS

ACCOUNT = "111122223333"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
KEY = f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER_KEY = f"arn:aws:kms:local:{ACCOUNT}:key/ffffffff-12ab-34cd-56ef-1234567890ab"
ALIAS = f"arn:aws:kms:local:{ACCOUNT}:alias/backup"

Statement = dict[str, Any]


def statement(effect: str, principal: object, action: object = "*", resource: object = "*") -> Statement:
    return {"Effect": effect, "Principal": principal, "Action": action, "Resource": resource}


def document(statements: list[Statement]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def person(uid: int, *groups: int, administrator: bool = False) -> Caller:
    return Caller(
        uid=uid,
        gid=uid,
        groups=frozenset(groups),
        pid=1,
        user=None,
        unit=None,
        exe=None,
        administrator=administrator,
    )


ALICE, BOB, MEMBER = person(1000), person(1001), person(1002, 34, 500)
ADMINISTRATOR = person(0, administrator=True)


@pytest.fixture(scope="session")
def key_policy(names: Names) -> Callable[[list[Statement]], Policy]:
    return lambda statements: parse_policy(document(statements), account=ACCOUNT, names=names)


@pytest.fixture(scope="session")
def authorizer(names: Names) -> Callable[[list[Statement]], Authorizer]:
    return lambda statements: Authorizer(
        HostPolicy({"10-test.json": document(statements)}, account=ACCOUNT, names=names)
    )


KeyPolicies = Callable[[list[Statement]], Policy]
Authorizers = Callable[[list[Statement]], Authorizer]


def decide(
    under: Authorizer, caller: Caller, key_policy: Policy | None, action: str = "kms:Decrypt", resource: str = KEY
) -> bool:
    try:
        under.authorize(caller, action, resource=resource, key_policy=key_policy, facts=NO_FACTS)
    except NotAuthorizedError:
        return False
    return True


def test_nothing_is_allowed_by_default(authorizer: Authorizers, key_policy: KeyPolicies) -> None:
    """A policy that says nothing about a caller refuses it, whoever it is."""
    about_others = key_policy([statement("Allow", {"Unix": "uid:5"})])

    assert not decide(authorizer([]), ALICE, about_others)
    assert not decide(authorizer([]), ADMINISTRATOR, about_others)
    assert not decide(authorizer([]), ADMINISTRATOR, None, "kms:CreateKey", "*")


def test_the_key_policy_alone_can_allow(authorizer: Authorizers, key_policy: KeyPolicies) -> None:
    """The host policy need not say anything."""
    assert decide(authorizer([]), ALICE, key_policy([statement("Allow", {"Unix": "uid:1000"})]))


@pytest.mark.parametrize("principal", ["uid:1002", "gid:1002", "gid:34", "group:kms-users"])
def test_a_caller_is_known_by_its_uid_and_by_each_of_its_groups(
    authorizer: Authorizers, key_policy: KeyPolicies, principal: str
) -> None:
    """The primary group counts as well as the supplementary ones."""
    policy = key_policy([statement("Allow", {"Unix": principal})])

    assert decide(authorizer([]), MEMBER, policy)
    assert not decide(authorizer([]), ALICE, policy)


def test_the_host_policy_counts_only_where_the_key_lets_the_root_in(
    authorizer: Authorizers, key_policy: KeyPolicies
) -> None:
    """As IAM counts in AWS, and only for the actions for which the root is let in."""
    host = authorizer([statement("Allow", {"Unix": "uid:1001"})])
    closed = key_policy([statement("Allow", {"Unix": "uid:1000"})])
    opened = key_policy([statement("Allow", {"AWS": ROOT}, "kms:Decrypt")])

    assert not decide(host, BOB, closed)
    assert decide(host, BOB, opened)
    assert not decide(host, BOB, opened, "kms:Encrypt")
    assert decide(host, ADMINISTRATOR, opened)
    assert not decide(host, ALICE, opened)


def test_denying_the_root_ends_delegation_too(authorizer: Authorizers, key_policy: KeyPolicies) -> None:
    """Who is let in by name stays in."""
    host = authorizer([statement("Allow", {"Unix": "uid:1001"})])
    policy = key_policy(
        [
            statement("Allow", {"AWS": ROOT, "Unix": "uid:1000"}),
            statement("Deny", {"AWS": ROOT}, "kms:Decrypt"),
        ]
    )

    assert not decide(host, BOB, policy)
    assert not decide(host, ADMINISTRATOR, policy)
    assert decide(host, ALICE, policy)
    assert decide(host, BOB, policy, "kms:Encrypt")


def test_a_deny_of_the_host_policy_always_counts(authorizer: Authorizers, key_policy: KeyPolicies) -> None:
    """Also where the key does not let the root in."""
    host = authorizer([statement("Deny", {"Unix": "group:backup"}, "kms:Decrypt")])
    policy = key_policy([statement("Allow", "*")])

    assert not decide(host, MEMBER, policy)
    assert decide(host, MEMBER, policy, "kms:Encrypt")
    assert decide(host, ALICE, policy)


def test_the_host_policy_may_speak_of_some_keys(authorizer: Authorizers, key_policy: KeyPolicies) -> None:
    """Its resources are compared with the key's ARN."""
    host = authorizer([statement("Allow", {"Unix": "uid:1001"}, "kms:*", "arn:aws:kms:*:*:key/1234abcd-*")])
    opened = key_policy([statement("Allow", {"AWS": ROOT})])

    assert decide(host, BOB, opened)
    assert not decide(host, BOB, opened, resource=OTHER_KEY)


def test_operations_without_a_key_are_the_host_policys(authorizer: Authorizers) -> None:
    """There is no key policy that could let anybody in."""
    host = authorizer([statement("Allow", {"Unix": "group:kms-users"}, "kms:CreateKey")])

    assert decide(host, MEMBER, None, "kms:CreateKey", "*")
    assert not decide(host, ALICE, None, "kms:CreateKey", "*")


def test_the_decision_tells_the_rule(authorizer: Authorizers, key_policy: KeyPolicies) -> None:
    """For the audit trail: which statement of which document."""
    host = authorizer([statement("Allow", {"Unix": "uid:1001"})])
    policy = key_policy([statement("Allow", {"AWS": ROOT}), statement("Allow", {"Unix": "uid:1000"})])

    def rule(caller: Caller) -> str:
        return host.authorize(caller, "kms:Decrypt", resource=KEY, key_policy=policy, facts=NO_FACTS).rule

    assert rule(ALICE) == "key policy: statement 2"
    assert rule(BOB) == "host policy 10-test.json: statement 1"
    assert rule(ADMINISTRATOR) == "key policy: statement 1"


@pytest.mark.parametrize(
    ("host", "key", "why", "rule"),
    [
        ([], [statement("Deny", "*")], "with an explicit deny in the key policy", "key policy: statement 1"),
        (
            [statement("Deny", "*")],
            [statement("Allow", "*")],
            "with an explicit deny in a host policy",
            "host policy 10-test.json: statement 1",
        ),
        ([], [statement("Allow", {"Unix": "uid:5"})], "because no policy allows it", DEFAULT_DENY),
        (
            [statement("Deny", "*")],
            None,
            "with an explicit deny in a host policy",
            "host policy 10-test.json: statement 1",
        ),
        ([], None, "because no host policy allows it", DEFAULT_DENY),
    ],
)
def test_a_refusal_says_who_what_and_why(
    authorizer: Authorizers,
    key_policy: KeyPolicies,
    host: list[Statement],
    key: list[Statement] | None,
    why: str,
    rule: str,
) -> None:
    """In AWS's words for the caller; the statement only for the trail."""
    with pytest.raises(AccessDeniedError) as refused:
        authorizer(host).authorize(
            ALICE, "kms:Decrypt", resource=KEY, key_policy=key_policy(key) if key else None, facts=NO_FACTS
        )

    assert refused.value.message == f"User: uid 1000 is not authorized to perform: kms:Decrypt on resource: {KEY} {why}"
    assert isinstance(refused.value, NotAuthorizedError)
    assert refused.value.rule == rule
    assert refused.value.code == "AccessDeniedException"


def test_a_refusal_calls_a_caller_by_name(authorizer: Authorizers, alice: Caller) -> None:
    """If the host has one for it."""
    with pytest.raises(NotAuthorizedError, match=r"User: alice \(uid 1000\) is not authorized"):
        authorizer([]).authorize(alice, "kms:CreateKey", resource="*", key_policy=None, facts=NO_FACTS)


# A naive interpreter: reads the statements as they stand, with regular expressions, one by one.

STORED = {"user:alice": 1000, "user:bob": 77, "group:backup": 34, "group:kms-users": 78}
HOLDS: dict[str, Callable[[Caller, int], bool]] = {
    "user": lambda caller, uid: caller.uid == uid,
    "group": lambda caller, gid: gid in {caller.gid, *caller.groups},
}


def fits(patterns: str | list[str], text: str, flags: re.RegexFlag = re.NOFLAG) -> bool:
    listed = patterns if isinstance(patterns, list) else [patterns]
    expressions = (re.escape(one).replace(r"\*", ".*").replace(r"\?", ".") for one in listed)
    return any(re.fullmatch(one, text, flags) for one in expressions)


def means(principal: str, caller: Caller, names: Names, stored: dict[str, int], effect: str) -> bool:
    kind, _, value = principal.partition(":")
    if principal == "*":
        return True
    if principal in {ROOT, "administrators"}:
        return caller.administrator
    if kind in {"uid", "gid"}:
        return HOLDS[{"uid": "user", "gid": "group"}[kind]](caller, int(value))
    now = names.uid_of(value) if kind == "user" else names.gid_of(value)
    then = stored.get(principal, now)
    holds = [HOLDS[kind](caller, one) for one in (now, then) if one is not None]
    return any(holds) and (now == then or effect == "Deny")


def listed_principals(one: Statement) -> list[str]:
    value = one["Principal"]
    return ["*"] if value == "*" else [text for texts in value.values() for text in texts]


def applying(
    statements: list[Statement],
    effect: str,
    caller: Caller | None,
    action: str,
    resource: str,
    names: Names,
    stored: Any,
) -> bool:
    """Whether a statement with this effect applies to the caller, or, without one, to the account's root."""
    return any(
        one["Effect"] == effect
        and fits(one["Action"], action, re.IGNORECASE)
        and fits(one["Resource"], resource)
        and any(
            text in {ROOT, "administrators"} if caller is None else means(text, caller, names, stored, effect)
            for text in listed_principals(one)
        )
        for one in statements
    )


def reference(
    host: list[Statement], key: list[Statement] | None, caller: Caller, action: str, resource: str, names: Names
) -> bool:
    if applying(host, "Deny", caller, action, resource, names, {}):
        return False
    by_host = applying(host, "Allow", caller, action, resource, names, {})
    if key is None:
        return by_host
    if applying(key, "Deny", caller, action, resource, names, STORED):
        return False
    delegated = applying(key, "Allow", None, action, resource, names, STORED) and not applying(
        key, "Deny", None, action, resource, names, STORED
    )
    return applying(key, "Allow", caller, action, resource, names, STORED) or (delegated and by_host)


UNIX = ["*", "administrators", "uid:1000", "uid:1001", "gid:34", "gid:1002", *STORED]
PRINCIPALS = st.just("*") | st.fixed_dictionaries(
    {"Unix": st.lists(st.sampled_from(UNIX), min_size=1, max_size=3)},
    optional={"AWS": st.just([ROOT])},
)
ACTIONS = st.lists(
    st.sampled_from(
        ["*", "kms:*", "kms:Encrypt", "KMS:DECRYPT", "kms:De*", "kms:?ncrypt", "kms:*crypt", "kms:CreateKey"]
    ),
    min_size=1,
    max_size=2,
)


def statements(resources: list[str], minimum: int) -> st.SearchStrategy[list[Statement]]:
    one = st.fixed_dictionaries(
        {
            "Effect": st.sampled_from(["Allow", "Allow", "Allow", "Deny"]),
            "Principal": PRINCIPALS,
            "Action": ACTIONS,
            "Resource": st.lists(st.sampled_from(resources), min_size=1, max_size=2),
        }
    )
    return st.lists(one, min_size=minimum, max_size=5)


KEY_STATEMENTS = statements(["*", "*", KEY, OTHER_KEY], minimum=1)
HOST_STATEMENTS = statements(["*", "arn:aws:kms:*:*:key/1234*", "arn:aws:kms:*:*:alias/*", OTHER_KEY], minimum=0)
CALLERS = st.sampled_from([ALICE, BOB, MEMBER, ADMINISTRATOR, person(77), person(5, 78), person(1001, 34)])
REQUESTS = st.tuples(
    st.sampled_from(["kms:Encrypt", "kms:Decrypt", "kms:CreateKey"]), st.sampled_from([KEY, ALIAS, "*"])
)


def compiled(key: list[Statement], names: Names) -> Policy:
    return parse_policy(document(key), account=ACCOUNT, names=names, resolved=STORED)


@given(
    host=HOST_STATEMENTS,
    key=st.none() | KEY_STATEMENTS,
    callers=st.lists(CALLERS, min_size=1, max_size=4),
    requests=st.lists(REQUESTS, min_size=1, max_size=4),
)
def test_compiled_evaluation_is_that_of_a_naive_interpreter(
    authorizer: Authorizers,
    names: Names,
    host: list[Statement],
    key: list[Statement] | None,
    callers: list[Caller],
    requests: list[tuple[str, str]],
) -> None:
    """For every policy, caller and request; asking several things of one policy mixes nothing up."""
    under = authorizer(host)
    policy = None if key is None else compiled(key, names)
    for caller in callers:
        for action, resource in requests:
            assert decide(under, caller, policy, action, resource) is reference(
                host, key, caller, action, resource, names
            )


@given(
    host=HOST_STATEMENTS, key=KEY_STATEMENTS, caller=CALLERS, request_=REQUESTS, order=st.randoms(use_true_random=False)
)
def test_the_order_of_statements_never_matters(
    authorizer: Authorizers,
    names: Names,
    host: list[Statement],
    key: list[Statement],
    caller: Caller,
    request_: tuple[str, str],
    order: random.Random,
) -> None:
    """Neither in the key policy nor in the host policy."""
    before = decide(authorizer(host), caller, compiled(key, names), *request_)
    mixed_host, mixed_key = order.sample(host, len(host)), order.sample(key, len(key))

    assert decide(authorizer(mixed_host), caller, compiled(mixed_key, names), *request_) is before


@given(
    host=HOST_STATEMENTS,
    key=KEY_STATEMENTS,
    caller=CALLERS,
    request_=REQUESTS,
    where=st.sampled_from(["host", "key"]),
    at=st.integers(0, 5),
)
def test_an_explicit_deny_always_wins(
    authorizer: Authorizers,
    names: Names,
    host: list[Statement],
    key: list[Statement],
    caller: Caller,
    request_: tuple[str, str],
    where: str,
    at: int,
) -> None:
    """Wherever it stands among whatever else."""
    action, resource = request_
    deny = statement("Deny", {"Unix": f"uid:{caller.uid}"}, action)
    (host if where == "host" else key).insert(at, deny)

    assert not decide(authorizer(host), caller, compiled(key, names), action, resource)


@given(host=HOST_STATEMENTS, key=KEY_STATEMENTS, request_=REQUESTS)
def test_a_caller_that_no_statement_names_is_refused(
    authorizer: Authorizers, names: Names, host: list[Statement], key: list[Statement], request_: tuple[str, str]
) -> None:
    """Default deny, whatever is allowed to others."""
    for one in (*host, *key):
        named = [text for text in listed_principals(one) if text not in {"*", ROOT}]
        one["Principal"] = {"AWS": ROOT, "Unix": named or ["uid:5"]}

    assert not decide(authorizer(host), person(123_456), compiled(key, names), *request_)


@given(key=KEY_STATEMENTS, more=KEY_STATEMENTS, caller=CALLERS, request_=REQUESTS)
def test_adding_denies_never_allows_more(
    authorizer: Authorizers,
    names: Names,
    key: list[Statement],
    more: list[Statement],
    caller: Caller,
    request_: tuple[str, str],
) -> None:
    """A Deny only ever takes away."""
    under = authorizer([statement("Allow", {"Unix": "uid:1001"})])
    denies = [one | {"Effect": "Deny"} for one in more]

    with_denies = decide(under, caller, compiled([*key, *denies], names), *request_)

    assert not with_denies or decide(under, caller, compiled(key, names), *request_)


@pytest.mark.parametrize(
    ("listed", "locked_out"),
    [
        ([statement("Allow", {"Unix": "uid:1000"}, "kms:*")], False),
        ([statement("Allow", {"Unix": "uid:1000"}, "kms:PutKeyPolicy")], False),
        ([statement("Allow", {"Unix": "uid:1000"}, "kms:Encrypt")], True),
        ([statement("Allow", {"Unix": "uid:1001"}, "kms:*")], True),
        ([statement("Allow", {"AWS": ROOT}, "kms:*")], False),
        ([statement("Allow", {"AWS": ROOT}, "kms:Encrypt")], True),
        ([statement("Allow", {"AWS": ROOT}), statement("Deny", {"AWS": ROOT}, "kms:Put*")], True),
        ([statement("Allow", {"AWS": ROOT}), statement("Deny", {"Unix": "uid:1000"}, "kms:Put*")], True),
        ([statement("Allow", "*"), statement("Deny", {"Unix": "uid:1001"})], False),
        ([statement("Allow", "*", resource=OTHER_KEY)], True),
    ],
)
def test_a_policy_that_locks_its_author_out_is_noticed(
    key_policy: KeyPolicies, listed: list[Statement], locked_out: bool
) -> None:
    """The author must be able to change the policy again, or the account's root must be."""
    assert would_lock_out(key_policy(listed), ALICE, facts=NO_FACTS) is locked_out
    assert would_lock_out(key_policy(listed), ALICE, facts=NO_FACTS, resource=KEY) is locked_out


def test_the_default_policy_locks_nobody_out(names: Names) -> None:
    """Neither the creator nor whoever else asks."""
    policy = parse_policy(default_key_policy(ACCOUNT, 1000), account=ACCOUNT, names=names)

    assert not any(would_lock_out(policy, caller, facts=NO_FACTS) for caller in (ALICE, BOB, ADMINISTRATOR))


def test_a_decision_takes_about_a_microsecond(names: Names) -> None:
    """Under the default policies; the limit is generous, since other things run on the same machine."""
    under = Authorizer(HostPolicy.load(None, account=ACCOUNT, names=names))
    policy = parse_policy(default_key_policy(ACCOUNT, 1000), account=ACCOUNT, names=names)

    def once() -> None:
        under.authorize(ALICE, "kms:Encrypt", resource=KEY, key_policy=policy, facts=NO_FACTS)

    assert min(timeit.repeat(once, number=1000, repeat=5)) / 1000 < 5e-6
