"""Reading and writing key policies, and that a change is seen by the very next request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    ConflictError,
    LimitExceededError,
    MalformedPolicyDocumentError,
    NotFoundError,
    StorageError,
    UnsupportedOperationError,
)
from kmsd.api.keys import DESCRIBE_KEY, DescribeKeyRequest
from kmsd.api.policies import (
    GET_KEY_POLICY,
    LIST_KEY_POLICIES,
    PUT_KEY_POLICY,
    GetKeyPolicyRequest,
    ListKeyPoliciesRequest,
    PutKeyPolicyRequest,
)
from kmsd.api.shapes import KeyManager
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.store.base import Replace, StoreUnavailableError
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate, person


def statement(*principals: str, action: Any = "kms:*", effect: str = "Allow", **members: Any) -> dict[str, Any]:
    return {"Effect": effect, "Principal": {"Unix": list(principals)}, "Action": action, "Resource": "*", **members}


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


ALICE_ONLY = document(statement("user:alice"))
ALICE_AND_BOB = document(statement("user:alice"), statement("user:bob", action="kms:Encrypt"))


async def put(service: Embedded, arn: str, policy: str, session: object = ALICE, **members: Any) -> None:
    request = PutKeyPolicyRequest(key_id=arn, policy=policy, **members)
    await service.ask(session, PUT_KEY_POLICY, request)  # type: ignore[arg-type] # a Session


async def encrypt(service: Embedded, arn: str, session: object = BOB, **context: str) -> None:
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"), encryption_context=context)
    await service.ask(session, ENCRYPT, request)  # type: ignore[arg-type] # a Session


async def test_a_policy_is_given_back_as_it_was_put(service: Embedded) -> None:
    """Every space of it, under the one name there is."""
    arn = await service.make_key()
    written = ALICE_ONLY.replace('": ', '" :\n\t')

    await put(service, arn, written)

    for request in (GetKeyPolicyRequest(key_id=arn), GetKeyPolicyRequest(key_id=arn, policy_name="default")):
        told = await service.ask(ALICE, GET_KEY_POLICY, request)
        assert (told.policy, told.policy_name) == (written, "default")
    listed = await service.ask(ALICE, LIST_KEY_POLICIES, ListKeyPoliciesRequest(key_id=arn))
    assert (listed.policy_names, listed.truncated) == (["default"], False)


async def test_a_change_is_seen_by_the_next_request(service: Embedded) -> None:
    """By each connection, whether it gives or takes."""
    arn = await service.make_key(policy=ALICE_ONLY)
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)

    await put(service, arn, ALICE_AND_BOB)
    await encrypt(service, arn)
    await put(service, arn, ALICE_ONLY)

    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)
    await encrypt(service, arn, ALICE)


async def test_a_key_that_is_being_read_while_it_changes_is_read_again(service: Embedded) -> None:
    """A slow look at the old row does not bring it back into memory."""
    arn = await service.make_key(policy=ALICE_AND_BOB)
    await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    service.records.forget_all()
    gate = service.store.gates["key"] = Gate()
    reading = asyncio.ensure_future(encrypt(service, arn))
    await gate.arrived.wait()
    del service.store.gates["key"]
    gate.opened.set()

    await put(service, arn, ALICE_ONLY)
    await asyncio.wait([reading])

    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)


async def test_names_are_resolved_when_the_policy_is_put(service: Embedded) -> None:
    """And kept with it; a name that nobody has is refused."""
    arn = await service.make_key()

    await put(service, arn, ALICE_AND_BOB)

    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    assert row.policy_principals == {"user:alice": 1000, "user:bob": 1001}
    with pytest.raises(MalformedPolicyDocumentError, match="nobody-here"):
        await put(service, arn, document(statement("user:alice", "user:nobody-here")))
    service.names.users["bob"] = 1002
    await put(service, arn, ALICE_AND_BOB + " ")
    await encrypt(service, arn, person(1002, user="bob"))
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn, BOB)


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        ('{"Version": "2012-10-17",\n "Statement": [}', MalformedPolicyDocumentError, "line 2 column 16"),
        (ALICE_ONLY.replace("kms:*", "s3:*"), MalformedPolicyDocumentError, "Action"),
        (" " * 40_000, LimitExceededError, "32768"),
    ],
    ids=["JSON", "grammar", "size"],
)
async def test_a_policy_that_is_not_valid_changes_nothing(
    service: Embedded, policy: str, error: type[Exception], message: str
) -> None:
    """And says where and what."""
    arn = await service.make_key(policy=ALICE_ONLY)

    with pytest.raises(error, match=message):
        await put(service, arn, policy)

    assert (await service.ask(ALICE, GET_KEY_POLICY, GetKeyPolicyRequest(key_id=arn))).policy == ALICE_ONLY


@pytest.mark.parametrize(
    "policy",
    [
        document(statement("user:bob")),
        document(statement("user:alice", action="kms:Encrypt")),
        document(statement("user:alice"), statement("user:alice", action="kms:PutKeyPolicy", effect="Deny")),
    ],
    ids=["others only", "use only", "denied"],
)
async def test_who_would_lock_himself_out_is_refused(service: Embedded, policy: str) -> None:
    """With AWS's own words, unless he says that he means it."""
    arn = await service.make_key()

    with pytest.raises(MalformedPolicyDocumentError, match="will not allow you to update the key policy in the future"):
        await put(service, arn, policy)
    await put(service, arn, policy, bypass_policy_lockout_safety_check=True)

    with pytest.raises(AccessDeniedError):
        await put(service, arn, ALICE_ONLY)


