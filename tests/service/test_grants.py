"""Grants: who may make and take them, whom they are for, and what they permit."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from kmsd.access.decision import HostPolicy
from kmsd.api.errors import (
    AccessDeniedError,
    DisabledError,
    DryRunOperationError,
    InvalidGrantIdError,
    InvalidGrantTokenError,
    LimitExceededError,
    NotFoundError,
    UnsupportedOperationError,
    ValidationError,
)
from kmsd.api.grants import (
    CREATE_GRANT,
    LIST_GRANTS,
    LIST_RETIRABLE_GRANTS,
    RETIRE_GRANT,
    REVOKE_GRANT,
    CreateGrantRequest,
    CreateGrantResponse,
    GrantConstraints,
    GrantListEntry,
    GrantOperation,
    ListGrantsRequest,
    ListRetirableGrantsRequest,
    RetireGrantRequest,
    RevokeGrantRequest,
)
from kmsd.api.keys import DESCRIBE_KEY, DISABLE_KEY, DescribeKeyRequest, EnableKeyRequest
from kmsd.api.policies import PUT_KEY_POLICY, PutKeyPolicyRequest
from kmsd.api.shapes import KeyManager
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.service import grants as grants_module
from kmsd.service.call import Session
from kmsd.store.base import Replace
from tests.support.embedded import ACCOUNT, ALICE, BOB, ROOT, Embedded, Gate, person

CAROL = person(1002, user="carol", gid=501)
ENCRYPTING = [GrantOperation.ENCRYPT]


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def statement(principal: str, action: Any = "kms:*", effect: str = "Allow", **members: Any) -> dict[str, Any]:
    return {"Effect": effect, "Principal": {"Unix": principal}, "Action": action, "Resource": "*", **members}


ALICE_ONLY = document(statement("user:alice"))


async def grant(
    service: Embedded,
    arn: str,
    grantee: str = "user:bob",
    operations: list[GrantOperation] = ENCRYPTING,
    session: Session = ALICE,
    **members: Any,
) -> CreateGrantResponse:
    request = CreateGrantRequest(key_id=arn, grantee_principal=grantee, operations=operations, **members)
    return await service.ask(session, CREATE_GRANT, request)


async def encrypt(service: Embedded, arn: str, session: Session = BOB, **context: str) -> None:
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"), encryption_context=context)
    await service.ask(session, ENCRYPT, request)


async def revoke(service: Embedded, arn: str, grant_id: str, session: Session = ALICE, **members: Any) -> None:
    await service.ask(session, REVOKE_GRANT, RevokeGrantRequest(key_id=arn, grant_id=grant_id, **members))


async def retire(service: Embedded, session: Session, **members: Any) -> None:
    await service.ask(session, RETIRE_GRANT, RetireGrantRequest(**members))


async def listed(service: Embedded, arn: str, session: Session = ALICE, **members: Any) -> list[GrantListEntry]:
    return (await service.ask(session, LIST_GRANTS, ListGrantsRequest(key_id=arn, **members))).grants


async def test_a_grant_permits_its_operations_and_nothing_else(service: Embedded) -> None:
    """To its grantee, on its key."""
    arn, other = await service.make_key(), await service.make_key()
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)

    made = await grant(service, arn)

    await encrypt(service, arn)
    assert service.newest()["additionalEventData"]["decision"] == f"grant {made.grant_id}"
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    with pytest.raises(AccessDeniedError):
        await encrypt(service, other)
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn, CAROL)


@pytest.mark.parametrize(
    ("grantee", "session"),
    [
        ("uid:1001", BOB),
        ("gid:1001", BOB),
        ("group:kms-auditors", CAROL),
        ("arn:aws:iam::123456789012:user/bob", BOB),
        ("administrators", ROOT),
        ("arn:aws:iam::123456789012:root", ROOT),
    ],
)
async def test_a_grant_is_for_whom_it_names(service: Embedded, grantee: str, session: Session) -> None:
    """In each form that policies have, and for nobody else."""
    arn = await service.make_key(policy=ALICE_ONLY)

    await grant(service, arn, grantee)

    await encrypt(service, arn, session)
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn, person(4000, user=None, gid=4000))


@pytest.mark.parametrize(
    ("grantee", "problem"),
    [
        ("user:nobody-here", "does not exist on this host"),
        ("group:nobody-here", "does not exist on this host"),
        ("exe:/usr/bin/app", "exe: proves nothing"),
        ("bob", "is none of"),
        ("uid:x", "decimal number"),
        ("arn:aws:iam::999999999999:user/bob", "is neither arn:aws:iam::123456789012:root nor"),
        ("arn:aws:iam::123456789012:role/bob", "is neither arn:aws:iam::123456789012:root nor"),
        ("arn:aws:kms:x:123456789012:key/a", "is neither arn:aws:iam::123456789012:root nor"),
    ],
)
async def test_whom_no_grant_can_be_for_is_told(service: Embedded, grantee: str, problem: str) -> None:
    """As the grantee and as who may retire it."""
    arn = await service.make_key()

    with pytest.raises(ValidationError, match=problem):
        await grant(service, arn, grantee)
    with pytest.raises(ValidationError, match=problem):
        await grant(service, arn, retiring_principal=grantee)
    assert await listed(service, arn) == []


async def test_a_grant_for_an_account_that_was_made_anew_is_suspended(service: Embedded) -> None:
    """The name leads elsewhere: neither the old id nor the new one inherits anything."""
    arn = await service.make_key()
    await grant(service, arn, "user:bob", retiring_principal="user:bob")
    await encrypt(service, arn)

    service.names.users = {"alice": 1000, "bob": 1077}
    service.now += 61

    for session in (BOB, person(1077, user="bob", gid=1077)):
        with pytest.raises(AccessDeniedError):
            await encrypt(service, arn, session)
    [entry] = await listed(service, arn)
    with pytest.raises(AccessDeniedError):
        await retire(service, BOB, key_id=arn, grant_id=entry.grant_id)
    service.names.users["bob"] = 1001
    service.now += 61
    await encrypt(service, arn)


async def test_a_constraint_compares_the_encryption_context(service: Embedded) -> None:
    """Exactly these pairs, or at least these."""
    arn = await service.make_key()
    exactly = GrantConstraints(encryption_context_equals={"app": "db"})
    at_least = GrantConstraints(encryption_context_subset={"app": "web"})
    await grant(service, arn, constraints=exactly)
    await grant(service, arn, constraints=at_least)

    await encrypt(service, arn, app="db")
    await encrypt(service, arn, app="web")
    await encrypt(service, arn, app="web", more="yes")

    contexts: list[dict[str, str]] = [{}, {"app": "db", "more": "yes"}, {"app": "mail"}, {"App": "db"}]
    for context in contexts:
        with pytest.raises(AccessDeniedError):
            await encrypt(service, arn, BOB, **context)


async def test_constraints_are_ignored_where_there_is_no_context(service: Embedded) -> None:
    """DescribeKey and RetireGrant, as AWS has it."""
    arn = await service.make_key()
    constraints = GrantConstraints(encryption_context_equals={"app": "db"})
    operations = [GrantOperation.DESCRIBE_KEY, GrantOperation.RETIRE_GRANT]
    made = await grant(service, arn, operations=operations, constraints=constraints)

    await service.ask(BOB, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    await retire(service, BOB, grant_token=made.grant_token)


@pytest.mark.parametrize(
    "constraints",
    [
        GrantConstraints(encryption_context_equals={}),
        GrantConstraints(encryption_context_subset={}),
        GrantConstraints(encryption_context_equals={"a": "b"}, encryption_context_subset={"a": "b"}),
        GrantConstraints(encryption_context_equals={str(n): "" for n in range(9)}),
        GrantConstraints(encryption_context_subset={"a": "b" * 384}),
    ],
    ids=["no pairs equal", "no pairs at least", "both", "nine pairs", "385 characters"],
)
async def test_constraints_that_aws_has_not_are_refused(service: Embedded, constraints: GrantConstraints) -> None:
    """One constraint of one to eight pairs that have 384 characters together."""
    arn = await service.make_key()

    with pytest.raises(ValidationError, match=r"constraint|not both"):
        await grant(service, arn, constraints=constraints)
    await grant(service, arn, constraints=GrantConstraints(encryption_context_equals={str(n): "" for n in range(8)}))
    await grant(service, arn, constraints=GrantConstraints(encryption_context_subset={"a": "b" * 383}))


async def test_a_deny_stands_above_every_grant(service: Embedded) -> None:
    """A grant only allows."""
    denied = document(statement("user:alice"), statement("user:bob", "kms:Encrypt", "Deny"))
    arn = await service.make_key(policy=denied)

    await grant(service, arn)

    with pytest.raises(AccessDeniedError, match="explicit deny"):
        await encrypt(service, arn)


async def test_a_named_grant_that_is_asked_for_again_is_the_same(service: Embedded) -> None:
    """Only if it is the same in everything; its token is a new one. Without a name each is new."""
    arn = await service.make_key()
    first = await grant(service, arn, name="backup", operations=[GrantOperation.ENCRYPT, GrantOperation.DECRYPT])

    again = await grant(service, arn, name="backup", operations=[GrantOperation.DECRYPT, GrantOperation.ENCRYPT] * 2)
    others = [
        await grant(service, arn, name="backup"),
        await grant(service, arn, name="backup", retiring_principal="user:alice"),
        await grant(service, arn, "uid:1001", name="backup"),
        await grant(service, arn, name="Backup"),
        await grant(service, arn),
        await grant(service, arn),
    ]

    assert again.grant_id == first.grant_id
    assert again.grant_token != first.grant_token
    assert len({first.grant_id, *(one.grant_id for one in others)}) == 7
    assert len(await listed(service, arn)) == 7
    await retire(service, ALICE, key_id=arn, grant_id=others[1].grant_id)


async def test_a_grant_is_listed_as_it_was_made(service: Embedded) -> None:
    """With the principals as they were said, and an empty name if it has none."""
    arn = await service.make_key()
    constraints = GrantConstraints(encryption_context_subset={"app": "db"})
    grantee = "arn:aws:iam::123456789012:user/bob"
    made = await grant(service, arn, grantee, constraints=constraints, retiring_principal="user:alice", name="n")
    plain = await grant(service, arn, "gid:500")

    entries = {entry.grant_id: entry for entry in await listed(service, arn)}

    entry = entries[made.grant_id]
    assert (entry.key_id, entry.name, entry.grantee_principal, entry.retiring_principal) == (
        arn,
        "n",
        grantee,
        "user:alice",
    )
    assert (entry.operations, entry.constraints) == (ENCRYPTING, constraints)
    assert entry.issuing_account == "arn:aws:iam::123456789012:root"
    entry = entries[plain.grant_id]
    assert (entry.name, entry.retiring_principal, entry.constraints) == ("", None, None)


async def test_grants_are_found_by_id_and_by_grantee(service: Embedded) -> None:
    """Whichever way the grantee is written."""
    arn, other = await service.make_key(), await service.make_key()
    bobs, carols = await grant(service, arn), await grant(service, arn, "uid:1002")

    for grantee in ("user:bob", "uid:1001", "arn:aws:iam::123456789012:user/bob"):
        assert [one.grant_id for one in await listed(service, arn, grantee_principal=grantee)] == [bobs.grant_id]
    assert [one.grant_id for one in await listed(service, arn, grant_id=carols.grant_id)] == [carols.grant_id]
    assert await listed(service, arn, grant_id=carols.grant_id, grantee_principal="user:bob") == []
    assert await listed(service, other, grant_id=carols.grant_id) == []
    with pytest.raises(InvalidGrantIdError):
        await listed(service, arn, grant_id="no id")
    with pytest.raises(AccessDeniedError):
        await listed(service, arn, BOB)


async def test_the_pages_of_grants_are_all_grants(service: Embedded) -> None:
    """In order, each once."""
    arn = await service.make_key()
    made = {(await grant(service, arn, retiring_principal="user:alice")).grant_id for _ in range(5)}

    for operation, shape, members in (
        (LIST_GRANTS, ListGrantsRequest, {"key_id": arn}),
        (LIST_RETIRABLE_GRANTS, ListRetirableGrantsRequest, {"retiring_principal": "user:alice"}),
    ):
        found, marker = [], None
        while True:
            page = await service.ask(ALICE, operation, shape(limit=2, marker=marker, **members))
            found += [one.grant_id for one in page.grants]
            marker = page.next_marker
            if not page.truncated:
                break
        assert found == sorted(made)


async def test_one_s_own_retirable_grants_are_listed(service: Embedded) -> None:
    """Of all keys; other principals' only to administrators."""
    first, second = await service.make_key(), await service.make_key()
    made = [await grant(service, arn, retiring_principal="user:bob") for arn in (first, second)]
    await grant(service, first, retiring_principal="user:alice")
    request = ListRetirableGrantsRequest(retiring_principal="user:bob")

    for session in (BOB, ROOT):
        found = await service.ask(session, LIST_RETIRABLE_GRANTS, request)
        assert [one.grant_id for one in found.grants] == sorted(one.grant_id for one in made)
    with pytest.raises(AccessDeniedError, match="only administrators"):
        await service.ask(ALICE, LIST_RETIRABLE_GRANTS, request)


