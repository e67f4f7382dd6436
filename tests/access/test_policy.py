"""The grammar of policies: what is read, and what is refused with which words."""

import dataclasses
import json
import re
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access.condition_grammar import (
    MAX_CONDITIONS,
    MAX_PATTERNS,
    MAX_SEARCHED_CHARACTERS,
    MAX_SET_COMPARISONS,
    OPERATORS,
)
from kmsd.access.condition_keys import CONDITION_KEYS
from kmsd.access.conditions import MAX_CHARACTERS, MAX_VALUES
from kmsd.access.document import MAX_BYTES, MAX_DEPTH
from kmsd.access.policy import (
    MANAGEMENT_ACTIONS,
    MAX_NAMES,
    MAX_WILDCARDS,
    Policy,
    PolicyKind,
    default_key_policy,
    named_in,
    parse_policy,
)
from kmsd.api import OPERATIONS
from kmsd.api.errors import KmsError, LimitExceededError, MalformedPolicyDocumentError
from kmsd.identity.principals import Caller, Names
from tests.support.given_facts import NO_FACTS, GivenFacts

ACCOUNT = "111122223333"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
KEY = f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
MISSING = object()
SPECIFICATION = resources.files("kmsd.access").joinpath("POLICY.md").read_text("utf-8")


def statement(**members: Any) -> dict[str, Any]:
    whole = {"Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"} | members
    return {name: value for name, value in whole.items() if value is not MISSING}


def document(*statements: object, **members: Any) -> str:
    whole = {"Version": "2012-10-17", "Statement": list(statements) or [statement()]} | members
    return json.dumps({name: value for name, value in whole.items() if value is not MISSING})


def allowed(policy: Policy, caller: Caller, action: str = "kms:Encrypt", resource: str = KEY) -> bool:
    rules = policy.table.rules(action, resource)
    return rules.denied(caller, NO_FACTS) is None and rules.allowed(caller, NO_FACTS) is not None


def refusal(text: str, names: Names, kind: PolicyKind = PolicyKind.KEY) -> str:
    """Return what is said after the line and the column."""
    with pytest.raises(MalformedPolicyDocumentError) as refused:
        parse_policy(text, account=ACCOUNT, names=names, kind=kind)
    where, _, problem = refused.value.message.partition(": ")
    assert re.fullmatch(r"line \d+ column \d+", where)
    return problem


def test_the_policy_that_aws_gives_every_key_is_read(names: Names, alice: Caller) -> None:
    """Its one statement lets the account's root in: administrators directly, others through the host policy."""
    text = document(
        statement(Sid="Enable IAM User Permissions", Principal={"AWS": ROOT}, Action="kms:*"), Id="key-default-1"
    )
    rules = parse_policy(text, account=ACCOUNT, names=names).table.rules("kms:Decrypt", KEY)

    assert rules.delegated
    assert rules.allowed(alice, NO_FACTS) is None


@pytest.mark.parametrize("principal", ["*", {"AWS": "*"}, {"Unix": "*"}, {"Unix": ["uid:7", "*"]}])
def test_everybody_can_be_written_in_several_ways(names: Names, alice: Caller, principal: object) -> None:
    """All of them mean whoever connects."""
    policy = parse_policy(document(statement(Principal=principal)), account=ACCOUNT, names=names)

    assert allowed(policy, alice)


@pytest.mark.parametrize(
    "principal",
    [
        {"Unix": "uid:1000"},
        {"Unix": "user:alice"},
        {"Unix": "gid:1000"},
        {"AWS": f"arn:aws:iam::{ACCOUNT}:user/alice"},
        {"AWS": ROOT, "Unix": ["uid:5", "user:alice"]},
    ],
)
def test_a_user_can_be_written_in_several_ways(names: Names, alice: Caller, principal: object) -> None:
    """By uid, by name, by group, by the ARN that AWS's tools know."""
    policy = parse_policy(document(statement(Principal=principal)), account=ACCOUNT, names=names)

    assert allowed(policy, alice)


@pytest.mark.parametrize("principal", [{"AWS": ROOT}, {"AWS": ACCOUNT}, {"Unix": "administrators"}])
def test_the_accounts_root_is_the_administrators_and_delegates(names: Names, alice: Caller, principal: object) -> None:
    """The root's ARN, the account's bare id and our own word are one principal."""
    policy = parse_policy(document(statement(Principal=principal)), account=ACCOUNT, names=names)
    rules = policy.table.rules("kms:Encrypt", KEY)

    assert rules.delegated
    assert rules.allowed(alice, NO_FACTS) is None
    assert not policy.table.rules("kms:Decrypt", KEY).delegated


