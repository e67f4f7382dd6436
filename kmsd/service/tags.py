"""Tags of keys: names and values by which people group keys, and conditions of policies ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kmsd.api import tags as api
from kmsd.api.errors import LimitExceededError, TagError
from kmsd.api.operation import Operation
from kmsd.api.shapes import Empty, Tag
from kmsd.service.call import Call
from kmsd.service.key_changes import KeyChanges
from kmsd.service.pagination import after, cut
from kmsd.service.records import KeyRecord

# AWS keeps names that begin so for itself.
_RESERVED = "aws:"


class Tags:
    """Handlers of tags."""

    def __init__(self, *, changes: KeyChanges) -> None:
        self._changes = changes

    async def tag(self, call: Call, request: api.TagResourceRequest, key: KeyRecord) -> Empty:
        """Give a key tags; one that it has gets the new value."""
        tags = {**key.row.tags, **checked_tags(request.tags)}
        if len(tags) > api.TAGS_PER_KEY:
            raise LimitExceededError(f"{key.arn} would have {len(tags)} tags; {api.TAGS_PER_KEY} are the limit")
        await self._changes.make(call, key, tags=tags)
        return Empty()

    async def untag(self, call: Call, request: api.UntagResourceRequest, key: KeyRecord) -> Empty:
        """Take tags off a key; those that it does not have are passed over."""
        _check_names(request.tag_keys)
        tags = {name: value for name, value in key.row.tags.items() if name not in request.tag_keys}
        await self._changes.make(call, key, tags=tags)
        return Empty()

    async def list(
        self,
        call: Call,  # noqa: ARG002 - handlers share one form
        request: api.ListResourceTagsRequest,
        key: KeyRecord,
    ) -> api.ListResourceTagsResponse:
        """List the tags of a key by name."""
        last = after(request.marker)
        names = sorted(name for name in key.row.tags if last is None or name > last)
        shown, page = cut(names, request.limit, str)
        tags = [Tag(tag_key=name, tag_value=key.row.tags[name]) for name in shown]
        return api.ListResourceTagsResponse(tags=tags, next_marker=page.next_marker, truncated=page.truncated)


def checked_tags(tags: Sequence[Tag]) -> dict[str, str]:
    """Return tags that people may give, by name; raises TagError."""
    _check_names([tag.tag_key for tag in tags])
    return {tag.tag_key: tag.tag_value for tag in tags}


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise TagError("a tag key is given twice")
    if any(name.startswith(_RESERVED) for name in names):
        raise TagError(f"tag keys that begin with {_RESERVED} are reserved")


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.TAG_RESOURCE: Tags.tag,
    api.UNTAG_RESOURCE: Tags.untag,
    api.LIST_RESOURCE_TAGS: Tags.list,
}
