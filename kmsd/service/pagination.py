"""Pages of lists: markers, and how a page's end is found."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from kmsd.api.errors import InvalidMarkerError

_RowT = TypeVar("_RowT")
# A marker of this version: a tag, then the primary key of the last row that was given out.
_TAG = b"1:"


class Page(NamedTuple):
    """How a list's reply ends."""

    next_marker: str | None
    truncated: bool


def after(marker: str | None) -> str | None:
    """Return the primary key that a marker stands for; raises InvalidMarkerError for one we did not make."""
    if marker is None:
        return None
    try:
        content = base64.b64decode(marker, altchars=b"-_", validate=True)
        if not content.startswith(_TAG):
            raise InvalidMarkerError("the marker was not made by this service")
        return content[len(_TAG) :].decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise InvalidMarkerError("the marker was not made by this service") from None


def cut(rows: Sequence[_RowT], limit: int, primary_key: Callable[[_RowT], str]) -> tuple[Sequence[_RowT], Page]:
    """Cut `rows`, which were read with one more than `limit`, to a page and tell whether more follow."""
    if len(rows) <= limit:
        return rows, Page(None, truncated=False)
    page = rows[:limit]
    marker = base64.b64encode(_TAG + primary_key(page[-1]).encode(), altchars=b"-_").decode()
    return page, Page(marker, truncated=True)