def test_a_single_statement_needs_no_list(names: Names, alice: Caller) -> None:
    """AWS's grammar has it so."""
    policy = parse_policy(document(Statement=statement()), account=ACCOUNT, names=names)

    assert allowed(policy, alice)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("kms:Encrypt", "kms:Encrypt", "kms:Decrypt"),
        ("KMS:encrypt", "kms:Encrypt", "kms:EncryptFile"),
        ("kms:Generate*", "kms:GenerateDataKey", "kms:Decrypt"),
        ("kms:ReEncrypt?o", "kms:ReEncryptTo", "kms:ReEncryptFrom"),
        (["kms:Decrypt", "kms:*Key"], "kms:DescribeKey", "kms:Encrypt"),
    ],
)
def test_actions_match_without_regard_to_case(
    names: Names, alice: Caller, pattern: object, matching: str, other: str
) -> None:
    """As IAM compares them, with its wildcards."""
    policy = parse_policy(document(statement(Action=pattern)), account=ACCOUNT, names=names)

    assert allowed(policy, alice, matching)
    assert not allowed(policy, alice, other)


@pytest.mark.parametrize("action", ["*", "kms:*"])
def test_all_actions_can_be_written_in_two_ways(names: Names, alice: Caller, action: str) -> None:
    """Including those of operations that do not exist yet."""
    policy = parse_policy(document(statement(Action=action)), account=ACCOUNT, names=names)

    assert allowed(policy, alice, "kms:SomethingNew")