async def test_retirable_grants_of_an_account_that_was_made_anew_are_not_shown(service: Embedded) -> None:
    """Neither to who has the old id nor to who has the name; administrators see them still."""
    arn = await service.make_key()
    made = await grant(service, arn, "uid:4000", retiring_principal="user:bob")
    service.names.users = {"root": 0, "alice": 1000, "eve": 1001, "bob": 1077}
    eve, another = person(1001, user="eve", gid=1001), person(1077, user="bob", gid=1077)
    request = ListRetirableGrantsRequest(retiring_principal="uid:1001")

    assert (await service.ask(eve, LIST_RETIRABLE_GRANTS, request)).grants == []
    by_name = ListRetirableGrantsRequest(retiring_principal="user:bob")
    assert (await service.ask(another, LIST_RETIRABLE_GRANTS, by_name)).grants == []
    [entry] = (await service.ask(ROOT, LIST_RETIRABLE_GRANTS, request)).grants
    assert entry.grant_id == made.grant_id


async def test_a_revoked_grant_permits_nothing(service: Embedded) -> None:
    """From the next request on. Whoever revokes needs the permission; the grantee has none."""
    arn = await service.make_key()
    made = await grant(service, arn)
    await encrypt(service, arn)
    with pytest.raises(AccessDeniedError):
        await revoke(service, arn, made.grant_id, BOB)

    await revoke(service, arn, made.grant_id)

    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)
    assert await listed(service, arn) == []
    with pytest.raises(InvalidGrantIdError):
        await revoke(service, arn, made.grant_id)


