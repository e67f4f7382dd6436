"""Pages: together they are the whole list, and no marker but ours is read."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import InvalidMarkerError
from kmsd.service.pagination import after, cut


@given(rows=st.sets(st.text(min_size=1, max_size=8).filter(str.isprintable), max_size=30), limit=st.integers(1, 10))
def test_the_pages_are_the_list(rows: set[str], limit: int) -> None:
    """Each row comes once and in order; only the last page says that nothing follows."""
    ordered = sorted(rows)
    found: list[str] = []
    marker, truncated = None, True
    while truncated:
        start = after(marker)
        read = [row for row in ordered if start is None or row > start][: limit + 1]
        shown, (marker, truncated) = cut(read, limit, lambda row: row)
        assert len(shown) <= limit
        found += shown

    assert found == ordered
    assert marker is None


@given(key=st.text(max_size=300))
def test_a_marker_is_printable_and_short(key: str) -> None:
    """AWS: 1 to 1,024 characters; an alias has 256 bytes at most."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return
    _, page = cut([key, "z"], 1, lambda row: row)

    assert page.next_marker is not None
    assert page.next_marker.isascii()
    assert after(page.next_marker) == key


@given(text=st.text(max_size=50))
@pytest.mark.parametrize("form", ["plain", "encoded"])
def test_no_other_marker_is_read(form: str, text: str) -> None:
    """Whatever a peer sends is a marker of ours or refused as none."""
    marker = text if form == "plain" else base64.b64encode(text.encode(errors="replace")).decode()
    try:
        after(marker)
    except InvalidMarkerError:
        return
    assert base64.b64decode(marker, b"-_").startswith(b"1:")


@pytest.mark.parametrize("marker", ["", "eA==", "MTo", "\ud800", base64.b64encode(b"1:\xff").decode()])
def test_broken_markers_are_refused(marker: str) -> None:
    """No tag, no padding, no Unicode."""
    with pytest.raises(InvalidMarkerError):
        after(marker)
