"""Every operation that is about a key, asked for in each state that a key can be in: what AWS KMS's table says."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from kmsd.api import BY_NAME, OPERATIONS
from kmsd.api.deletion import (
    SCHEDULE_KEY_DELETION,
    CancelKeyDeletionRequest,
    GetKeyLastUsageRequest,
    ScheduleKeyDeletionRequest,
)
from kmsd.api.errors import KmsError
from kmsd.api.files import ENCRYPT_FILE, DecryptFileRequest, EncryptFileRequest
from kmsd.api.grants import (
    CREATE_GRANT,
    CreateGrantRequest,
    GrantOperation,
    ListGrantsRequest,
    RetireGrantRequest,
    RevokeGrantRequest,
)
from kmsd.api.keys import (
    CREATE_ALIAS,
    DESCRIBE_KEY,
    DISABLE_KEY,
    CreateAliasRequest,
    DeleteAliasRequest,
    DescribeKeyRequest,
    EnableKeyRequest,
    UpdateAliasRequest,
    UpdateKeyDescriptionRequest,
)
from kmsd.api.operation import KeyState, Operation
from kmsd.api.policies import (
    GET_KEY_POLICY,
    GetKeyPolicyRequest,
    ListKeyPoliciesRequest,
    PutKeyPolicyRequest,
)
from kmsd.api.rotation import (
    DisableKeyRotationRequest,
    EnableKeyRotationRequest,
    GetKeyRotationStatusRequest,
    ListKeyRotationsRequest,
    RotateKeyOnDemandRequest,
)
from kmsd.api.shapes import DataKeySpec, Tag
from kmsd.api.symmetric import (
    ENCRYPT,
    DecryptRequest,
    EncryptRequest,
    GenerateDataKeyRequest,
    ReEncryptRequest,
)
from kmsd.api.tags import ListResourceTagsRequest, TagResourceRequest, UntagResourceRequest
from tests.support.embedded import ALICE, Embedded
from tests.support.key_state_table import FROZEN, LIKE, acts_on_a_key, read_table

PLAIN = memoryview(b"x")


class Key(NamedTuple):
    """A key with everything that an operation may ask for, made while it was enabled."""

    arn: str
    # Another key, and an alias of each.
    other: str
    alias: str
    other_alias: str
    blob: bytes
    header: bytes
    grant_id: str
    grant_token: str
    policy: str


REQUESTS: dict[str, Callable[[Key], msgspec.Struct]] = {
    "DescribeKey": lambda key: DescribeKeyRequest(key_id=key.arn),
    "EnableKey": lambda key: EnableKeyRequest(key_id=key.arn),
    "DisableKey": lambda key: EnableKeyRequest(key_id=key.arn),
    "UpdateKeyDescription": lambda key: UpdateKeyDescriptionRequest(key_id=key.arn, description="anew"),
    "CreateAlias": lambda key: CreateAliasRequest(alias_name=f"{key.alias}/more", target_key_id=key.arn),
    "UpdateAlias": lambda key: UpdateAliasRequest(alias_name=key.other_alias, target_key_id=key.arn),
    "DeleteAlias": lambda key: DeleteAliasRequest(alias_name=key.alias),
    "EnableKeyRotation": lambda key: EnableKeyRotationRequest(key_id=key.arn),
    "DisableKeyRotation": lambda key: DisableKeyRotationRequest(key_id=key.arn),
    "GetKeyRotationStatus": lambda key: GetKeyRotationStatusRequest(key_id=key.arn),
    "RotateKeyOnDemand": lambda key: RotateKeyOnDemandRequest(key_id=key.arn),
    "ListKeyRotations": lambda key: ListKeyRotationsRequest(key_id=key.arn),
    "ScheduleKeyDeletion": lambda key: ScheduleKeyDeletionRequest(key_id=key.arn),
    "CancelKeyDeletion": lambda key: CancelKeyDeletionRequest(key_id=key.arn),
    "GetKeyLastUsage": lambda key: GetKeyLastUsageRequest(key_id=key.arn),
    "GetKeyPolicy": lambda key: GetKeyPolicyRequest(key_id=key.arn),
    "PutKeyPolicy": lambda key: PutKeyPolicyRequest(key_id=key.arn, policy=key.policy),
    "ListKeyPolicies": lambda key: ListKeyPoliciesRequest(key_id=key.arn),
    "TagResource": lambda key: TagResourceRequest(key_id=key.arn, tags=[Tag(tag_key="team", tag_value="red")]),
    "UntagResource": lambda key: UntagResourceRequest(key_id=key.arn, tag_keys=["team"]),
    "ListResourceTags": lambda key: ListResourceTagsRequest(key_id=key.arn),
    "CreateGrant": lambda key: CreateGrantRequest(
        key_id=key.arn, grantee_principal="user:bob", operations=[GrantOperation.ENCRYPT]
    ),
    "ListGrants": lambda key: ListGrantsRequest(key_id=key.arn),
    "RetireGrant": lambda key: RetireGrantRequest(grant_token=key.grant_token),
    "RevokeGrant": lambda key: RevokeGrantRequest(key_id=key.arn, grant_id=key.grant_id),
    "Encrypt": lambda key: EncryptRequest(key_id=key.alias, plaintext=PLAIN),
    "Decrypt": lambda key: DecryptRequest(ciphertext_blob=key.blob),
    "ReEncrypt": lambda key: ReEncryptRequest(ciphertext_blob=key.blob, destination_key_id=key.other),
    "GenerateDataKey": lambda key: GenerateDataKeyRequest(key_id=key.arn, key_spec=DataKeySpec.AES_256),
    "GenerateDataKeyWithoutPlaintext": lambda key: GenerateDataKeyRequest(key_id=key.arn, number_of_bytes=64),
    "EncryptFile": lambda key: EncryptFileRequest(key_id=key.arn),
    "DecryptFile": lambda key: DecryptFileRequest(header=key.header),
}
# What each footnote of the table means.
REFUSALS = {
    "[1]": "DisabledException: {arn} is disabled.",
    "[3]": "KMSInvalidStateException: {arn} is pending deletion.",
    "[4]": "KMSInvalidStateException: {arn} is not pending deletion.",
    "[10]": "KMSInvalidStateException: {arn} is pending deletion.",
}
WORKS = "it works"


async def make(service: Embedded, name: str) -> Key:
    arn, other = await service.make_key(tags=[Tag(tag_key="team", tag_value="blue")]), await service.make_key()
    alias, other_alias = f"alias/{name}", f"alias/{name}-other"
    for one, target in ((alias, arn), (other_alias, other)):
        await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name=one, target_key_id=target))
    grant = await service.ask(
        ALICE,
        CREATE_GRANT,
        CreateGrantRequest(
            key_id=arn,
            grantee_principal="user:bob",
            retiring_principal="user:alice",
            operations=[GrantOperation.DECRYPT],
        ),
    )
    file = await reply(service, ENCRYPT_FILE, EncryptFileRequest(key_id=arn))
    return Key(
        arn=arn,
        other=other,
        alias=alias,
        other_alias=other_alias,
        blob=(await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=PLAIN))).ciphertext_blob,
        header=file.header,
        grant_id=grant.grant_id,
        grant_token=grant.grant_token,
        policy=(await service.ask(ALICE, GET_KEY_POLICY, GetKeyPolicyRequest(key_id=arn))).policy,
    )


async def bring_into(service: Embedded, state: KeyState, arn: str) -> None:
    """Put a key into a state that it can be in."""
    if state is KeyState.DISABLED:
        await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))
    elif state is KeyState.PENDING_DELETION:
        await service.ask(ALICE, SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest(key_id=arn))
    described = await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    assert described.key_metadata.key_state is state


async def reply(service: Embedded, operation: Operation[Any, Any], request: msgspec.Struct) -> Any:
    """The response; descriptors that come with it are closed, and the file is over."""
    batch = await service.reply_to(ALICE, operation, request)
    for descriptor in batch.descriptors:
        os.close(descriptor)
    return service.response(batch, operation)


async def outcome(service: Embedded, operation: Operation[Any, Any], request: msgspec.Struct) -> str:
    try:
        await reply(service, operation, request)
    except KmsError as error:
        return f"{error.code}: {error.message}"
    return WORKS


def test_every_operation_that_is_about_a_key_is_tried_here() -> None:
    """Also those that come later."""
    assert set(REQUESTS) == {operation.name for operation in OPERATIONS if acts_on_a_key(operation)}


@pytest.mark.parametrize("state", [KeyState.ENABLED, KeyState.DISABLED, KeyState.PENDING_DELETION])
async def test_a_key_is_served_as_its_state_lets_it(service: Embedded, state: KeyState) -> None:
    """What works does, and what does not is refused with AWS's code and words."""
    table = read_table(FROZEN)
    found, expected = {}, {}
    read = await make(service, "read")
    await bring_into(service, state, read.arn)
    for name, request in REQUESTS.items():
        key = read
        if not BY_NAME[name].read_only:
            key = await make(service, name)
            await bring_into(service, state, key.arn)
        cell = table[LIKE.get(name, name)][state]
        expected[name] = WORKS if cell.works else REFUSALS[cell.footnote].format(arn=key.arn)

        found[name] = await outcome(service, BY_NAME[name], request(key))

    assert found == expected


@pytest.mark.parametrize("state", [KeyState.DISABLED, KeyState.PENDING_DELETION])
async def test_a_blob_goes_to_no_key_that_cannot_be_used(service: Embedded, state: KeyState) -> None:
    """ReEncrypt has two keys, each of which has to be enabled."""
    key = await make(service, "key")
    await bring_into(service, state, key.other)
    refusal = REFUSALS[read_table(FROZEN)["ReEncrypt"][state].footnote]

    found = await outcome(service, BY_NAME["ReEncrypt"], REQUESTS["ReEncrypt"](key))

    assert found == refusal.format(arn=key.other)