async def test_a_policy_that_lets_the_account_s_root_in_locks_nobody_out(service: Embedded) -> None:
    """Administrators can change it again."""
    arn = await service.make_key()

    await put(service, arn, document(statement("administrators")))

    await put(service, arn, ALICE_ONLY, ROOT, bypass_policy_lockout_safety_check=True)


async def test_other_names_than_default_are_no_policies(service: Embedded) -> None:
    """As with AWS, to read and to write."""
    arn = await service.make_key()

    with pytest.raises(NotFoundError, match="No such policy exists"):
        await service.ask(ALICE, GET_KEY_POLICY, GetKeyPolicyRequest(key_id=arn, policy_name="other"))
    with pytest.raises(NotFoundError, match="No such policy exists"):
        await put(service, arn, ALICE_ONLY, policy_name="other")


async def test_policies_are_for_whom_they_let(service: Embedded) -> None:
    """Bob reads nothing; an alias names no key here."""
    arn = await service.make_key()

    with pytest.raises(AccessDeniedError, match="kms:GetKeyPolicy"):
        await service.ask(BOB, GET_KEY_POLICY, GetKeyPolicyRequest(key_id=arn))
    with pytest.raises(AccessDeniedError, match="kms:PutKeyPolicy"):
        await put(service, arn, ALICE_ONLY, BOB)
    with pytest.raises(AccessDeniedError, match="kms:ListKeyPolicies"):
        await service.ask(BOB, LIST_KEY_POLICIES, ListKeyPoliciesRequest(key_id=arn))
    with pytest.raises(NotFoundError, match="no alias"):
        await service.ask(ALICE, GET_KEY_POLICY, GetKeyPolicyRequest(key_id="alias/a"))


async def test_who_writes_at_the_same_time_as_another_is_told(service: Embedded) -> None:
    """One of both is stored, and the other nowhere."""
    arn = await service.make_key()

    done = await asyncio.gather(put(service, arn, ALICE_ONLY), put(service, arn, ALICE_AND_BOB), return_exceptions=True)

    assert sorted(type(one).__name__ for one in done) == ["ConflictError", "NoneType"]
    [conflict] = [one for one in done if isinstance(one, ConflictError)]
    assert conflict.retryable
    await put(service, arn, ALICE_AND_BOB)


async def test_a_commit_that_fails_leaves_no_old_policy_in_memory(service: Embedded) -> None:
    """It may have happened all the same."""
    arn = await service.make_key(policy=ALICE_AND_BOB)
    await encrypt(service, arn)
    service.store.faults["committing"] = StoreUnavailableError("the disk failed to sync")

    with pytest.raises(StorageError):
        await put(service, arn, ALICE_ONLY)

    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)


async def test_the_policy_of_a_key_that_kmsd_manages_is_not_changed(service: Embedded) -> None:
    """Even by whom its policy lets."""
    arn = await service.make_key(policy=ALICE_ONLY)
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    managed = msgspec.structs.replace(row, version=row.version + 1, key_manager=KeyManager.AWS)
    await service.store.commit(None, [Replace(managed)])
    service.records.forget(row.key_id)

    with pytest.raises(UnsupportedOperationError, match="managed by kmsd"):
        await put(service, arn, ALICE_AND_BOB)


async def test_a_change_is_an_intent_and_an_outcome_with_the_policy(service: Embedded) -> None:
    """Who changed what to what, and which statement let him."""
    arn = await service.make_key(policy=ALICE_ONLY)

    await put(service, arn, ALICE_AND_BOB)

    intent, outcome = service.lines()[-2:]
    assert (intent["eventType"], outcome["eventType"]) == ("ApiCallIntent", "ApiCallOutcome")
    assert outcome["requestParameters"] == {
        "keyId": arn,
        "policyName": "default",
        "policy": ALICE_AND_BOB,
        "bypassPolicyLockoutSafetyCheck": False,
    }
    assert outcome["additionalEventData"]["decision"] == "key policy: statement 1"