async def test_a_grant_is_revoked_by_its_own_key_only(service: Embedded) -> None:
    """Who may revoke grants of one key cannot take those of another."""
    arn, other = await service.make_key(), await service.make_key()
    made = await grant(service, arn)

    for key, grant_id in ((other, made.grant_id), (arn, "ab" * 32), (arn, "no id"), (arn, made.grant_id.upper())):
        with pytest.raises(InvalidGrantIdError):
            await revoke(service, key, grant_id)
    await encrypt(service, arn)


async def test_two_who_revoke_a_grant_at_once_do_so_once(service: Embedded) -> None:
    """The second is told that it is gone."""
    arn = await service.make_key()
    made = await grant(service, arn)

    results = await asyncio.gather(*(revoke(service, arn, made.grant_id) for _ in range(3)), return_exceptions=True)

    assert [type(one) for one in results].count(InvalidGrantIdError) == 2
    assert results.count(None) == 1


async def test_who_may_retire_is_said_by_the_grant(service: Embedded) -> None:
    """Its retiring principal; its grantee if RetireGrant is among its operations."""
    arn = await service.make_key()
    by_carol = await grant(service, arn, retiring_principal="user:root")
    by_bob = await grant(service, arn, operations=[GrantOperation.ENCRYPT, GrantOperation.RETIRE_GRANT])

    for session, made in ((BOB, by_carol), (CAROL, by_bob), (ALICE, by_bob)):
        with pytest.raises(AccessDeniedError, match="kms:RetireGrant"):
            await retire(service, session, grant_token=made.grant_token)
    await retire(service, person(0, user="root", gid=0), grant_token=by_carol.grant_token)
    await retire(service, BOB, key_id=arn, grant_id=by_bob.grant_id)

    assert await listed(service, arn) == []
    assert service.lines()[-2]["additionalEventData"]["grantId"] == by_bob.grant_id
    assert service.lines()[-2]["resources"] == [{"accountId": "123456789012", "type": "AWS::KMS::Key", "ARN": arn}] or (
        arn in json.dumps(service.lines()[-2]["resources"])
    )


