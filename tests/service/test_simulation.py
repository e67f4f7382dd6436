"""What would be decided, for whom, and who is told what about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    KmsError,
    LimitExceededError,
    MalformedPolicyDocumentError,
    NotFoundError,
    ValidationError,
)
from kmsd.api.grants import CREATE_GRANT, CreateGrantRequest, GrantConstraints, GrantOperation
from kmsd.api.keys import CREATE_ALIAS, DESCRIBE_KEY, CreateAliasRequest, DescribeKeyRequest
from kmsd.api.policies import (
    EXPLAIN_REFUSAL,
    MAX_TRACE,
    SIMULATE_POLICY,
    ExplainRefusalRequest,
    ExplainRefusalResponse,
    Outcome,
    SimulatePolicyRequest,
    SimulatePolicyResponse,
    SimulationResult,
)
from kmsd.api.shapes import Tag
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.config import Limits
from kmsd.service.call import Session
from tests.service.conftest import OpenService
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, person


def statement(principal: Any, action: Any, effect: str = "Allow", **members: Any) -> dict[str, Any]:
    return {"Effect": effect, "Principal": {"Unix": principal}, "Action": action, "Resource": "*", **members}


WEB = {"StringEquals": {"kms:EncryptionContext:app": "web"}}
# Bob may encrypt for the web; the unit may decrypt; the program may nothing.
STATEMENTS = [
    statement("user:alice", "kms:*", Sid="Alice"),
    statement("user:bob", "kms:Encrypt", Sid="Bob encrypts", Condition=WEB),
    statement("unit:nginx.service", "kms:Decrypt", Sid="The unit decrypts"),
    statement("exe:/usr/bin/evil", "kms:*", "Deny", Sid="Not this program"),
    statement("group:kms-auditors", "kms:Encrypt", "Deny", Sid="Not auditors"),
]


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


@pytest.fixture
async def key(service: Embedded) -> str:
    """A key with statements of every kind."""
    return await service.make_key(policy=document(*STATEMENTS))


async def simulate(
    service: Embedded, session: Session, actions: str | list[str], key: str | None = None, **members: Any
) -> SimulatePolicyResponse:
    listed = [actions] if isinstance(actions, str) else actions
    return await service.ask(session, SIMULATE_POLICY, SimulatePolicyRequest(actions=listed, key_id=key, **members))


async def decided(service: Embedded, session: Session, action: str, key: str | None, **members: Any) -> Outcome:
    [result] = (await simulate(service, session, action, key, **members)).results
    return result.decision


def sids(result: SimulationResult) -> list[str]:
    return [entry.sid for entry in result.trace if entry.origin == "key policy"]


async def test_everybody_may_ask_about_himself(service: Embedded, key: str) -> None:
    """By id, ARN or alias; the answer is what a request would get."""
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/a", target_key_id=key))

    for named in (key, key.rpartition("/")[2], "alias/a", service.arns.alias("alias/a")):
        answer = await simulate(service, BOB, ["kms:Encrypt", "kms:Decrypt"], named, encryption_context={"app": "web"})
        assert (answer.principal, answer.resource) == ("uid 1001 (bob)", key)
        encrypt, decrypt = answer.results
        assert (encrypt.action, encrypt.decision) == ("kms:Encrypt", Outcome.ALLOWED)
        assert encrypt.rule == 'key policy: "Bob encrypts" (statement 2)'
        assert (decrypt.action, decrypt.decision) == ("kms:Decrypt", Outcome.IMPLICIT_DENY)
    assert await decided(service, BOB, "kms:Encrypt", key) is Outcome.IMPLICIT_DENY


async def test_only_administrators_may_ask_about_others(service: Embedded, key: str) -> None:
    """Whatever the key's policy lets one do."""
    for session in (BOB, ALICE):
        with pytest.raises(AccessDeniedError, match="only administrators may ask about others"):
            await simulate(service, session, "kms:Encrypt", key, principals=["user:bob"])

    web = {"app": "web"}
    assert (
        await decided(
            service, ROOT, "kms:Encrypt", key, principals=["user:bob", "exe:/bin/app"], encryption_context=web
        )
        is Outcome.ALLOWED
    )


