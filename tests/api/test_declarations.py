"""What the declarations say of each operation, against what AWS KMS says of it."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec
import pytest

from kmsd.api import BY_NAME, OPERATIONS
from kmsd.api.operation import (
    MAX_FRAME_BYTES,
    Cost,
    KeyAccess,
    KeyState,
    KeyUsage,
    Operation,
    action_of,
    attribute_name,
    member_name,
)
from kmsd.api.shapes import Empty, Request, Response

# Operations that AWS KMS has not.
OURS = {
    "EncryptFile",
    "DecryptFile",
    "Status",
    "GetAuditAnchor",
    "GetAuditRecords",
    "Seal",
    "Unseal",
    "CreateBackup",
    "SubscribeEvents",
    "SimulatePolicy",
    "ExplainRefusal",
    "ReloadHostPolicy",
    "CreateCredential",
    "ListCredentials",
    "DeleteCredential",
    "GetMetrics",
    "GetClock",
    "ConfirmClock",
}
# AWS KMS, developer guide: the permission of each operation, where it is not kms:NAME.
ACTIONS = {
    "ReEncrypt": ("kms:ReEncryptFrom", "kms:ReEncryptTo"),
    "EncryptFile": ("kms:GenerateDataKey",),
    "DecryptFile": ("kms:Decrypt",),
}
# AWS KMS, developer guide, key states: where each operation works.
_SWITCHED = {KeyState.ENABLED, KeyState.DISABLED, KeyState.UNAVAILABLE}
_NOT_IN_DELETION = set(KeyState) - {KeyState.PENDING_DELETION}
STATES = {
    "UpdateKeyDescription": _NOT_IN_DELETION,
    "CreateAlias": _NOT_IN_DELETION,
    # The key that is named from then on.
    "UpdateAlias": _NOT_IN_DELETION,
    "CreateGrant": {KeyState.ENABLED, KeyState.UNAVAILABLE, KeyState.UPDATING},
    "DescribeKey": set(KeyState),
    "EnableKey": _SWITCHED,
    "DisableKey": _SWITCHED,
    "EnableKeyRotation": {KeyState.ENABLED},
    "DisableKeyRotation": {KeyState.ENABLED},
    "RotateKeyOnDemand": {KeyState.ENABLED},
    "ScheduleKeyDeletion": _NOT_IN_DELETION - {KeyState.UPDATING},
    "CancelKeyDeletion": {KeyState.PENDING_DELETION},
    "TagResource": _NOT_IN_DELETION,
    "UntagResource": _NOT_IN_DELETION,
}
USES_KEY_MATERIAL = {
    "Encrypt",
    "Decrypt",
    "ReEncrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "EncryptFile",
    "DecryptFile",
}
# The key identifiers that AWS KMS accepts: an alias in cryptographic operations and DescribeKey, and nowhere else.
NAMED_BY_ID_ONLY = {
    "UpdateKeyDescription",
    "CreateAlias",
    "UpdateAlias",
    "EnableKey",
    "DisableKey",
    "EnableKeyRotation",
    "DisableKeyRotation",
    "GetKeyRotationStatus",
    "RotateKeyOnDemand",
    "ListKeyRotations",
    "ScheduleKeyDeletion",
    "CancelKeyDeletion",
    "GetKeyLastUsage",
    "GetKeyPolicy",
    "PutKeyPolicy",
    "ListKeyPolicies",
    "TagResource",
    "UntagResource",
    "ListResourceTags",
    "CreateGrant",
    "ListGrants",
    "RevokeGrant",
}
# Its token names the grant, and that the key.
BY_GRANT = "RetireGrant"
# What AWS KMS has and kmsd tells everybody that it has not.
NOT_OFFERED = {
    "ReplicateKey",
    "UpdatePrimaryRegion",
    "ConnectCustomKeyStore",
    "CreateCustomKeyStore",
    "DeleteCustomKeyStore",
    "DescribeCustomKeyStores",
    "DisconnectCustomKeyStore",
    "UpdateCustomKeyStore",
}
# The alias names the key.
BY_ALIAS = "DeleteAlias"
# What changes something, by the first word of its name.
CHANGES = (
    "Confirm",
    "Create",
    "Delete",
    "Update",
    "Put",
    "Enable",
    "Disable",
    "Rotate",
    "Schedule",
    "Cancel",
    "Tag",
    "Untag",
    "Reload",
    "Retire",
    "Revoke",
    "Seal",
    "Unseal",
)
# What looks at a key and does nothing with it, so that no policy of the key's is asked.
LOOKS_AT_A_KEY = {"SimulatePolicy"}
# Members that AWS's service model calls sensitive, and all that is ciphertext or a token. IncludeKeyMaterial is a word
# of two.
NEVER_RECORDED = re.compile(r"plaintext|ciphertext|header|token|(?<!^include_key_)material$|records|pin")

of_each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@of_each
def test_a_declaration_says_what_it_is_about(operation: Operation[Any, Any]) -> None:
    """A name, a one-line summary, shapes of its own kind."""
    assert BY_NAME[operation.name] is operation
    assert re.fullmatch(r"[A-Z][A-Za-z]{1,63}", operation.name)
    assert re.fullmatch(r"[A-Z].{1,110}\.", operation.summary)
    assert issubclass(operation.request, Request)
    assert issubclass(operation.response, Response)
    for shape in (operation.request, operation.response):
        assert inspect.getdoc(shape)


def test_names_are_declared_once() -> None:
    """Dispatch is by name."""
    assert len(BY_NAME) == len(OPERATIONS)


@of_each
def test_the_permission_is_aws_s(operation: Operation[Any, Any]) -> None:
    """kms:NAME unless AWS has it otherwise."""
    assert operation.actions == ACTIONS.get(operation.name, (action_of(operation.name),))
    assert operation.action == operation.actions[0]


@of_each
def test_key_states_and_usages_are_aws_s(operation: Operation[Any, Any]) -> None:
    """What uses key material needs an enabled key for encryption."""
    if operation.name in USES_KEY_MATERIAL:
        # Updating, in which AWS allows it too, is a state of multi-Region keys, which there are none of.
        assert operation.usable_in == (KeyState.ENABLED,)
        assert operation.usage is KeyUsage.ENCRYPT_DECRYPT
    else:
        assert set(operation.usable_in) == STATES.get(operation.name, set(KeyState))
        assert operation.usage is None


@of_each
def test_keys_are_named_as_aws_says(operation: Operation[Any, Any]) -> None:
    """A declared key is a required member; an operation that finds its keys otherwise says so."""
    if operation.key is None:
        finds_its_own = operation.name in {*USES_KEY_MATERIAL, BY_GRANT, BY_ALIAS, *NOT_OFFERED}
        assert operation.resolves_keys is not finds_its_own
        takes_a_key = operation.name in {*USES_KEY_MATERIAL, BY_GRANT, BY_ALIAS, *LOOKS_AT_A_KEY}
        assert (operation.key_access is KeyAccess.NONE) is not takes_a_key
        return
    fields = {field.name: field for field in msgspec.structs.fields(operation.request)}
    assert fields[operation.key].required
    named = KeyAccess.ID_OR_ARN if operation.name in NAMED_BY_ID_ONLY else KeyAccess.ANY
    assert operation.key_access is named


@of_each
def test_only_what_is_no_secret_is_recorded(operation: Operation[Any, Any]) -> None:
    """Neither plaintext nor ciphertext nor a token; and nothing of what cryptography answers."""
    members = {field.name: field.type for field in msgspec.structs.fields(operation.request)}
    for name in operation.audit_fields:
        assert not NEVER_RECORDED.search(name)
        assert "memoryview" not in str(members[name])
        assert "bytes'" not in str(members[name])
    answered = {field.name for field in msgspec.structs.fields(operation.response)}
    assert set(operation.audit_response) <= answered
    assert not any(NEVER_RECORDED.search(name) for name in operation.audit_response)
    if operation.cost is Cost.CRYPTOGRAPHY:
        assert operation.audit_response == ()


@of_each
def test_contexts_and_keys_are_always_recorded(operation: Operation[Any, Any]) -> None:
    """Whoever reads the trail can tell what was asked of which key."""
    for field in msgspec.structs.fields(operation.request):
        if field.name.endswith(("key_id", "encryption_context")):
            assert field.name in operation.audit_fields


@of_each
def test_changes_are_no_cryptography(operation: Operation[Any, Any]) -> None:
    """What is served at once cannot await the store, and what changes the store has an intent first."""
    assert operation.read_only or operation.cost in {Cost.STORE, Cost.TOKEN}
    changes = operation.name.startswith(CHANGES) and operation.name not in NOT_OFFERED
    assert operation.read_only is not changes


@of_each
def test_descriptors_come_with_what_goes_on_behind_the_reply(operation: Operation[Any, Any]) -> None:
    """One, to the worker, for the PIN, or for the backup."""
    assert operation.descriptors == (
        operation.cost is Cost.FILE or operation.name in {"Unseal", "CreateBackup", "SubscribeEvents"}
    )


def test_what_works_sealed_needs_no_key() -> None:
    """The status, the trail and its events, what decides whether there are keys, and to say what is not offered."""
    sealed = {operation.name for operation in OPERATIONS if operation.works_sealed} - NOT_OFFERED
    assert sealed == {
        "Status",
        "GetAuditAnchor",
        "GetAuditRecords",
        "GetMetrics",
        "SubscribeEvents",
        "ReloadHostPolicy",
        "Seal",
        "Unseal",
    }


@of_each
def test_no_frame_is_larger_than_any_may_be(operation: Operation[Any, Any]) -> None:
    """What a request may take is bounded before it is read."""
    assert operation.frame_bytes <= MAX_FRAME_BYTES


@of_each
def test_names_of_members_are_translated_back_and_forth(operation: Operation[Any, Any]) -> None:
    """The wire's names are AWS's, Python's are Python's."""
    for shape in (operation.request, operation.response):
        for field in msgspec.structs.fields(shape):
            assert member_name(field.name) == field.encode_name
            assert attribute_name(field.encode_name) == field.name


def test_dry_runs_are_where_aws_has_them() -> None:
    """In each operation with key material, and in those that give and take grants."""
    dry = {operation.name for operation in OPERATIONS if "dry_run" in operation.request.__struct_fields__}
    assert dry == (USES_KEY_MATERIAL - OURS) | {"CreateGrant", "RetireGrant", "RevokeGrant"}


class _Request(Request, frozen=True, kw_only=True):
    """A request of a declaration that is wrong."""

    key_id: str


@pytest.mark.parametrize(
    "members",
    [
        {"key": "arn"},
        {"audit_fields": ("key_id", "plaintext")},
        {"frame_bytes": MAX_FRAME_BYTES + 1},
    ],
    ids=["key", "audit field", "frame"],
)
def test_a_declaration_that_cannot_be_right_is_refused(members: dict[str, Any]) -> None:
    """When it is made, so that nothing starts with it."""
    given = {"audit_fields": ("key_id",), **members}
    with pytest.raises(TypeError, match="Wrong"):
        Operation(name="Wrong", summary="", request=_Request, response=Empty, cost=Cost.STORE, **given)


def test_all_but_ours_are_aws_s() -> None:
    """Names of AWS KMS's operations, from its service model."""
    theirs = {operation.name for operation in OPERATIONS} - OURS
    assert theirs == {
        "GetKeyLastUsage",
        "CreateKey",
        "DescribeKey",
        "ListKeys",
        "EnableKey",
        "DisableKey",
        "EnableKeyRotation",
        "DisableKeyRotation",
        "GetKeyRotationStatus",
        "RotateKeyOnDemand",
        "ListKeyRotations",
        "ScheduleKeyDeletion",
        "CancelKeyDeletion",
        "GetKeyPolicy",
        "PutKeyPolicy",
        "ListKeyPolicies",
        "TagResource",
        "UntagResource",
        "ListResourceTags",
        "CreateGrant",
        "ListGrants",
        "ListRetirableGrants",
        "RetireGrant",
        "RevokeGrant",
        "UpdateKeyDescription",
        "CreateAlias",
        "UpdateAlias",
        "DeleteAlias",
        "ListAliases",
        "Encrypt",
        "Decrypt",
        "ReEncrypt",
        "GenerateDataKey",
        "GenerateDataKeyWithoutPlaintext",
        "GenerateRandom",
        *NOT_OFFERED,
    }