async def test_one_grant_s_retire_grant_says_nothing_of_another(service: Embedded) -> None:
    """Who may retire one grant of a key may retire that one."""
    arn = await service.make_key()
    await grant(service, arn, operations=[GrantOperation.RETIRE_GRANT])
    made = await grant(service, arn)

    with pytest.raises(AccessDeniedError):
        await retire(service, BOB, key_id=arn, grant_id=made.grant_id)


async def test_a_key_policy_does_not_let_anybody_retire(service: Embedded) -> None:
    """AWS: kms:RetireGrant is not effective in a key policy, but it lets administrators in; a Deny counts anywhere."""
    own = await service.make_key(policy=document(statement("user:alice"), statement("user:bob", "kms:RetireGrant")))
    rooted = await service.make_key(policy=document(statement("user:alice"), statement("administrators")))
    denying = await service.make_key(
        policy=document(statement("user:alice"), statement("user:bob", "kms:RetireGrant", "Deny"))
    )
    made = {arn: await grant(service, arn, "uid:1", retiring_principal="user:bob") for arn in (own, rooted, denying)}

    for session, arn in ((ALICE, own), (ROOT, own), (ALICE, rooted), (BOB, denying)):
        with pytest.raises(AccessDeniedError):
            await retire(service, session, grant_token=made[arn].grant_token)
    await retire(service, BOB, grant_token=made[own].grant_token)
    await retire(service, ROOT, grant_token=made[rooted].grant_token)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"key_id": "K"},
        {"grant_id": "ab" * 32},
        {"grant_token": "T", "key_id": "K"},
        {"grant_token": "T", "grant_id": "ab" * 32},
        {"grant_token": "T", "key_id": "K", "grant_id": "ab" * 32},
    ],
)
async def test_the_grant_to_retire_is_named_in_one_way(service: Embedded, members: dict[str, Any]) -> None:
    """By its token, or by key and id."""
    arn = await service.make_key()
    made = await grant(service, arn, retiring_principal="user:bob")
    named = {"K": arn, "T": made.grant_token}

    with pytest.raises(ValidationError, match="by its token, or else"):
        await retire(service, BOB, **{name: named.get(value, value) for name, value in members.items()})
    with pytest.raises(NotFoundError):
        await retire(service, BOB, key_id="alias/a", grant_id=made.grant_id)
    with pytest.raises(InvalidGrantTokenError):
        await retire(service, BOB, grant_token=made.grant_token[:-1])
    await retire(service, BOB, grant_token=made.grant_token)
    with pytest.raises(NotFoundError, match="does not exist any more"):
        await retire(service, BOB, grant_token=made.grant_token)