@pytest.mark.parametrize(
    ("principals", "action", "outcome"),
    [
        # What nobody said is undetermined, so the Deny of a program holds.
        (["user:bob"], "kms:Encrypt", Outcome.EXPLICIT_DENY),
        (["user:bob", "exe:/bin/app"], "kms:Encrypt", Outcome.ALLOWED),
        (["uid:1001", "exe:/bin/app"], "kms:Encrypt", Outcome.ALLOWED),
        (["user:bob", "exe:/usr/bin/evil"], "kms:Encrypt", Outcome.EXPLICIT_DENY),
        (["user:bob", "exe:/bin/app"], "kms:Decrypt", Outcome.IMPLICIT_DENY),
        (["unit:nginx.service", "exe:/bin/app"], "kms:Decrypt", Outcome.ALLOWED),
        (["user-unit:1001/nginx.service", "exe:/bin/app"], "kms:Decrypt", Outcome.IMPLICIT_DENY),
        # Groups of a user are looked up.
        (["user:carol", "exe:/bin/app"], "kms:Encrypt", Outcome.EXPLICIT_DENY),
        (["user:bob", "gid:501", "exe:/bin/app"], "kms:Encrypt", Outcome.EXPLICIT_DENY),
        (["group:kms-auditors", "exe:/bin/app"], "kms:Encrypt", Outcome.EXPLICIT_DENY),
    ],
)
async def test_principals_describe_one_process(
    service: Embedded, key: str, principals: list[str], action: str, outcome: Outcome
) -> None:
    """Conservatively: what is not given fits every Deny and no Allow."""
    service.names.users["carol"] = 1002
    service.names.memberships["carol"] = frozenset({501})
    given = {"principals": principals, "encryption_context": {"app": "web"}}

    assert await decided(service, ROOT, action, key, **given) is outcome


@pytest.mark.parametrize(
    ("principals", "told"),
    [
        (["user:alice"], "uid 1000 (alice)"),
        (["uid:77"], "uid 77"),
        (["user:alice", "unit:a.service"], "uid 1000 (alice), unit:a.service"),
        (["user-unit:1000/a.service"], "user-unit:1000/a.service"),
        (["group:kms-auditors"], "somebody in gid:501"),
        (["administrators"], "an administrator"),
        (["exe:/bin/a"], "exe:/bin/a"),
    ],
)
async def test_the_answer_says_whom_it_is_about(service: Embedded, principals: list[str], told: str) -> None:
    """As it was understood."""
    answer = await simulate(service, ROOT, "kms:ListKeys", principals=principals)

    assert answer.principal == told


async def test_who_administers_is_known_of_users_and_groups(service: Embedded) -> None:
    """By uid and by group; of somebody of whom only a unit is said it is not known."""
    service.names.memberships["bob"] = frozenset({502})

    for principals in (["uid:0"], ["user:bob"], ["gid:502"], ["administrators"]):
        assert await decided(service, ROOT, "kms:Seal", None, principals=principals) is Outcome.ALLOWED
    for principals in (["user:alice"], ["unit:a.service"]):
        assert await decided(service, ROOT, "kms:Seal", None, principals=principals) is Outcome.IMPLICIT_DENY


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"principals": ["user:bob", "uid:0"]}, "not one process"),
        ({"principals": ["unit:a.service", "user-unit:0/a.service"]}, "not in both"),
        ({"principals": ["user:nobody-here"]}, "does not exist"),
        ({"principals": ["nonsense"]}, "is none of"),
        ({"values": {"kms:Nonsense": ["1"]}}, "'kms:Nonsense' is no condition key"),
        ({"values": {"no name": ["1"]}}, "a name in Values is no condition key"),
        ({"actions": ["kms:Nonsense"]}, "no operation"),
        ({"encryption_context": {"a": "x" * 9000}}, "encryption context"),
    ],
    ids=["two uids", "two units", "nobody", "no principal", "condition key", "no name", "action", "context"],
)
async def test_what_makes_no_sense_is_refused(service: Embedded, members: dict[str, Any], message: str) -> None:
    """Instead of being answered as something else."""
    with pytest.raises(ValidationError, match=message):
        await simulate(service, ROOT, **{"actions": ["kms:Encrypt"], **members})