def test_a_statement_about_another_key_has_no_effect(names: Names, alice: Caller) -> None:
    """As in AWS: the ARN of another key may stand there, and means nothing for this one."""
    other = parse_policy(document(statement(Resource=f"{KEY[:-1]}c")), account=ACCOUNT, names=names)
    this = parse_policy(document(statement(Resource=["arn:aws:kms:x", KEY])), account=ACCOUNT, names=names)

    assert not allowed(other, alice)
    assert allowed(this, alice)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"Version": MISSING}, 'Version: only "2012-10-17"'),
        ({"Version": "2008-10-17"}, 'Version: only "2012-10-17"'),
        ({"Version": 20121017}, 'Version: only "2012-10-17"'),
        ({"Id": 5}, "Id: must be a string"),
        ({"Statement": MISSING}, "Statement: must be a list"),
        ({"Statement": []}, "Statement: must be a list of at least one"),
        ({"Statement": "Allow"}, "Statement: must be a list"),
        ({"Statement": [[]]}, "statement 1: must be an object"),
        ({"statement": []}, "the document: the member 'statement' is unknown"),
        ({"Condition": {}}, "the document: the member 'Condition' is unknown"),
    ],
)
def test_a_document_with_another_shape_is_refused(names: Names, members: dict[str, Any], message: str) -> None:
    """The message names the member."""
    assert refusal(document(**members), names).startswith(message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"Effect": MISSING}, "statement 2: Effect is missing"),
        ({"Principal": MISSING}, "statement 2: Principal is missing"),
        ({"Action": MISSING}, "statement 2: Action is missing"),
        ({"Resource": MISSING}, "statement 2: Resource is missing"),
        ({"Effect": "allow"}, 'statement 2, Effect: must be "Allow" or "Deny"'),
        ({"Effect": ["Allow"]}, 'statement 2, Effect: must be "Allow" or "Deny"'),
        ({"Sid": 5}, "statement 2, Sid: must be a string"),
        ({"Sid": None}, "statement 2, Sid: must be a string"),
        ({"Sid": None, "sid": "x"}, "statement 2: the member 'sid' is unknown"),
        ({"Sid": "a\nb"}, "statement 2, Sid: must be a string of at most 128 printable"),
        ({"Sid": "\x9b31m"}, "statement 2, Sid: must be a string of at most 128 printable"),
        ({"Sid": "\ud800"}, "statement 2, Sid: must be a string of at most 128 printable"),
        ({"Sid": "x" * 129}, "statement 2, Sid: must be a string of at most 128 printable"),
        ({"Condition": {}}, "statement 2, Condition: must be an object of at least one of operators"),
        ({"NotPrincipal": "*"}, "statement 2: Principal and NotPrincipal exclude each other"),
        ({"NotAction": "kms:*"}, "statement 2: Action and NotAction exclude each other"),
        ({"NotResource": "*"}, "statement 2: Resource and NotResource exclude each other"),
        ({"Principal": MISSING, "NotPrincipal": "*"}, "statement 2, NotPrincipal: goes with Deny only"),
        ({"Aciton": "kms:*"}, "statement 2: the member 'Aciton' is unknown"),
        ({"Action": []}, "statement 2, Action: must be a string or a list of at least one string"),
        ({"Action": {}}, "statement 2, Action: must be a string or a list"),
        ({"Action": ["kms:Encrypt", 5]}, "statement 2, Action: holds something that is not a string"),
        ({"Action": "Encrypt"}, "statement 2, Action: 'Encrypt' is neither"),
        ({"Action": "s3:GetObject"}, "statement 2, Action: 's3:GetObject' is neither"),
        ({"Action": "kms*"}, "statement 2, Action: 'kms*' is neither"),
        ({"Action": "kms:"}, "statement 2, Action: 'kms:' is neither"),
        ({"Action": "kms:Encrypt "}, "statement 2, Action: 'kms:Encrypt ' is neither"),
        ({"Resource": []}, "statement 2, Resource: must be a string or a list"),
        ({"Resource": "this"}, "statement 2, Resource: 'this' is neither"),
        ({"Resource": "arn:aws:s3:::x"}, "statement 2, Resource: 'arn:aws:s3:::x' is neither"),
        ({"Resource": "arn:aws:kms:*:*:key/*"}, "statement 2, Resource: in a key policy"),
        ({"Resource": "arn:aws:kms:${aws:username}"}, "statement 2, Resource: policy variables are not supported"),
        ({"Principal": []}, "statement 2, Principal: must be"),
        ({"Principal": {}}, "statement 2, Principal: must be"),
        ({"Principal": "uid:1000"}, "statement 2, Principal: must be"),
        ({"Principal": {"Service": "x"}}, "statement 2, Principal: principals of the type 'Service'"),
        ({"Principal": {"Federated": "x"}}, "statement 2, Principal: principals of the type 'Federated'"),
        ({"Principal": {"unix": "*"}}, "statement 2, Principal: principals of the type 'unix'"),
        ({"Principal": {"Unix": []}}, "statement 2, Principal, Unix: must be a string or a list"),
        ({"Principal": {"Unix": "alice"}}, "statement 2, Principal, Unix: 'alice' is none of"),
        ({"Principal": {"Unix": "uid:x"}}, "statement 2, Principal, Unix: 'uid:x' needs a decimal"),
        ({"Principal": {"Unix": "unit:a"}}, "statement 2, Principal, Unix: 'unit:a' needs the whole name of a unit"),
        ({"Principal": {"Unix": "exe:/bin/sh"}}, "statement 2, Principal, Unix: exe: proves nothing"),
        ({"Principal": {"Unix": "user:mallory"}}, "statement 2, Principal, Unix: 'user:mallory' does not exist"),
        ({"Principal": {"Unix": "group:alice"}}, "statement 2, Principal, Unix: 'group:alice' does not exist"),
        ({"Principal": {"AWS": "alice"}}, "statement 2, Principal, AWS: 'alice' is no account id"),
        ({"Principal": {"AWS": "arn:aws:iam::*:root"}}, "statement 2, Principal, AWS: 'arn:aws:iam::*:root' is no"),
        ({"Principal": {"AWS": "444455556666"}}, "statement 2, Principal, AWS: '444455556666' is of another account"),
        ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/x"}}, "statement 2, Principal, AWS: 'arn:aws:iam::1111"),
        ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/a/b"}}, "statement 2, Principal, AWS: 'user:a/b' is not"),
        ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/eve"}}, "statement 2, Principal, AWS: 'user:eve' does"),
    ],
)
def test_a_statement_that_is_not_understood_is_refused(names: Names, members: dict[str, Any], message: str) -> None:
    """The message tells the statement's number, the member and what is wrong with it, and stays short."""
    found = refusal(document(statement(), statement(**members)), names)

    assert found.startswith(message)
    assert len(found) < 300