async def test_no_grant_is_made_by_who_lost_the_permission_meanwhile(service: Embedded) -> None:
    """However many were asked for before the policy was changed: once that was answered, none appears any more."""
    giving = statement("user:bob", "kms:CreateGrant")
    arn = await service.make_key(policy=document(statement("user:alice"), giving))
    gate = service.store.gates["commit"] = Gate()
    first, second = (asyncio.ensure_future(grant(service, arn, "user:root", session=BOB, name=name)) for name in "ab")
    await gate.arrived.wait()
    await asyncio.sleep(0.05)

    service.store.gates.clear()
    await service.ask(ALICE, PUT_KEY_POLICY, PutKeyPolicyRequest(key_id=arn, policy=ALICE_ONLY))
    gate.opened.set()

    await asyncio.wait({first, second})
    assert isinstance(first.exception(), AccessDeniedError)
    assert isinstance(second.exception(), AccessDeniedError)
    assert await listed(service, arn) == []


async def test_no_grant_is_made_under_one_that_went_at_the_last_moment(service: Embedded) -> None:
    """After the request was let, and before the grant was committed."""
    arn = await service.make_key(policy=ALICE_ONLY)
    parent = await grant(service, arn, operations=[GrantOperation.CREATE_GRANT, *ENCRYPTING])
    gate = service.store.gates["commit"] = Gate()
    child = asyncio.ensure_future(grant(service, arn, "user:root", session=BOB))
    await gate.arrived.wait()

    service.store.gates.clear()
    await revoke(service, arn, parent.grant_id)
    gate.opened.set()

    with pytest.raises(AccessDeniedError):
        await child
    assert await listed(service, arn) == []