async def test_another_policy_is_looked_at_in_place_of_the_key_s(service: Embedded, key: str) -> None:
    """Before it is put, and for a key that is not there yet; one that is not valid is refused as when it is put."""
    other = document(statement("user:bob", "kms:Decrypt"))

    assert await decided(service, BOB, "kms:Decrypt", key, policy=other) is Outcome.ALLOWED
    assert await decided(service, BOB, "kms:Decrypt", None, policy=other) is Outcome.ALLOWED
    assert await decided(service, BOB, "kms:Encrypt", key, policy=other) is Outcome.IMPLICIT_DENY
    with pytest.raises(MalformedPolicyDocumentError, match="line 1"):
        await simulate(service, BOB, "kms:Encrypt", key, policy="{")
    with pytest.raises(LimitExceededError):
        await simulate(service, BOB, "kms:Encrypt", key, policy=" " * 40_000)


async def test_another_policy_tells_nothing_of_somebody_s_key(service: Embedded) -> None:
    """Its conditions could ask for the key's tags, which are for whom the key's own policy lets."""
    tags = [Tag(tag_key="customer", tag_value="hidden")]
    policy = document(statement(["user:alice", "administrators"], "kms:*"))
    arn = await service.make_key(ROOT, policy=policy, tags=tags)
    await service.ask(ROOT, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/named", target_key_id=arn))
    conditions = [
        {"StringLike": {"aws:ResourceTag/customer": "hid*"}},
        {"Null": {"aws:ResourceTag/customer": "false"}},
        {"ForAnyValue:StringLike": {"kms:ResourceAliases": "alias/na*"}},
    ]

    for condition in conditions:
        allow = document(statement("*", "kms:Encrypt", Condition=condition))
        deny = document(statement("*", "kms:Encrypt", "Deny", Condition=condition))
        [hidden] = (await simulate(service, BOB, "kms:Encrypt", arn, policy=allow)).results
        assert hidden.decision is Outcome.IMPLICIT_DENY
        assert "cannot be determined" in hidden.trace[0].reason
        assert await decided(service, BOB, "kms:Encrypt", arn, policy=deny) is Outcome.EXPLICIT_DENY
        assert await decided(service, ALICE, "kms:Encrypt", arn, policy=allow) is Outcome.ALLOWED
        given = {"aws:ResourceTag/customer": ["hide"], "kms:ResourceAliases": ["alias/name"]}
        assert await decided(service, BOB, "kms:Encrypt", arn, policy=allow, values=given) is Outcome.ALLOWED


async def test_values_stand_in_for_what_is_asked(service: Embedded) -> None:
    """In any case of the name; none at all means that the request has it not."""
    office = {"NumericEquals": {"kmsd:Uid": "77"}, "StringEquals": {"kms:KeySpec": "SYMMETRIC_DEFAULT"}}
    absent = {"Null": {"kms:KeySpec": "true"}}
    policy = document(
        statement("user:bob", "kms:Encrypt", Condition=office), statement("user:bob", "kms:Decrypt", Condition=absent)
    )
    arn = await service.make_key(policy=policy, bypass_policy_lockout_safety_check=True)

    assert await decided(service, BOB, "kms:Encrypt", arn) is Outcome.IMPLICIT_DENY
    assert await decided(service, BOB, "kms:Encrypt", arn, values={"KMSD:uid": ["77"]}) is Outcome.ALLOWED
    assert await decided(service, BOB, "kms:Decrypt", arn, values={"kms:KeySpec": []}) is Outcome.ALLOWED


async def test_actions_are_compared_without_regard_to_case(service: Embedded, key: str) -> None:
    """And told as the declarations write them."""
    [result] = (await simulate(service, ALICE, "KMS:encrypt", key)).results

    assert (result.action, result.decision) == ("kms:Encrypt", Outcome.ALLOWED)


async def test_the_trace_tells_why_each_statement_holds_or_not(service: Embedded, key: str) -> None:
    """With what the request has and what was wanted."""
    [result] = (await simulate(service, BOB, "kms:Encrypt", key, encryption_context={"app": "db"})).results

    [entry] = [one for one in result.trace if one.sid == "Bob encrypts"]
    assert (entry.origin, entry.number, entry.effect, entry.holds) == ("key policy", 2, "Allow", False)
    assert "db" in entry.reason
    assert "web" in entry.reason


async def test_who_may_not_read_a_policy_sees_what_speaks_of_him(service: Embedded, key: str) -> None:
    """Who may, and administrators, see all statements about the action."""
    [of_bob] = (await simulate(service, BOB, "kms:Encrypt", key)).results
    [of_alice] = (await simulate(service, ALICE, "kms:Encrypt", key)).results
    [of_root] = (await simulate(service, ROOT, "kms:Encrypt", key)).results
    everything = {"Alice", "Bob encrypts", "Not this program", "Not auditors"}

    assert sids(of_bob) == ["Bob encrypts"]
    assert "alice" not in str(of_bob)
    assert set(sids(of_alice)) == set(sids(of_root)) == everything


async def test_traces_are_left_out_and_cut(service: Embedded) -> None:
    """Over all actions there are so many entries; every decision is told."""
    actions = ["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey"]
    many = [statement("uid:1000", "*") for _ in range(200)]
    arn = await service.make_key(policy=document(*many))

    answer = await simulate(service, ALICE, actions, arn)
    bare = await simulate(service, ALICE, actions, arn, trace=False)

    assert sum(len(one.trace) for one in answer.results) == MAX_TRACE
    assert [one.decision for one in answer.results] == [Outcome.ALLOWED] * 4
    assert [one.trace for one in bare.results] == [[]] * 4


async def test_a_simulation_is_recorded_with_the_key(service: Embedded, key: str) -> None:
    """Who asked about whom; it changes nothing."""
    await simulate(service, ROOT, "kms:Encrypt", key, principals=["user:bob"])

    record = service.newest()
    assert (record["eventName"], record["readOnly"]) == ("SimulatePolicy", True)
    assert record["resources"] == [{"ARN": key}]
    assert record["requestParameters"]["principals"] == ["user:bob"]


async def test_grants_are_looked_at_as_for_a_request(service: Embedded, key: str) -> None:
    """They are the grantee's own, so that he is shown them."""
    constraints = GrantConstraints(encryption_context_subset={"app": "web"})
    request = CreateGrantRequest(
        key_id=key, grantee_principal="user:bob", operations=[GrantOperation.DECRYPT], constraints=constraints
    )
    granted = await service.ask(ALICE, CREATE_GRANT, request)

    [web] = (await simulate(service, BOB, "kms:Decrypt", key, encryption_context={"app": "web"})).results
    [bare] = (await simulate(service, BOB, "kms:Decrypt", key)).results

    assert (web.decision, web.rule) == (Outcome.ALLOWED, f"grant {granted.grant_id}")
    assert bare.decision is Outcome.IMPLICIT_DENY
    assert [(entry.origin, entry.holds) for entry in bare.trace] == [(f"grant {granted.grant_id}", False)]


async def test_a_key_that_is_not_there_is_told(service: Embedded) -> None:
    """As for any request."""
    with pytest.raises(NotFoundError):
        await simulate(service, BOB, "kms:Encrypt", "alias/none")


async def refused(service: Embedded, session: Session, key: str, **context: str) -> str:
    """The id of a request that was refused."""
    request = EncryptRequest(key_id=key, plaintext=memoryview(b"x"), encryption_context=context)
    with pytest.raises(AccessDeniedError) as refusal:
        await service.ask(session, ENCRYPT, request)
    return refusal.value.request_id


async def explain(service: Embedded, session: Session, request_id: str) -> ExplainRefusalResponse:
    return await service.ask(session, EXPLAIN_REFUSAL, ExplainRefusalRequest(request_id=request_id))


async def test_a_refusal_is_explained_as_it_was_decided(service: Embedded, key: str) -> None:
    """By its id or the first eight digits, from what the request said, whatever the policy says now."""
    request_id = await refused(service, BOB, key, app="db")

    for asked in (request_id, request_id[:8]):
        told = await explain(service, BOB, asked)
        assert (told.request_id, told.operation) == (request_id, "Encrypt")
        assert (told.principal, told.resource) == ("uid 1001 (bob)", key)
        assert (told.result.action, told.result.decision) == ("kms:Encrypt", Outcome.IMPLICIT_DENY)
        assert sids(told.result) == ["Bob encrypts"]
        assert "db" in told.result.trace[0].reason


async def test_a_refusal_is_explained_to_whom_it_concerns(service: Embedded, key: str) -> None:
    """To the refused uid and to administrators; to others it is as if there were none."""
    request_id = await refused(service, BOB, key)

    assert set(sids((await explain(service, ROOT, request_id)).result)) > {"Alice", "Bob encrypts"}
    with pytest.raises(NotFoundError, match="kms audit"):
        await explain(service, ALICE, request_id)
    with pytest.raises(NotFoundError, match="kms audit"):
        await explain(service, BOB, "0" * 32)


async def test_every_kind_of_request_that_policies_refuse_is_explained(service: Embedded, key: str) -> None:
    """Of both keys, of none, and one that changes something; an explicit deny as such."""
    blob = (await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=key, plaintext=memoryview(b"x")))).ciphertext_blob
    requests: list[tuple[Any, Any, str]] = [
        (DECRYPT, DecryptRequest(ciphertext_blob=blob), "kms:Decrypt"),
        (DESCRIBE_KEY, DescribeKeyRequest(key_id=key), "kms:DescribeKey"),
        (CREATE_ALIAS, CreateAliasRequest(alias_name="alias/b", target_key_id=key), "kms:CreateAlias"),
    ]
    for operation, request, action in requests:
        with pytest.raises(AccessDeniedError) as refusal:
            await service.ask(BOB, operation, request)
        assert (await explain(service, BOB, refusal.value.request_id)).result.action == action
    outside = person(1000, gid=1000)
    with pytest.raises(AccessDeniedError) as refusal:
        await service.ask(outside, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/b", target_key_id=key))
    assert (await explain(service, outside, refusal.value.request_id)).resource == service.arns.alias("alias/b")
    auditor = person(1001, user="bob", gid=501)
    told = await explain(service, BOB, await refused(service, auditor, key, app="web"))
    assert told.result.decision is Outcome.EXPLICIT_DENY


async def test_what_is_not_recorded_is_not_explained(open_service: OpenService) -> None:
    """Above his audit budget nobody's refusals take more than a count."""
    limits = Limits(audit_bytes_per_second_per_uid=1024, audit_burst_bytes_per_uid=16 * 1024)
    service = await open_service(limits=limits)
    key = await service.make_key()
    request_id = await refused(service, BOB, key)
    while not service.accounts.of(BOB).exceeded:
        await refused(service, BOB, key)

    later = await refused(service, BOB, key)

    assert service.refusals.find(request_id)
    assert service.refusals.find(later) is None


async def test_who_is_refused_all_the_time_has_some_of_it_explained(service: Embedded, key: str) -> None:
    """A trace takes longer than a decision; who asks less often has all of it explained."""
    refusals = [await refused(service, BOB, key) for _ in range(300)]

    explained = [service.refusals.find(one) is not None for one in refusals]
    assert 200 < sum(explained) < 300
    service.now += 1
    assert service.refusals.find(await refused(service, BOB, key))
    assert service.refusals.find(await refused(service, person(1002, user="carol", gid=1002), key))


async def test_errors_that_no_policy_made_are_not_explained(service: Embedded, key: str) -> None:
    """They say themselves what is wrong."""
    with pytest.raises(KmsError) as error:
        await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=b"nonsense"))

    with pytest.raises(NotFoundError):
        await explain(service, ALICE, error.value.request_id)
