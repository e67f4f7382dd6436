"""Operations on the tags of keys."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, KeyAccess, KeyState, Operation
from kmsd.api.shapes import Empty, KeyIdentifier, Marker, Request, Response, Tag

# AWS KMS quota: tags of one key.
TAGS_PER_KEY = 50


class TagResourceRequest(Request, frozen=True, kw_only=True):
    """Members of TagResource; a tag that the key has gets the new value."""

    key_id: KeyIdentifier
    tags: Annotated[list[Tag], Meta(min_length=1, max_length=TAGS_PER_KEY)]


class UntagResourceRequest(Request, frozen=True, kw_only=True):
    """Members of UntagResource; a tag that the key does not have is passed over."""

    key_id: KeyIdentifier
    tag_keys: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(min_length=1, max_length=TAGS_PER_KEY)
    ]


class ListResourceTagsRequest(Request, frozen=True, kw_only=True):
    """Members of ListResourceTags."""

    key_id: KeyIdentifier
    limit: Annotated[int, Meta(ge=1, le=50)] = 50
    marker: Marker | None = None


class ListResourceTagsResponse(Response, frozen=True, kw_only=True):
    """What ListResourceTags answers, ordered by tag key."""

    tags: list[Tag]
    next_marker: str | None = None
    truncated: bool = False


_NOT_IN_DELETION = tuple(state for state in KeyState if state is not KeyState.PENDING_DELETION)

TAG_RESOURCE = Operation(
    name="TagResource",
    summary="Give a key tags.",
    request=TagResourceRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=_NOT_IN_DELETION,
    audit_fields=("key_id", "tags"),
)
UNTAG_RESOURCE = Operation(
    name="UntagResource",
    summary="Take tags off a key.",
    request=UntagResourceRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=_NOT_IN_DELETION,
    audit_fields=("key_id", "tag_keys"),
)
LIST_RESOURCE_TAGS = Operation(
    name="ListResourceTags",
    summary="List the tags of a key.",
    request=ListResourceTagsRequest,
    response=ListResourceTagsResponse,
    cost=Cost.STORE,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    audit_fields=("key_id", "limit", "marker"),
)

OPERATIONS = (TAG_RESOURCE, UNTAG_RESOURCE, LIST_RESOURCE_TAGS)