async def test_a_grant_is_made_though_its_key_is_changed_meanwhile(service: Embedded) -> None:
    """By somebody who does not take the permission away."""
    arn = await service.make_key()
    gate = service.store.gates["commit"] = Gate()
    making = asyncio.ensure_future(grant(service, arn))
    await gate.arrived.wait()

    service.store.gates.clear()
    await service.ask(ALICE, PUT_KEY_POLICY, PutKeyPolicyRequest(key_id=arn, policy=ALICE_ONLY))
    gate.opened.set()

    made = await making
    assert [one.grant_id for one in await listed(service, arn)] == [made.grant_id]


async def test_nobody_waits_for_who_makes_grants(service: Embedded) -> None:
    """Neither who takes grants of the same key away nor who makes grants of another."""
    arn, other = await service.make_key(), await service.make_key()
    made = await grant(service, arn)
    gate = service.store.gates["count_grants"] = Gate()
    slow = asyncio.ensure_future(grant(service, arn, "uid:4000"))
    await gate.arrived.wait()
    service.store.gates.clear()

    await revoke(service, arn, made.grant_id)
    await grant(service, other)

    assert not slow.done()
    gate.opened.set()
    await slow


async def test_a_dry_run_changes_nothing(service: Embedded) -> None:
    """And tells what the request would have met."""
    arn = await service.make_key()
    made = await grant(service, arn, retiring_principal="user:alice")

    for attempt in (
        grant(service, arn, dry_run=True),
        revoke(service, arn, made.grant_id, dry_run=True),
        retire(service, ALICE, grant_token=made.grant_token, dry_run=True),
    ):
        with pytest.raises(DryRunOperationError):
            await attempt
    for refused in (
        grant(service, arn, session=BOB, dry_run=True),
        revoke(service, arn, made.grant_id, BOB, dry_run=True),
        retire(service, BOB, grant_token=made.grant_token, dry_run=True),
    ):
        with pytest.raises(AccessDeniedError):
            await refused
    with pytest.raises(ValidationError):
        await grant(service, arn, "user:nobody-here", dry_run=True)

    assert len(await listed(service, arn)) == 1