@pytest.mark.parametrize("condition", [{"kmsd:Executable": "/bin/a"}, {"KMSD:executable": ["/bin/a", "/bin/b"]}])
def test_a_program_alone_does_not_narrow_an_allow_for_everybody(
    names: Names, alice: Caller, condition: dict[str, Any]
) -> None:
    """Anybody can run it and then something else. It narrows an Allow for somebody, and whatever a Deny says."""
    block = {"StringEquals": condition}
    narrowed = statement(Principal={"Unix": "uid:1000"}, Condition=block)
    with_more = statement(Condition=block | {"NumericEquals": {"kmsd:Uid": "1000"}})
    denied = statement(Effect="Deny", Condition=block)
    parse_policy(document(narrowed, with_more, denied), account=ACCOUNT, names=names)
    facts = GivenFacts({"kmsd:executable": ["/bin/a"]})

    for principal in ("*", {"AWS": "*"}, {"Unix": ["uid:5", "*"]}):
        assert refusal(document(statement(Principal=principal, Condition=block)), names).startswith(
            "statement 1, Condition: kmsd:Executable proves nothing about who calls"
        )
    rules = parse_policy(document(narrowed), account=ACCOUNT, names=names).table.rules("kms:Encrypt", KEY)
    assert rules.allowed(alice, facts) is not None
    assert rules.allowed(alice, NO_FACTS) is None


def test_programs_are_denied_and_excepted_by_name(names: Names, alice: Caller) -> None:
    """That a caller ran something else when it connected is no proof, so it only ever takes away."""
    text = document(statement(), statement(Effect="Deny", Principal={"Unix": "exe:/bin/a"}))
    excepting = document(
        statement(), statement(Effect="Deny", Principal=MISSING, NotPrincipal={"Unix": ["exe:/bin/a", "user:bob"]})
    )
    running = dataclasses.replace(alice, exe="/bin/a")
    for document_text, expected in ((text, [True, False]), (excepting, [False, True])):
        policy = parse_policy(document_text, account=ACCOUNT, names=names)
        assert [allowed(policy, alice), allowed(policy, running)] == expected


def test_units_are_principals_in_both_types(names: Names, alice: Caller) -> None:
    """The role of a unit is what AWS's tools would call it."""
    for principal in ({"Unix": "unit:a@b.service"}, {"AWS": f"arn:aws:iam::{ACCOUNT}:role/unit/a@b.service"}):
        policy = parse_policy(document(statement(Principal=principal)), account=ACCOUNT, names=names)

        assert allowed(policy, dataclasses.replace(alice, unit="a@b.service"))
        assert not allowed(policy, dataclasses.replace(alice, user_unit="1000/a@b.service"))
        assert not allowed(policy, dataclasses.replace(alice, undetermined=frozenset({"unit"})))


def test_what_a_statement_leaves_out_can_be_said_instead(names: Names, alice: Caller) -> None:
    """NotAction and NotResource mean all others, in an Allow and in a Deny."""
    but = statement(Action=MISSING, NotAction=["kms:Put*", "KMS:decrypt"])
    policy = parse_policy(document(but), account=ACCOUNT, names=names)
    other = parse_policy(document(statement(Resource=MISSING, NotResource=KEY)), account=ACCOUNT, names=names)
    narrowed = parse_policy(document(statement(Action="*"), but | {"Effect": "Deny"}), account=ACCOUNT, names=names)

    actions = ("kms:Encrypt", "kms:PutKeyPolicy", "kms:Decrypt")
    assert [allowed(policy, alice, action) for action in actions] == [True, False, False]
    assert [allowed(narrowed, alice, action) for action in actions] == [False, True, True]
    assert [allowed(other, alice, resource=resource) for resource in (KEY, f"{KEY}x")] == [False, True]


def test_the_names_that_a_document_has_are_found_before_it_is_parsed() -> None:
    """So that they can be looked up; everything else about it is the parser's."""
    text = document(
        statement(Principal={"Unix": ["user:alice", "uid:5", 7], "AWS": f"arn:aws:iam::{ACCOUNT}:user/bob"}),
        statement(Principal=MISSING, NotPrincipal={"Unix": "group:backup"}),
        statement(Principal={"AWS": [ROOT, f"arn:aws:iam::{ACCOUNT}:role/unit/a.service"]}),
        statement(Principal="user:eve"),
        "user:eve",
    )

    assert named_in(text) == {"user:alice", "user:bob", "group:backup"}
    assert named_in(document(Statement=statement(Principal={"Unix": "user:alice"}))) == {"user:alice"}
    assert named_in('{"Statement": 5}') == named_in("{}") == frozenset()


