"""The bounds of members, against AWS KMS's service model (botocore 1.44.5)."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest

from kmsd.api import BY_NAME, OPERATIONS
from kmsd.api.operation import KeyState, KeyUsage
from kmsd.api.shapes import DataKeySpec, EncryptionAlgorithm, KeyManager, KeyMetadata, KeyOrigin, KeySpec

ARN = "arn:aws:kms:local-host-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


class Bound(NamedTuple):
    """The least and the most of a member: of characters, bytes, elements, or its value."""

    operation: str
    member: str
    least: int
    most: int


# From the table of the service model. Limits of ListAliases and ListGrants: the model says 1,000, the documentation
# 100.
# NumberOfBytes of GenerateRandom: AWS has 1,024; kmsd gives more, on purpose.
BOUNDS = [
    Bound("CreateKey", "Policy", 1, 131_072),
    Bound("CreateKey", "Description", 0, 8192),
    Bound("CreateKey", "Tags", 0, 50),
    Bound("DescribeKey", "KeyId", 1, 2048),
    Bound("DescribeKey", "GrantTokens", 0, 10),
    Bound("ListKeys", "Limit", 1, 1000),
    Bound("ListKeys", "Marker", 1, 1024),
    Bound("EnableKeyRotation", "RotationPeriodInDays", 90, 2560),
    Bound("ListKeyRotations", "Limit", 1, 1000),
    Bound("ListKeyRotations", "Marker", 1, 1024),
    Bound("ScheduleKeyDeletion", "PendingWindowInDays", 1, 365),
    Bound("GetKeyPolicy", "PolicyName", 1, 128),
    Bound("PutKeyPolicy", "Policy", 1, 131_072),
    Bound("ListKeyPolicies", "Limit", 1, 1000),
    Bound("TagResource", "Tags", 1, 50),
    Bound("UntagResource", "TagKeys", 1, 50),
    Bound("ListResourceTags", "Limit", 1, 50),
    Bound("CreateGrant", "GranteePrincipal", 1, 256),
    Bound("CreateGrant", "RetiringPrincipal", 1, 256),
    Bound("CreateGrant", "GrantTokens", 0, 10),
    Bound("CreateGrant", "Name", 1, 256),
    Bound("ListGrants", "Limit", 1, 100),
    Bound("ListGrants", "GrantId", 1, 128),
    Bound("ListRetirableGrants", "RetiringPrincipal", 1, 256),
    Bound("RetireGrant", "GrantToken", 1, 8192),
    Bound("RevokeGrant", "GrantId", 1, 128),
    Bound("CreateAlias", "AliasName", 1, 256),
    Bound("CreateAlias", "TargetKeyId", 1, 2048),
    Bound("UpdateAlias", "AliasName", 1, 256),
    Bound("UpdateAlias", "TargetKeyId", 1, 2048),
    Bound("DeleteAlias", "AliasName", 1, 256),
    Bound("UpdateKeyDescription", "Description", 0, 8192),
    Bound("ListAliases", "KeyId", 1, 2048),
    Bound("ListAliases", "Limit", 1, 100),
    Bound("ListAliases", "Marker", 1, 1024),
    Bound("Encrypt", "KeyId", 1, 2048),
    Bound("Encrypt", "Plaintext", 1, 4096),
    Bound("Encrypt", "GrantTokens", 0, 10),
    Bound("Decrypt", "CiphertextBlob", 1, 6144),
    Bound("Decrypt", "KeyId", 1, 2048),
    Bound("ReEncrypt", "CiphertextBlob", 1, 6144),
    Bound("ReEncrypt", "SourceKeyId", 1, 2048),
    Bound("ReEncrypt", "DestinationKeyId", 1, 2048),
    Bound("GenerateDataKey", "KeyId", 1, 2048),
    Bound("GenerateDataKey", "NumberOfBytes", 1, 1024),
    Bound("GenerateDataKeyWithoutPlaintext", "NumberOfBytes", 1, 1024),
    Bound("GenerateRandom", "NumberOfBytes", 1, 32 * 1024),
    Bound("EncryptFile", "FrameLength", 4096, 4 * 1024 * 1024),
    Bound("DecryptFile", "Header", 1, 64 * 1024),
    Bound("GetAuditRecords", "Limit", 1, 1000),
    Bound("CreateCredential", "Plaintext", 1, 32 * 1024),
    Bound("ListCredentials", "Limit", 1, 100),
]
# What makes a request whole, for each operation that needs anything.
REQUIRED: dict[str, dict[str, Any]] = {
    "DescribeKey": {"KeyId": ARN},
    "EnableKey": {"KeyId": ARN},
    "DisableKey": {"KeyId": ARN},
    "EnableKeyRotation": {"KeyId": ARN},
    "DisableKeyRotation": {"KeyId": ARN},
    "GetKeyRotationStatus": {"KeyId": ARN},
    "RotateKeyOnDemand": {"KeyId": ARN},
    "ListKeyRotations": {"KeyId": ARN},
    "ScheduleKeyDeletion": {"KeyId": ARN},
    "CancelKeyDeletion": {"KeyId": ARN},
    "GetKeyLastUsage": {"KeyId": ARN},
    "GetKeyPolicy": {"KeyId": ARN},
    "PutKeyPolicy": {"KeyId": ARN, "Policy": "{}"},
    "ListKeyPolicies": {"KeyId": ARN},
    "TagResource": {"KeyId": ARN, "Tags": [{"TagKey": "a", "TagValue": ""}]},
    "UntagResource": {"KeyId": ARN, "TagKeys": ["a"]},
    "ListResourceTags": {"KeyId": ARN},
    "SimulatePolicy": {"Actions": ["kms:Encrypt"]},
    "ExplainRefusal": {"RequestId": "7f3a91c2"},
    "CreateGrant": {"KeyId": ARN, "GranteePrincipal": "user:bob", "Operations": ["Decrypt"]},
    "ListGrants": {"KeyId": ARN},
    "ListRetirableGrants": {"RetiringPrincipal": "user:bob"},
    "RevokeGrant": {"KeyId": ARN, "GrantId": "ab" * 32},
    "UpdateKeyDescription": {"KeyId": ARN, "Description": ""},
    "CreateAlias": {"AliasName": "alias/a", "TargetKeyId": ARN},
    "UpdateAlias": {"AliasName": "alias/a", "TargetKeyId": ARN},
    "DeleteAlias": {"AliasName": "alias/a"},
    "Encrypt": {"KeyId": ARN, "Plaintext": b"x"},
    "Decrypt": {"CiphertextBlob": b"x"},
    "ReEncrypt": {"CiphertextBlob": b"x", "DestinationKeyId": ARN},
    "GenerateDataKey": {"KeyId": ARN},
    "GenerateDataKeyWithoutPlaintext": {"KeyId": ARN},
    "GenerateRandom": {"NumberOfBytes": 1},
    "EncryptFile": {"KeyId": ARN},
    "DecryptFile": {"Header": b"x"},
    "ConfirmClock": {"Clock": "2026-11-26T03:00:00Z"},
    "CreateCredential": {"Unit": "a.service", "Name": "a", "Plaintext": b"x"},
    "DeleteCredential": {"Unit": "a.service", "Name": "a"},
}
BINARY = {"Plaintext", "CiphertextBlob", "Header"}
NUMBERS = {"Limit", "NumberOfBytes", "FrameLength", "RotationPeriodInDays", "PendingWindowInDays"}


def decode(operation: str, **members: Any) -> msgspec.Struct:
    decoded: msgspec.Struct = msgspec.msgpack.decode(
        msgspec.msgpack.encode(REQUIRED.get(operation, {}) | members), type=BY_NAME[operation].request
    )
    return decoded


def value(member: str, size: int) -> Any:
    if member in NUMBERS:
        return size
    if member in BINARY:
        return b"x" * size
    if member == "Tags":
        return [{"TagKey": str(number), "TagValue": ""} for number in range(size)]
    return ["token"] * size if member in {"GrantTokens", "TagKeys"} else "x" * size


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.operation}.{bound.member}")
def test_a_member_s_bounds_are_aws_s(bound: Bound) -> None:
    """The least and the most are taken, one less and one more are not."""
    for size in (bound.least, bound.most):
        decode(bound.operation, **{bound.member: value(bound.member, size)})
    wrong = [bound.most + 1] + ([bound.least - 1] if bound.least else [])
    for size in wrong:
        with pytest.raises(msgspec.ValidationError, match=bound.member):
            decode(bound.operation, **{bound.member: value(bound.member, size)})


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ({"TagKey": "x" * 128, "TagValue": "x" * 256}, True),
        ({"TagKey": "x", "TagValue": ""}, True),
        ({"TagKey": "", "TagValue": ""}, False),
        ({"TagKey": "x" * 129, "TagValue": ""}, False),
        ({"TagKey": "x", "TagValue": "x" * 257}, False),
        ({"TagKey": "x"}, False),
        ({"TagKey": "x", "TagValue": "", "More": ""}, False),
    ],
)
def test_a_tag_s_bounds_are_aws_s(tag: dict[str, str], fits: bool) -> None:
    """1 to 128 and 0 to 256 characters, both required."""
    if fits:
        decode("CreateKey", Tags=[tag])
        return
    with pytest.raises(msgspec.ValidationError):
        decode("CreateKey", Tags=[tag])


def test_a_grant_token_s_bounds_are_aws_s() -> None:
    """1 to 8,192 characters."""
    decode("Encrypt", GrantTokens=["x" * 8192])
    for token in ("", "x" * 8193):
        with pytest.raises(msgspec.ValidationError):
            decode("Encrypt", GrantTokens=[token])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_requests_are_strict_and_responses_are_not(operation: Any) -> None:
    """A member nobody declared is an error in a request, and passed over by an older client in a response."""
    decode(operation.name)
    for name in REQUIRED.get(operation.name, {}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode({}), type=operation.request)
        assert name in {field.encode_name for field in msgspec.structs.fields(operation.request) if field.required}
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        decode(operation.name, Bogus=1)
    assert operation.request.__struct_config__.forbid_unknown_fields
    assert not operation.response.__struct_config__.forbid_unknown_fields
    assert operation.request.__struct_config__.frozen
    assert operation.response.__struct_config__.frozen


def test_defaults_are_aws_s() -> None:
    """What a member means when it is absent."""
    assert decode("ListKeys") == BY_NAME["ListKeys"].request(limit=100)
    assert decode("ListAliases") == BY_NAME["ListAliases"].request(limit=50)
    made: Any = decode("CreateKey")
    assert (made.key_spec, made.key_usage, made.origin) == ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "AWS_KMS")
    assert (made.multi_region, made.bypass_policy_lockout_safety_check, made.description) == (False, False, "")
    asked: Any = decode("Encrypt")
    assert (asked.encryption_context, asked.encryption_algorithm) == ({}, "SYMMETRIC_DEFAULT")
    assert (asked.grant_tokens, asked.dry_run) == ([], False)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            KeyState,
            "Creating Enabled Disabled PendingDeletion PendingImport PendingReplicaDeletion Unavailable Updating",
        ),
        (KeyUsage, "SIGN_VERIFY ENCRYPT_DECRYPT GENERATE_VERIFY_MAC KEY_AGREEMENT ENCAPSULATE_DECAPSULATE"),
        (KeySpec, "SYMMETRIC_DEFAULT"),
        (KeyOrigin, "AWS_KMS EXTERNAL AWS_CLOUDHSM EXTERNAL_KEY_STORE"),
        (KeyManager, "AWS CUSTOMER"),
        (DataKeySpec, "AES_256 AES_128"),
        (EncryptionAlgorithm, "SYMMETRIC_DEFAULT RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256 SM2PKE"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_enumerations_have_aws_s_words(ours: Any, theirs: str) -> None:
    """No word that AWS has not."""
    assert {member.value for member in ours} <= set(theirs.split())


def test_metadata_has_aws_s_names() -> None:
    """Also the one that does not follow the rule."""
    names = {field.encode_name for field in msgspec.structs.fields(KeyMetadata)}
    assert {"AWSAccountId", "KeyId", "Arn", "CreationDate", "CurrentKeyMaterialId", "EncryptionAlgorithms"} <= names


def test_a_repr_tells_all_but_bytes_and_tokens() -> None:
    """It is what programs log."""
    request = BY_NAME["Decrypt"].request(ciphertext_blob=b"\x00secret", key_id="alias/a", grant_tokens=["secret"])
    assert repr(request) == (
        "DecryptRequest(ciphertext_blob='7 bytes', encryption_context={}, key_id='alias/a', "
        "encryption_algorithm=<EncryptionAlgorithm.SYMMETRIC_DEFAULT: 'SYMMETRIC_DEFAULT'>, grant_tokens='hidden', "
        "dry_run=False)"
    )
    assert dict(request.__rich_repr__())["ciphertext_blob"] == "7 bytes"