async def test_tokens_are_names_and_never_permit(service: Embedded) -> None:
    """A well-formed one is taken in every operation that has them; one that is not is refused, whoever asks."""
    arn = await service.make_key()
    made = await grant(service, arn, "uid:1")
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"), grant_tokens=[made.grant_token])

    await service.ask(ALICE, ENCRYPT, request)
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, request)

    wrong = made.grant_token[:-1] + ("A" if made.grant_token[-1] != "A" else "B")
    for token in (wrong, "x", "", "=", made.grant_token + "A", "€" * 76):
        wanted = ValidationError if not token else InvalidGrantTokenError
        with pytest.raises(wanted) as error:
            await service.ask(ALICE, ENCRYPT, msgspec.structs.replace(request, grant_tokens=[made.grant_token, token]))
        assert made.grant_token[:20] not in error.value.message
        with pytest.raises(wanted):
            await service.ask(BOB, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn, grant_tokens=[token]))


async def test_what_is_recorded_of_a_grant(service: Embedded) -> None:
    """Its id and what it permits; its token never."""
    arn = await service.make_key()

    made = await grant(service, arn, name="backup", constraints=GrantConstraints(encryption_context_equals={"a": "b"}))

    line = service.newest()
    assert line["eventName"] == "CreateGrant"
    assert line["responseElements"] == {"grantId": made.grant_id}
    assert line["requestParameters"]["granteePrincipal"] == "user:bob"
    assert line["requestParameters"]["operations"] == ["Encrypt"]
    assert line["requestParameters"]["constraints"]["encryptionContextEquals"] == {"a": "b"}
    assert made.grant_token not in json.dumps(service.lines())


async def test_a_grant_needs_the_permission_and_a_key_that_is_enabled(service: Embedded) -> None:
    """Who may use a key may not let others use it."""
    arn = await service.make_key(policy=document(statement("user:alice"), statement("user:bob", "kms:Encrypt")))
    with pytest.raises(AccessDeniedError):
        await grant(service, arn, session=BOB)

    await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))

    with pytest.raises(DisabledError):
        await grant(service, arn)


