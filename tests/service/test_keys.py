"""Making, describing and listing keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    DisabledError,
    InvalidMarkerError,
    KmsError,
    LimitExceededError,
    MalformedPolicyDocumentError,
    NotFoundError,
    TagError,
    UnsupportedOperationError,
    ValidationError,
)
from kmsd.api.keys import (
    CREATE_ALIAS,
    DESCRIBE_KEY,
    DISABLE_KEY,
    ENABLE_KEY,
    LIST_KEYS,
    UPDATE_KEY_DESCRIPTION,
    CreateAliasRequest,
    DescribeKeyRequest,
    EnableKeyRequest,
    ListKeysRequest,
    UpdateKeyDescriptionRequest,
)
from kmsd.api.operation import KeyState, KeyUsage
from kmsd.api.shapes import KeyManager, KeyOrigin, KeySpec, Tag
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.service.call import Session
from tests.support.embedded import ACCOUNT, ALICE, BOB, ROOT, Embedded

OpenService = Callable[..., Awaitable[Embedded]]


def policy(*principals: str, action: str = "kms:*", effect: str = "Allow") -> str:
    statement = {"Effect": effect, "Principal": {"Unix": list(principals)}, "Action": action, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


async def test_a_new_key_is_what_was_asked_for(service: Embedded) -> None:
    """The description of a key is the one its creation answered with, and its row has its facts."""
    arn = await service.make_key(description="for tests", tags=[Tag(tag_key="team", tag_value="blue")])

    described = (await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))).key_metadata

    assert described.arn == service.arns.key(described.key_id) == arn
    assert (described.account_id, described.description) == (ACCOUNT, "for tests")
    assert (described.enabled, described.key_state) == (True, KeyState.ENABLED)
    assert (described.key_usage, described.key_spec) == (KeyUsage.ENCRYPT_DECRYPT, KeySpec.SYMMETRIC_DEFAULT)
    assert (described.origin, described.key_manager) == (KeyOrigin.AWS_KMS, KeyManager.CUSTOMER)
    assert described.multi_region is False
    row = await service.store.key(described.key_id)
    assert row is not None
    assert (row.creator_uid, row.tags, row.policy_principals) == (1000, {"team": "blue"}, {"user:alice": 1000})
    material = await service.store.material(described.key_id, 1)
    assert material is not None
    assert described.current_key_material_id == material.material_id


async def test_the_default_policy_lets_its_creator_and_administrators_in(service: Embedded) -> None:
    """Others learn nothing; administrators may describe."""
    arn = await service.make_key()

    await service.ask(ROOT, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))


async def test_who_may_make_keys_the_host_policy_says(service: Embedded) -> None:
    """A refused creation leaves nothing, and no intent."""
    with pytest.raises(AccessDeniedError):
        await service.make_key(BOB)

    assert [record["eventType"] for record in service.lines()] == ["ApiCall"]


async def test_names_in_a_policy_are_resolved_when_it_is_stored(service: Embedded) -> None:
    """Both the name and its id are kept; a name nobody has is refused."""
    arn = await service.make_key(policy=policy("user:alice", "group:kms-users", "uid:7"))
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    assert row.policy_principals == {"user:alice": 1000, "group:kms-users": 500}

    with pytest.raises(MalformedPolicyDocumentError):
        await service.make_key(policy=policy("user:nobody-here"))


@pytest.mark.parametrize(
    "locking_out",
    [policy("user:bob"), policy("user:alice", action="kms:Encrypt"), policy("user:alice", effect="Deny")],
    ids=["others only", "use only", "deny"],
)
async def test_a_policy_that_locks_out_its_maker_is_refused(service: Embedded, locking_out: str) -> None:
    """Unless that is asked for."""
    with pytest.raises(MalformedPolicyDocumentError, match="will not allow you to update the key policy in the future"):
        await service.make_key(policy=locking_out)

    await service.make_key(policy=locking_out, bypass_policy_lockout_safety_check=True)


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"key_usage": KeyUsage.SIGN_VERIFY}, ValidationError),
        ({"multi_region": True}, UnsupportedOperationError),
        ({"policy": "{}"}, MalformedPolicyDocumentError),
        ({"policy": " " * 40_000}, LimitExceededError),
        ({"tags": [Tag(tag_key="a", tag_value=""), Tag(tag_key="a", tag_value="b")]}, TagError),
        ({"tags": [Tag(tag_key="aws:x", tag_value="")]}, TagError),
    ],
    ids=["usage", "multi-region", "policy", "long policy", "tag twice", "reserved tag"],
)
async def test_what_cannot_be_made_is_refused(
    service: Embedded, members: dict[str, Any], error: type[KmsError]
) -> None:
    """Nothing is stored."""
    with pytest.raises(error):
        await service.make_key(**members)

    assert await service.store.keys(after=None, limit=1) == []


async def test_a_uid_makes_a_bounded_number_of_keys(open_service: OpenService) -> None:
    """Also when it asks for all of them at the same time; another uid has its own."""
    service = await open_service(keys_per_uid=3)

    made = await asyncio.gather(*(service.make_key() for _ in range(8)), return_exceptions=True)

    assert sum(isinstance(one, str) for one in made) == 3
    assert sum(isinstance(one, LimitExceededError) for one in made) == 5
    assert isinstance(await service.make_key(ROOT), str)


async def test_the_pages_of_keys_are_all_keys(service: Embedded) -> None:
    """Ordered by id, seen by everybody who may list."""
    arns = sorted([await service.make_key() for _ in range(5)])
    found: list[str] = []
    marker = None
    for _ in range(3):
        page = await service.ask(BOB, LIST_KEYS, ListKeysRequest(limit=2, marker=marker))
        found += [entry.key_arn for entry in page.keys]
        assert all(entry.key_arn == service.arns.key(entry.key_id) for entry in page.keys)
        marker = page.next_marker
        assert page.truncated == (marker is not None)

    assert found == arns
    assert marker is None
    with pytest.raises(InvalidMarkerError):
        await service.ask(BOB, LIST_KEYS, ListKeysRequest(marker="mine"))


async def test_a_key_that_is_not_there_is_not_described(service: Embedded) -> None:
    """By id and by alias."""
    for name in ("1234abcd-12ab-34cd-56ef-1234567890ab", "alias/none"):
        with pytest.raises(NotFoundError):
            await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=name))


async def test_an_alias_describes_its_key(service: Embedded) -> None:
    """DescribeKey takes every form."""
    arn = await service.make_key()
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/a", target_key_id=arn))

    described = await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id="alias/a"))

    assert described.key_metadata.arn == arn


async def test_a_disabled_key_is_not_used_until_it_is_enabled(service: Embedded) -> None:
    """From the very next request on; it can be described and enabled, and doing it twice is the same as once."""
    arn = await service.make_key()
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"))
    await service.ask(ALICE, ENCRYPT, request)

    for _ in range(2):
        await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))
        with pytest.raises(DisabledError, match=f"{arn} is disabled"):
            await service.ask(ALICE, ENCRYPT, request)
    described = (await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))).key_metadata
    assert (described.enabled, described.key_state) == (False, KeyState.DISABLED)
    for _ in range(2):
        await service.ask(ROOT, ENABLE_KEY, EnableKeyRequest(key_id=arn))
        await service.ask(ALICE, ENCRYPT, request)


async def test_who_may_use_a_key_may_not_disable_it(service: Embedded) -> None:
    """Each is a permission of its own."""
    arn = await service.make_key(policy=policy("user:alice", action="kms:E*"), bypass_policy_lockout_safety_check=True)

    await service.ask(ALICE, ENABLE_KEY, EnableKeyRequest(key_id=arn))
    with pytest.raises(AccessDeniedError, match="kms:DisableKey"):
        await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))


async def describe_anew(service: Embedded, arn: str, description: str, session: Session = ALICE) -> None:
    request = UpdateKeyDescriptionRequest(key_id=arn, description=description)
    await service.ask(session, UPDATE_KEY_DESCRIPTION, request)


async def test_a_key_is_described_anew(service: Embedded) -> None:
    """Also while it is disabled; nothing may be said as well."""
    arn = await service.make_key(description="before")
    await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))

    for description in ("behind", "", "ä" * 8192):
        await describe_anew(service, arn, description)

        described = (await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))).key_metadata
        assert described.description == description


async def test_who_may_use_a_key_may_not_describe_it_anew(service: Embedded) -> None:
    """Nor does anybody a default key."""
    arn = await service.make_key()
    default = await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id="alias/kmsd/default"))

    with pytest.raises(AccessDeniedError, match="kms:UpdateKeyDescription"):
        await describe_anew(service, arn, "mine", BOB)
    for session in (ALICE, ROOT):
        with pytest.raises(AccessDeniedError, match="kms:UpdateKeyDescription"):
            await describe_anew(service, default.key_metadata.key_id, "mine", session)