def test_what_names_a_document_has_is_not_told_of_one_that_cannot_be_read() -> None:
    """The refusal is the parser's own."""
    many = document(statement(Principal={"Unix": [f"user:u{one}" for one in range(MAX_NAMES + 1)]}))

    with pytest.raises(MalformedPolicyDocumentError, match="line 1 column 1: a policy is a JSON object"):
        named_in("[]")
    with pytest.raises(LimitExceededError, match="128 users and groups"):
        named_in(many)


def test_names_are_resolved_when_a_policy_is_read(names: Names) -> None:
    """What is to be stored with the policy is the ids that its names have."""
    principal = {"Unix": ["user:alice", "group:backup", "uid:5"], "AWS": f"arn:aws:iam::{ACCOUNT}:user/bob"}
    policy = parse_policy(document(statement(Principal=principal)), account=ACCOUNT, names=names)

    assert policy.principals == {"user:alice": 1000, "group:backup": 34, "user:bob": 1001}
    assert policy.suspended == ()


@pytest.mark.parametrize("kind", ["user", "group"])
def test_an_account_made_anew_inherits_nothing(
    given_names: Callable[[dict[str, int], dict[str, int]], Names], alice: Caller, kind: str
) -> None:
    """After its name went to another id, an Allow is for neither id, and a Deny is for both."""
    stored = {f"{kind}:staff": 1000}
    moved = given_names({"staff": 1001}, {"staff": 1001})
    successor = Caller(
        uid=1001, gid=1001, groups=frozenset({1001}), pid=2, user="staff", unit=None, exe=None, administrator=False
    )

    def read(*statements: dict[str, Any]) -> Policy:
        return parse_policy(document(*statements), account=ACCOUNT, names=moved, resolved=stored)

    principal = {"Unix": f"{kind}:staff"}
    allowing = read(statement(Principal=principal))
    denying = read(statement(), statement(Effect="Deny", Principal=principal))

    assert allowing.suspended == denying.suspended == (f"{kind}:staff",)
    assert [allowed(allowing, alice), allowed(allowing, successor)] == [False, False]
    assert [allowed(denying, alice), allowed(denying, successor)] == [False, False]
    assert allowing.principals == stored


def test_a_stored_policy_is_read_although_its_user_is_gone(
    given_names: Callable[[dict[str, int], dict[str, int]], Names], alice: Caller
) -> None:
    """The rest of it must go on working."""
    text = document(statement(Principal={"Unix": ["user:carol", "uid:1000"]}))
    policy = parse_policy(text, account=ACCOUNT, names=given_names({}, {}), resolved={"user:carol": 1005})

    assert policy.suspended == ("user:carol",)
    assert allowed(policy, alice)


def test_the_host_policy_may_name_who_does_not_exist_yet(names: Names, alice: Caller) -> None:
    """A group that an administrator has not made yet has no members, and is no reason not to start."""
    text = document(statement(Principal={"Unix": ["group:later", "user:alice"]}))
    policy = parse_policy(text, account=ACCOUNT, names=names, kind=PolicyKind.HOST)

    assert policy.principals == {"user:alice": 1000}
    assert policy.suspended == ("group:later",)
    assert allowed(policy, alice)


def test_the_host_policy_speaks_of_resources_with_wildcards(names: Names, alice: Caller) -> None:
    """There it is about many keys and aliases."""
    text = document(statement(Resource="arn:aws:kms:*:*:key/1234abcd-*"))
    policy = parse_policy(text, account=ACCOUNT, names=names, kind=PolicyKind.HOST)

    assert allowed(policy, alice)
    assert not allowed(policy, alice, resource=KEY.replace("1234abcd", "1234abce"))
    assert not allowed(policy, alice, resource="*")


def test_a_decision_names_the_statement(names: Names, alice: Caller) -> None:
    """By Sid and number, or by number alone."""
    policy = parse_policy(
        document(statement(Principal={"Unix": "uid:5"}), statement(Sid="Allow use", Action="kms:Sign"), statement()),
        account=ACCOUNT,
        names=names,
    )
    signing = policy.table.rules("kms:Sign", KEY).allowed(alice, NO_FACTS)
    encrypting = policy.table.rules("kms:Encrypt", KEY).allowed(alice, NO_FACTS)

    assert signing is not None
    assert encrypting is not None
    assert signing.rule == 'key policy: "Allow use" (statement 2)'
    assert encrypting.rule == "key policy: statement 3"


