"""Tags of keys: given, taken, listed, and asked for by conditions."""

from __future__ import annotations

import json

import pytest

from kmsd.api.errors import AccessDeniedError, InvalidMarkerError, LimitExceededError, TagError
from kmsd.api.shapes import Tag
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.api.tags import (
    LIST_RESOURCE_TAGS,
    TAG_RESOURCE,
    TAGS_PER_KEY,
    UNTAG_RESOURCE,
    ListResourceTagsRequest,
    TagResourceRequest,
    UntagResourceRequest,
)
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, person


def tags_of(**pairs: str) -> list[Tag]:
    return [Tag(tag_key=name, tag_value=value) for name, value in pairs.items()]


async def tag(service: Embedded, arn: str, **pairs: str) -> None:
    await service.ask(ALICE, TAG_RESOURCE, TagResourceRequest(key_id=arn, tags=tags_of(**pairs)))


async def untag(service: Embedded, arn: str, *names: str) -> None:
    await service.ask(ALICE, UNTAG_RESOURCE, UntagResourceRequest(key_id=arn, tag_keys=list(names)))


async def listed(service: Embedded, arn: str) -> dict[str, str]:
    response = await service.ask(ALICE, LIST_RESOURCE_TAGS, ListResourceTagsRequest(key_id=arn))
    return {one.tag_key: one.tag_value for one in response.tags}


async def test_tags_are_given_changed_and_taken(service: Embedded) -> None:
    """One that is there gets the new value, one that is not there is passed over."""
    arn = await service.make_key(tags=tags_of(team="blue"))

    await tag(service, arn, team="red", stage="live")
    assert await listed(service, arn) == {"stage": "live", "team": "red"}
    await untag(service, arn, "stage", "never-there")

    assert await listed(service, arn) == {"team": "red"}


async def test_the_pages_of_tags_are_all_tags(service: Embedded) -> None:
    """By name, each once."""
    names = [f"t{number}" for number in range(5)]
    arn = await service.make_key(tags=tags_of(**dict.fromkeys(names, "")))
    found: list[str] = []
    marker, truncated = None, True
    while truncated:
        request = ListResourceTagsRequest(key_id=arn, limit=2, marker=marker)
        page = await service.ask(ALICE, LIST_RESOURCE_TAGS, request)
        found += [one.tag_key for one in page.tags]
        marker, truncated = page.next_marker, page.truncated

    assert found == names
    with pytest.raises(InvalidMarkerError):
        await service.ask(ALICE, LIST_RESOURCE_TAGS, ListResourceTagsRequest(key_id=arn, marker="mine"))


async def test_a_key_has_a_bounded_number_of_tags(service: Embedded) -> None:
    """One more is refused, another value for one that is there is not."""
    names = [f"t{number}" for number in range(TAGS_PER_KEY)]
    arn = await service.make_key(tags=tags_of(**dict.fromkeys(names, "")))

    with pytest.raises(LimitExceededError, match="51 tags"):
        await tag(service, arn, more="")
    await tag(service, arn, t0="new")

    assert len(await listed(service, arn)) == TAGS_PER_KEY


async def test_tags_that_may_not_be_given_are_refused(service: Embedded) -> None:
    """AWS's own, and one that is given twice."""
    arn = await service.make_key()

    with pytest.raises(TagError, match="reserved"):
        await tag(service, arn, **{"aws:x": ""})
    with pytest.raises(TagError, match="reserved"):
        await untag(service, arn, "aws:x")
    twice = tags_of(a="") + tags_of(a="b")
    with pytest.raises(TagError, match="twice"):
        await service.ask(ALICE, TAG_RESOURCE, TagResourceRequest(key_id=arn, tags=twice))


async def test_a_key_is_made_with_tags_by_who_may_tag_what_he_makes(service: Embedded) -> None:
    """The host policy lets those who may make keys; that lets them tag no key of others."""
    arn = await service.make_key(ROOT, tags=tags_of(team="blue"))

    with pytest.raises(AccessDeniedError, match="kms:TagResource"):
        await tag(service, arn, team="red")
    with pytest.raises(AccessDeniedError, match="kms:CreateKey"):
        await service.make_key(person(7, user=None, gid=7), tags=tags_of(team="blue"))


async def test_a_change_of_tags_is_seen_by_the_next_request(service: Embedded) -> None:
    """Policies may ask for them."""
    statements = [
        {"Effect": "Allow", "Principal": {"Unix": "user:alice"}, "Action": "kms:*", "Resource": "*"},
        {
            "Effect": "Allow",
            "Principal": {"Unix": "user:bob"},
            "Action": "kms:Encrypt",
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:ResourceTag/shared": "yes"}},
        },
    ]
    arn = await service.make_key(policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"))
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, request)

    await tag(service, arn, shared="yes")
    await service.ask(BOB, ENCRYPT, request)
    await tag(service, arn, shared="no")
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, request)
    await tag(service, arn, shared="yes")
    await untag(service, arn, "shared")

    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, request)
