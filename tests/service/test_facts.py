"""What conditions are told of a request: from its members, the key, the caller and the clock."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any, NamedTuple

import msgspec
import pytest

from kmsd.access.condition_keys import CONDITION_KEYS
from kmsd.access.facts import UNDETERMINED, Values
from kmsd.access.policy import default_key_policy, parse_policy
from kmsd.api import OPERATIONS, deletion, files, grants, keys, policies, rotation, symmetric, tags
from kmsd.api.operation import KeyUsage
from kmsd.api.shapes import DataKeySpec, KeySpec, Tag
from kmsd.identity.principals import Caller
from kmsd.service.facts import MEMBERS, CallFacts, Surroundings
from kmsd.service.key_use import KeyUse, Tracking
from kmsd.service.records import KeyRecord
from kmsd.store.rows import KeyRow, UsageRow
from tests.support.embedded import ACCOUNT, ALICE, HostNames
from tests.support.no_grants import NoGrants

# Declared, whether it is served or not.
DECLARED = {*OPERATIONS, *grants.OPERATIONS, *policies.OPERATIONS, *tags.OPERATIONS}
BY_NAME = {operation.name: operation for operation in DECLARED}
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER_ID = "aaaaaaaa-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:local-host-1:{ACCOUNT}:"
# Wednesday, 25 November 2026, 23:30:00 UTC
NOW = 1795649400.9
SURROUNDINGS = Surroundings(ACCOUNT, lambda: NOW)
CONTEXT = {"app": "web", "Stage": "live"}


def used(days_ago: float | None, key_id: str = KEY_ID) -> KeyUse:
    """What is known of a key that is as old as the epoch, and all of whose uses are known."""
    tracking = Tracking(lambda: NOW, lambda: int(NOW * 1000))
    tracking.since_ms = 0
    use = KeyUse(key_id, tracking)
    last_ms = int((NOW - (days_ago or 0.0) * 86_400) * 1000)
    row = UsageRow(key_id=key_id, tracking_ms=0, last_ms=last_ms, operation="Encrypt", request_id="1", version=1)
    use.learn(0, None if days_ago is None else row)
    return use


def record(key_id: str = KEY_ID, aliases: tuple[str, ...] = (), use: KeyUse | None = None, **members: Any) -> KeyRecord:
    policy = default_key_policy(ACCOUNT, 1000, "alice")
    row = KeyRow(
        key_id=key_id,
        creator_uid=1000,
        creation_ms=0,
        description="",
        key_usage=KeyUsage.ENCRYPT_DECRYPT,
        key_spec=KeySpec.SYMMETRIC_DEFAULT,
        key_state="Enabled",
        origin="AWS_KMS",
        key_manager="CUSTOMER",
        policy=policy,
        policy_principals={},
        current_material=1,
        version=1,
        **members,
    )
    return KeyRecord(
        row,
        f"{ARN}key/{key_id}",
        parse_policy(policy, account=ACCOUNT, names=HostNames()),
        aliases=aliases,
        grants=NoGrants(),
        use=use or used(None),
        expires=0.0,
    )


KEY = record(aliases=("alias/a", "alias/b"), tags={"team": "blue"})
ENCRYPT = symmetric.EncryptRequest(key_id="alias/a", plaintext=memoryview(b"x"), encryption_context=CONTEXT)
RE_ENCRYPT = symmetric.ReEncryptRequest(
    ciphertext_blob=b"x",
    destination_key_id="alias/a",
    source_encryption_context={"side": "source"},
    destination_encryption_context={"side": "destination"},
)
DISABLE = keys.EnableKeyRequest(key_id=KEY_ID)
CREATE_KEY = keys.CreateKeyRequest(tags=[Tag(tag_key="team", tag_value="blue"), Tag(tag_key="Cost", tag_value="7")])
CREATE_GRANT = grants.CreateGrantRequest(
    key_id=KEY_ID,
    grantee_principal="user:bob",
    retiring_principal="unit:b.service",
    operations=[grants.GrantOperation.ENCRYPT, grants.GrantOperation.DECRYPT],
    constraints=grants.GrantConstraints(encryption_context_equals=CONTEXT),
)


class Case(NamedTuple):
    """What a request of an operation answers to a condition key."""

    operation: str
    request: msgspec.Struct
    asked: str
    told: Values
    # Of CallFacts.
    given: dict[str, Any] = {}


CASES = [
    Case("Encrypt", ENCRYPT, "kms:encryptioncontext:app", ("web",)),
    # AWS compares the name in a condition key without regard to case, and the value as the operator says.
    Case("Encrypt", ENCRYPT, "kms:encryptioncontext:stage", ("live",)),
    Case("Encrypt", ENCRYPT, "kms:encryptioncontext:none", None),
    Case("Encrypt", ENCRYPT, "kms:encryptioncontextkeys", ("app", "Stage")),
    Case("Encrypt", ENCRYPT, "kms:encryptionalgorithm", ("SYMMETRIC_DEFAULT",)),
    Case("Encrypt", ENCRYPT, "kms:keyspec", ("SYMMETRIC_DEFAULT",)),
    Case("Encrypt", ENCRYPT, "kms:keyusage", ("ENCRYPT_DECRYPT",)),
    Case("Encrypt", ENCRYPT, "kms:keyorigin", ("AWS_KMS",)),
    Case("Encrypt", ENCRYPT, "kms:multiregion", ("false",)),
    Case("Encrypt", ENCRYPT, "aws:resourcetag/team", ("blue",)),
    Case("Encrypt", ENCRYPT, "aws:resourcetag/other", None),
    Case("Encrypt", ENCRYPT, "aws:requesttag/team", None),
    Case("Encrypt", ENCRYPT, "aws:tagkeys", None),
    Case("Encrypt", ENCRYPT, "kms:viaservice", None),
    Case("Encrypt", ENCRYPT, "kms:granteeprincipal", None),
    Case("Encrypt", ENCRYPT, "kms:grantisforawsresource", None),
    Case("Encrypt", ENCRYPT, "kms:resourcealiases", ("alias/a", "alias/b")),
    Case("Encrypt", ENCRYPT, "kms:resourcealiases", None, {"key": record(OTHER_ID)}),
    Case("Encrypt", ENCRYPT, "kms:requestalias", ("alias/a",), {"named": "alias/a"}),
    Case("Encrypt", ENCRYPT, "kms:requestalias", ("alias/a/b",), {"named": f"{ARN}alias/a/b"}),
    Case("Encrypt", ENCRYPT, "kms:requestalias", None, {"named": KEY_ID}),
    Case("Encrypt", ENCRYPT, "kms:requestalias", None, {"named": f"{ARN}key/{KEY_ID}"}),
    Case("EnableKeyRotation", rotation.EnableKeyRotationRequest(key_id=KEY_ID), "kms:rotationperiodindays", ("365",)),
    Case("RotateKeyOnDemand", rotation.RotateKeyOnDemandRequest(key_id=KEY_ID), "kms:rotationperiodindays", None),
    Case(
        "ScheduleKeyDeletion",
        deletion.ScheduleKeyDeletionRequest(key_id=KEY_ID, pending_window_in_days=7),
        "kms:schedulekeydeletionpendingwindowindays",
        ("7",),
    ),
    Case("Decrypt", symmetric.DecryptRequest(ciphertext_blob=b"x"), "kms:requestalias", None),
    Case("Decrypt", symmetric.DecryptRequest(ciphertext_blob=b"x"), "kms:encryptioncontextkeys", None),
    Case("Decrypt", symmetric.DecryptRequest(ciphertext_blob=b"x"), "kms:reencryptonsamekey", None),
    # The length of a data key is not the kind of the key.
    Case(
        "GenerateDataKey",
        symmetric.GenerateDataKeyRequest(key_id=KEY_ID, key_spec=DataKeySpec.AES_256),
        "kms:keyspec",
        ("SYMMETRIC_DEFAULT",),
    ),
    Case(
        "GenerateDataKey",
        symmetric.GenerateDataKeyRequest(key_id=KEY_ID, number_of_bytes=32),
        "kms:encryptionalgorithm",
        ("SYMMETRIC_DEFAULT",),
    ),
    Case("kms:ReEncryptFrom", RE_ENCRYPT, "kms:encryptioncontext:side", ("source",)),
    Case("kms:ReEncryptTo", RE_ENCRYPT, "kms:encryptioncontext:side", ("destination",)),
    Case("kms:ReEncryptTo", RE_ENCRYPT, "kms:encryptionalgorithm", ("SYMMETRIC_DEFAULT",)),
    Case("kms:ReEncryptFrom", RE_ENCRYPT, "kms:reencryptonsamekey", ("true",), {"counterpart": record()}),
    Case("kms:ReEncryptTo", RE_ENCRYPT, "kms:reencryptonsamekey", ("false",), {"counterpart": record(OTHER_ID)}),
    Case(
        "EncryptFile",
        files.EncryptFileRequest(key_id=KEY_ID, encryption_context=CONTEXT),
        "kms:encryptioncontext:app",
        ("web",),
    ),
    # What the message says counts, not what the request wants of it.
    Case(
        "DecryptFile",
        files.DecryptFileRequest(header=b"x", encryption_context={"app": "web"}),
        "kms:encryptioncontextkeys",
        ("app", "Stage"),
        {"context": CONTEXT},
    ),
    Case("DecryptFile", files.DecryptFileRequest(header=b"x"), "kms:encryptionalgorithm", ("SYMMETRIC_DEFAULT",)),
    Case("CreateKey", CREATE_KEY, "kms:keyspec", ("SYMMETRIC_DEFAULT",), {"key": None}),
    Case("CreateKey", CREATE_KEY, "kms:keyusage", ("ENCRYPT_DECRYPT",), {"key": None}),
    Case("CreateKey", CREATE_KEY, "kms:keyorigin", ("AWS_KMS",), {"key": None}),
    Case("CreateKey", CREATE_KEY, "kms:multiregion", ("false",), {"key": None}),
    Case("CreateKey", CREATE_KEY, "kms:bypasspolicylockoutsafetycheck", ("false",), {"key": None}),
    Case("CreateKey", CREATE_KEY, "aws:requesttag/team", ("blue",), {"key": None}),
    Case("CreateKey", CREATE_KEY, "aws:requesttag/cost", ("7",), {"key": None}),
    Case("CreateKey", CREATE_KEY, "aws:tagkeys", ("team", "Cost"), {"key": None}),
    Case("CreateKey", CREATE_KEY, "aws:resourcetag/team", None, {"key": None}),
    Case(
        "TagResource",
        tags.TagResourceRequest(key_id=KEY_ID, tags=[Tag(tag_key="team", tag_value="red")]),
        "aws:requesttag/team",
        ("red",),
    ),
    Case("UntagResource", tags.UntagResourceRequest(key_id=KEY_ID, tag_keys=["a", "b"]), "aws:tagkeys", ("a", "b")),
    Case("GetKeyPolicy", policies.GetKeyPolicyRequest(key_id=KEY_ID), "kms:policyname", ("default",)),
    Case(
        "PutKeyPolicy",
        policies.PutKeyPolicyRequest(key_id=KEY_ID, policy="{}", bypass_policy_lockout_safety_check=True),
        "kms:bypasspolicylockoutsafetycheck",
        ("true",),
    ),
    Case("DisableKey", DISABLE, "kms:trailingdayswithoutkeyusage", ("3",), {"key": record(use=used(3.99))}),
    Case("DisableKey", DISABLE, "kms:trailingdayswithoutkeyusage", ("0",), {"key": record(use=used(-10.0))}),
    Case("DisableKey", DISABLE, "kms:trailingdayswithoutkeyusage", ("20782",), {"key": record(use=used(None))}),
    Case(
        "DisableKey",
        DISABLE,
        "kms:trailingdayswithoutkeyusage",
        UNDETERMINED,
        {"key": record(use=KeyUse(KEY_ID, Tracking(lambda: NOW, lambda: int(NOW * 1000))))},
    ),
    Case("kms:ScheduleKeyDeletion", DISABLE, "kms:trailingdayswithoutkeyusage", ("1",), {"key": record(use=used(1.0))}),
    # AWS tells it for nothing else.
    Case("Encrypt", ENCRYPT, "kms:trailingdayswithoutkeyusage", None),
    Case("CreateGrant", CREATE_GRANT, "kms:granteeprincipal", ("user:bob",)),
    Case("CreateGrant", CREATE_GRANT, "kms:retiringprincipal", ("unit:b.service",)),
    Case("CreateGrant", CREATE_GRANT, "kms:grantoperations", ("Encrypt", "Decrypt")),
    Case("CreateGrant", CREATE_GRANT, "kms:grantconstrainttype", ("EncryptionContextEquals",)),
    Case("CreateGrant", CREATE_GRANT, "kms:grantisforawsresource", ("false",)),
    Case("CreateGrant", CREATE_GRANT, "kms:encryptioncontext:app", ("web",)),
    Case("CreateGrant", CREATE_GRANT, "kms:encryptioncontextkeys", ("app", "Stage")),
    Case(
        "RevokeGrant", grants.RevokeGrantRequest(key_id=KEY_ID, grant_id="0"), "kms:grantisforawsresource", ("false",)
    ),
    Case("DescribeKey", keys.DescribeKeyRequest(key_id=KEY_ID), "kms:encryptioncontextkeys", None),
]


def facts(case: Case, caller: Caller = ALICE.caller) -> CallFacts:
    action = case.operation if ":" in case.operation else BY_NAME[case.operation].action
    return CallFacts(SURROUNDINGS, caller, action, **{"request": case.request, "key": KEY, **case.given})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.operation}-{case.asked}")
def test_a_request_tells_what_conditions_ask(case: Case) -> None:
    """Members, the key it is about and how it was named; what it has not is absent."""
    assert facts(case).values(case.asked) == case.told


def of_caller(asked: str, **members: Any) -> Values:
    made = dataclasses.replace(ALICE.caller, **members)
    return CallFacts(SURROUNDINGS, made, "kms:ListKeys").values(asked)


@pytest.mark.parametrize(
    ("asked", "members", "told"),
    [
        ("aws:principalaccount", {}, (ACCOUNT,)),
        ("kms:calleraccount", {}, (ACCOUNT,)),
        ("aws:principalarn", {}, (f"arn:aws:iam::{ACCOUNT}:user/alice",)),
        ("aws:principalarn", {"unit": "a.service"}, (f"arn:aws:iam::{ACCOUNT}:user/alice",)),
        ("aws:principalarn", {"user": None, "unit": "a.service"}, (f"arn:aws:iam::{ACCOUNT}:role/unit/a.service",)),
        ("aws:principalarn", {"user": None}, None),
        ("kmsd:uid", {}, ("1000",)),
        ("kmsd:gids", {"groups": frozenset({500, 7})}, ("7", "500")),
        ("kmsd:systemdunit", {"unit": "a.service"}, ("a.service",)),
        ("kmsd:systemdunit", {}, None),
        ("kmsd:userunit", {"user_unit": "1000/a.service"}, ("1000/a.service",)),
        ("kmsd:executable", {}, ("/usr/bin/app",)),
    ],
)
def test_a_caller_is_told(asked: str, members: dict[str, Any], told: Values) -> None:
    """By what the kernel and the host say of it."""
    assert of_caller(asked, **members) == told


@pytest.mark.parametrize(
    ("asked", "attribute"),
    [
        ("kmsd:systemdunit", "unit"),
        ("kmsd:userunit", "user_unit"),
        ("kmsd:executable", "exe"),
        ("aws:principalarn", "user"),
        ("aws:principalarn", "unit"),
    ],
)
def test_what_could_not_be_found_out_is_undetermined(asked: str, attribute: str) -> None:
    """It is not absent: a Deny must hold."""
    unknown = {"user": None, "unit": None, "user_unit": None, "exe": None}

    assert of_caller(asked, **unknown, undetermined=frozenset({attribute})) is UNDETERMINED


def test_the_time_is_the_clock_s() -> None:
    """As RFC 3339 writes it, and in seconds since 1970."""
    assert of_caller("aws:currenttime") == ("2026-11-25T23:30:00Z",)
    assert of_caller("aws:epochtime") == ("1795649400",)


def test_names_that_differ_in_case_only_give_all_their_values() -> None:
    """So that a condition on one value cannot tell, instead of looking at whichever comes first."""
    context = {"App": "web", "app": "db"}
    ambiguous = symmetric.EncryptRequest(key_id="a", plaintext=memoryview(b"x"), encryption_context=context)

    told = facts(Case("Encrypt", ambiguous, "", None)).values("kms:encryptioncontext:app")

    assert told == ("web", "db")


def test_times_in_members_are_written_in_utc() -> None:
    """ValidTo of ImportKeyMaterial, whatever its offset."""

    class Importing(msgspec.Struct):
        valid_to: dt.datetime

    east = dt.timezone(dt.timedelta(hours=2))
    told = CallFacts(
        SURROUNDINGS, ALICE.caller, "kms:ImportKeyMaterial", request=Importing(dt.datetime(2027, 1, 1, tzinfo=east))
    ).values("kms:validto")

    assert told == ("2026-12-31T22:00:00Z",)


@pytest.mark.parametrize(
    ("operation", "request_", "given", "context"),
    [
        ("Encrypt", ENCRYPT, {}, CONTEXT),
        ("kms:ReEncryptFrom", RE_ENCRYPT, {}, {"side": "source"}),
        ("kms:ReEncryptTo", RE_ENCRYPT, {}, {"side": "destination"}),
        ("Decrypt", symmetric.DecryptRequest(ciphertext_blob=b"x"), {}, {}),
        ("DecryptFile", files.DecryptFileRequest(header=b"x"), {"context": CONTEXT}, CONTEXT),
        ("DescribeKey", keys.DescribeKeyRequest(key_id=KEY_ID), {}, None),
        ("CreateGrant", CREATE_GRANT, {}, None),
    ],
)
def test_constraints_of_grants_are_told_the_encryption_context(
    operation: str, request_: msgspec.Struct, given: dict[str, Any], context: dict[str, str] | None
) -> None:
    """None where there can be none; what CreateGrant is constrained to is no context that is used."""
    assert facts(Case(operation, request_, "", None, given)).encryption_context() == context


# Members of operations that come later, and what never is: no service of AWS's calls on somebody's behalf.
NOT_YET = {
    "kms:datakeypairspec",
    "kms:expirationmodel",
    "kms:macalgorithm",
    "kms:messagetype",
    "kms:signingalgorithm",
    "kms:validto",
    "kms:wrappingalgorithm",
    "kms:wrappingkeyspec",
}
NEVER = {"kms:viaservice"}


def test_every_condition_key_is_answered_by_some_operation() -> None:
    """Or known to come later; a policy that asks for something else is refused when it is put."""
    members = {name for operation in DECLARED for name in operation.request.__struct_fields__}
    answered = {key for key, member in MEMBERS.items() if member in members}
    answered |= {case.asked.partition("/")[0] for case in CASES if case.told is not None}
    answered |= {"aws:currenttime", "aws:epochtime", "aws:principalaccount", "aws:principalarn", "kms:calleraccount"}
    answered |= {f"kmsd:{name}" for name in ("executable", "gids", "systemdunit", "uid", "userunit")}

    asked = {key.name.lower().rstrip("/") for key in CONDITION_KEYS if not key.name.endswith(":")}
    assert asked - answered == NOT_YET | NEVER
    assert {key for key, member in MEMBERS.items() if member not in members} == NOT_YET