def test_the_names_in_a_policy_are_bounded(names: Names) -> None:
    """Each costs a look-up in the name service."""
    listed = ["user:alice"] * MAX_NAMES
    parse_policy(document(statement(Principal={"Unix": listed})), account=ACCOUNT, names=names)

    with pytest.raises(LimitExceededError, match="128 users and groups"):
        parse_policy(document(statement(Principal={"Unix": [*listed, "group:backup"]})), account=ACCOUNT, names=names)


def test_the_wildcards_in_a_key_policy_are_bounded(names: Names) -> None:
    """Over all of its statements; whole actions and the bare `*` do not count."""
    plain = statement(Action=["*", "kms:Encrypt"])
    many = [plain, *(statement(Action=f"kms:*{number}") for number in range(MAX_WILDCARDS))]
    parse_policy(document(*many), account=ACCOUNT, names=names)

    with pytest.raises(LimitExceededError, match="64 actions with wildcards"):
        parse_policy(document(*many, statement(Action="kms:Get*")), account=ACCOUNT, names=names)


@pytest.mark.parametrize(
    "text",
    [
        document(*(statement(Effect="Deny", Principal={"Unix": f"gid:{one}"}, Action="*") for one in range(380))),
        document(statement(Principal={"Unix": [f"uid:{one}" for one in range(2400)]}, Action="*")),
        document(statement(Action=[f"kms:A{one}" for one in range(2300)])),
        document(*(statement(Action="kms:*" + "?" * 17 + f"{one:03}") for one in range(MAX_WILDCARDS))),
        document(*(statement(Action="kms:" + "*a" * 20 + f"*{one:03}") for one in range(MAX_WILDCARDS))),
        document(statement(Resource=[f"{KEY}{one}" for one in range(350)])),
        document(*({} for _ in range(8000))),
    ],
    ids=["statements", "principals", "actions", "question marks", "asterisks", "resources", "empty statements"],
)
def test_hostile_policies_are_read_and_decided_quickly(names: Names, text: str) -> None:
    """As long and as twisted as the bounds let them be, they take milliseconds."""
    groups = frozenset(range(5000, 6000))
    caller = Caller(uid=999_999, gid=999_999, groups=groups, pid=1, user=None, unit=None, exe=None, administrator=False)
    assert len(text) <= 32_768
    began = time.process_time()
    try:
        policy = parse_policy(text, account=ACCOUNT, names=names)
    except MalformedPolicyDocumentError:
        pass
    else:
        for action in ("kms:GenerateDataKeyPairWithoutPlaintext", "kms:Encrypt"):
            rules = policy.table.rules(action, KEY)
            rules.denied(caller, NO_FACTS)
            rules.allowed(caller, NO_FACTS)

    assert time.process_time() - began < 0.5


def test_what_a_policy_remembers_is_bounded(names: Names) -> None:
    """Whatever it is asked about."""
    policy = parse_policy(document(statement(Action="*")), account=ACCOUNT, names=names)
    for number in range(1000):
        policy.table.rules(f"kms:Operation{number}", KEY)

    assert len(policy.table._remembered) <= 256


def test_under_the_default_policy_the_creator_does_everything(names: Names, alice: Caller) -> None:
    """Every operation that acts on a key, and no other user's."""
    policy = parse_policy(default_key_policy(ACCOUNT, 1000), account=ACCOUNT, names=names)
    bob = Caller(uid=1001, gid=1000, groups=frozenset(), pid=1, user=None, unit=None, exe=None, administrator=False)
    actions = {action for operation in OPERATIONS for action in operation.actions}

    assert all(allowed(policy, alice, action) for action in actions)
    assert not any(allowed(policy, bob, action) for action in actions)


@pytest.mark.parametrize(
    "action",
    [
        "kms:Encrypt",
        "kms:Decrypt",
        "kms:ReEncryptFrom",
        "kms:ReEncryptTo",
        "kms:GenerateDataKey",
        "kms:GenerateDataKeyPairWithoutPlaintext",
        "kms:Sign",
        "kms:Verify",
        "kms:GenerateMac",
        "kms:DeriveSharedSecret",
        "kms:ImportKeyMaterial",
    ],
)
def test_under_the_default_policy_administrators_use_nothing(names: Names, action: str) -> None:
    """Neither they nor whom the host policy would let: for these actions the root is not let in."""
    policy = parse_policy(default_key_policy(ACCOUNT, 1000), account=ACCOUNT, names=names)
    root = Caller(uid=0, gid=0, groups=frozenset(), pid=1, user="root", unit=None, exe=None, administrator=True)

    assert not allowed(policy, root, action)
    assert not policy.table.rules(action, KEY).delegated