async def test_a_key_has_a_limited_number_of_grants(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's 50,000, also when many are asked for at once; one that is there already is none more."""
    monkeypatch.setattr(grants_module, "GRANTS_PER_KEY", 3)
    arn = await service.make_key()

    made = await asyncio.gather(*(grant(service, arn, name="n" * n) for n in range(1, 6)), return_exceptions=True)

    assert [type(one) for one in made].count(LimitExceededError) == 2
    assert len(await listed(service, arn)) == 3
    [first, *_] = (n for n, one in enumerate(made, 1) if isinstance(one, CreateGrantResponse))
    await grant(service, arn, name="n" * first)


async def test_keys_that_kmsd_manages_have_no_grants(service: Embedded) -> None:
    """They are for their owners only."""
    arn = await service.make_key()
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    managed = msgspec.structs.replace(row, key_manager=KeyManager.AWS, version=2)
    await service.store.commit("m", [Replace(managed)])

    with pytest.raises(UnsupportedOperationError):
        await grant(service, arn)


class TestGrantsUnderGrants:
    """Who may make grants by a grant can give on what he has, and no more."""

    GIVING = (GrantOperation.CREATE_GRANT, GrantOperation.ENCRYPT, GrantOperation.DESCRIBE_KEY)

    async def test_a_child_permits_some_of_what_its_parent_does(self, service: Embedded) -> None:
        """Never anything else; the parent's id is kept."""
        arn = await service.make_key()
        parent = await grant(service, arn, operations=[*self.GIVING])

        child = await grant(service, arn, "user:root", session=BOB)

        await encrypt(service, arn, ROOT)
        row = await service.store.grant(child.grant_id)
        assert row is not None
        assert (row.parent, row.issuer) == (parent.grant_id, "uid:1001")
        with pytest.raises(AccessDeniedError, match="no grant that lets the caller create grants permits all"):
            await grant(service, arn, "user:root", [GrantOperation.DECRYPT], session=BOB)
        with pytest.raises(AccessDeniedError):
            await grant(service, arn, "user:root", [GrantOperation.ENCRYPT, GrantOperation.DECRYPT], session=BOB)

    async def test_several_parents_are_not_added_up(self, service: Embedded) -> None:
        """One of them has to cover all of it."""
        arn = await service.make_key()
        await grant(service, arn, operations=[GrantOperation.CREATE_GRANT, GrantOperation.ENCRYPT])
        await grant(service, arn, operations=[GrantOperation.CREATE_GRANT, GrantOperation.DECRYPT])
        await grant(service, arn, operations=[GrantOperation.DESCRIBE_KEY])

        for operations in ([GrantOperation.ENCRYPT, GrantOperation.DECRYPT], [GrantOperation.DESCRIBE_KEY]):
            with pytest.raises(AccessDeniedError):
                await grant(service, arn, "user:root", operations, session=BOB)
        for operation in (GrantOperation.ENCRYPT, GrantOperation.DECRYPT):
            await grant(service, arn, "user:root", [operation], session=BOB)

    async def test_a_child_s_constraint_is_as_strict(self, service: Embedded) -> None:
        """The same, or a stricter one."""
        arn = await service.make_key()
        constraints = GrantConstraints(encryption_context_subset={"app": "db"})
        await grant(service, arn, operations=[*self.GIVING], constraints=constraints)

        for wider in (
            None,
            GrantConstraints(encryption_context_subset={"app": "web"}),
            GrantConstraints(encryption_context_equals={"more": "yes"}),
        ):
            with pytest.raises(AccessDeniedError):
                await grant(service, arn, "user:root", session=BOB, constraints=wider)
        for stricter in (
            constraints,
            GrantConstraints(encryption_context_subset={"app": "db", "more": "yes"}),
            GrantConstraints(encryption_context_equals={"app": "db"}),
        ):
            await grant(service, arn, "user:root", session=BOB, constraints=stricter)

    async def test_who_may_by_a_policy_may_grant_what_he_may_not_do(self, service: Embedded) -> None:
        """Also if he has a grant beside it."""
        arn = await service.make_key(policy=document(statement("user:alice"), statement("administrators")))
        await grant(service, arn, "user:root", [GrantOperation.CREATE_GRANT])
        delegated = person(0, user="root", gid=0, administrator=True)
        host = document(statement("administrators", "kms:CreateGrant"))
        folder = service.directory / "policy.d"
        folder.mkdir()
        (folder / "grants.json").write_text(host)
        service.authorizer.adopt(HostPolicy.load(folder, account=ACCOUNT, names=service.names))

        await grant(service, arn, "user:bob", [GrantOperation.DECRYPT], session=delegated)

    async def test_a_dry_run_tells_whether_it_is_covered(self, service: Embedded) -> None:
        """A wider one would be refused."""
        arn = await service.make_key()
        await grant(service, arn, operations=[*self.GIVING])

        with pytest.raises(AccessDeniedError):
            await grant(service, arn, "user:root", [GrantOperation.DECRYPT], session=BOB, dry_run=True)
        with pytest.raises(DryRunOperationError):
            await grant(service, arn, "user:root", session=BOB, dry_run=True)

    async def test_no_grant_is_made_under_one_that_is_gone(self, service: Embedded) -> None:
        """Also if the parent was there when the child was asked for."""
        arn = await service.make_key()
        parent = await grant(service, arn, operations=[*self.GIVING])
        await encrypt(service, arn)
        gate = service.store.gates["commit"] = Gate()
        revoking = asyncio.ensure_future(revoke(service, arn, parent.grant_id))
        await gate.arrived.wait()
        making = asyncio.ensure_future(grant(service, arn, "user:root", session=BOB))
        await asyncio.sleep(0.05)
        gate.opened.set()

        await revoking
        with pytest.raises(AccessDeniedError):
            await making
        assert await listed(service, arn) == []