@pytest.mark.parametrize("action", MANAGEMENT_ACTIONS)
def test_under_the_default_policy_administrators_manage_and_delegate(names: Names, action: str) -> None:
    """A key whose creator is gone is not lost."""
    policy = parse_policy(default_key_policy(ACCOUNT, 1000), account=ACCOUNT, names=names)
    root = Caller(uid=0, gid=0, groups=frozenset(), pid=1, user="root", unit=None, exe=None, administrator=True)

    assert allowed(policy, root, action)
    assert policy.table.rules(action, KEY).delegated


def test_the_default_policy_can_name_its_creator(names: Names, alice: Caller) -> None:
    """Then the name is resolved and kept, so that the uid's next user inherits nothing."""
    policy = parse_policy(default_key_policy(ACCOUNT, 1000, "alice"), account=ACCOUNT, names=names)

    assert policy.principals == {"user:alice": 1000}
    assert allowed(policy, alice)


@pytest.mark.parametrize("example", re.findall(r"```json\n(.*?)```", SPECIFICATION, re.DOTALL))
def test_the_examples_of_the_specification_are_policies(names: Names, example: str) -> None:
    """POLICY.md shows nothing that is refused, as either kind."""
    for kind in PolicyKind:
        assert parse_policy(example, account=ACCOUNT, names=names, kind=kind).statements


def test_the_specification_has_every_condition_key_and_operator() -> None:
    """With its type, and no others."""
    rows = re.findall(r"^\| `((?:aws|kms|kmsd):[^`]*)` \| ([^|]*) \|", SPECIFICATION, re.MULTILINE)
    table = SPECIFICATION.partition("| operators |")[2].partition("\n\n")[0]

    assert rows == [
        (key.name + "NAME" * key.open, f"several {key.type}s" if key.several else key.type.value)
        for key in CONDITION_KEYS
    ]
    assert set(re.findall(r"`([A-Z]\w+)`", table)) == {*OPERATORS, "Null"}


@pytest.mark.parametrize(
    "limit",
    [
        *(MAX_BYTES, MAX_DEPTH, MAX_NAMES, MAX_WILDCARDS, MAX_CONDITIONS, MAX_PATTERNS, MAX_SEARCHED_CHARACTERS),
        *(MAX_SET_COMPARISONS, MAX_VALUES, MAX_CHARACTERS),
    ],
)
def test_the_specification_tells_the_limits(limit: int) -> None:
    """The numbers of the code stand in POLICY.md."""
    assert re.search(rf"\b{limit:,}\b", SPECIFICATION)


FRAGMENTS = st.sampled_from(
    [
        "Allow",
        "Deny",
        "*",
        "kms:*",
        "kms:Encrypt",
        "uid:1",
        "user:alice",
        ROOT,
        ACCOUNT,
        KEY,
        "2012-10-17",
        "x",
        5,
        None,
    ]
)
MEMBERS = st.sampled_from(
    [
        "Version",
        "Statement",
        "Sid",
        "Effect",
        "Principal",
        "Action",
        "Resource",
        "AWS",
        "Unix",
        "Condition",
        "NotAction",
        "Other",
    ]
)
TREES = st.recursive(
    FRAGMENTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=5), max_leaves=12
)
STATEMENTS = st.fixed_dictionaries(
    {"Effect": TREES, "Principal": TREES, "Action": TREES, "Resource": TREES}, optional={"Sid": TREES}
)


@given(tree=TREES | STATEMENTS.map(lambda one: {"Version": "2012-10-17", "Statement": [one]}))
def test_no_document_breaks_the_parser(names: Names, tree: object) -> None:
    """Whatever the tree, it is a policy or an error of the caller's."""
    try:
        parse_policy(json.dumps(tree), account=ACCOUNT, names=names)
    except KmsError as error:
        assert isinstance(error, MalformedPolicyDocumentError | LimitExceededError)  # noqa: PT017 - so is a policy
