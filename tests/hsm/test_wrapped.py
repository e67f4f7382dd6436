"""The format of wrapped domain keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.hsm.root import WrappedDomainKey, WrappedKeyInvalidError
from kmsd.hsm.wrapped import MAX_ID_BYTES, WRAPPED_BYTES, Sealed, associated_data, join, split

ids = st.text(min_size=1, max_size=MAX_ID_BYTES).filter(
    lambda text: len(text.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES and text.isprintable()
)
generations = st.integers(0, (1 << 64) - 1)


@given(iv=st.binary(min_size=12, max_size=12), body=st.binary(min_size=48, max_size=48))
def test_what_is_joined_can_be_split(iv: bytes, body: bytes) -> None:
    """A wrapped key gives back the parts it was made of."""
    wrapped = join(Sealed(iv, body))

    assert len(wrapped) == WRAPPED_BYTES
    assert split(WrappedDomainKey("id", 0, wrapped)) == (iv, body)


@given(wrapped=st.binary(max_size=100).filter(lambda data: len(data) != WRAPPED_BYTES or data[0] != 1))
def test_other_bytes_are_refused(wrapped: bytes) -> None:
    """Whatever has another length or version is refused, by an error that names the key."""
    with pytest.raises(WrappedKeyInvalidError, match="domain key 'the-id'"):
        split(WrappedDomainKey("the-id", 0, wrapped))


def test_a_newer_version_is_named_as_such() -> None:
    """Someone who went back to an older kmsd is told so."""
    with pytest.raises(WrappedKeyInvalidError, match="newer kmsd"):
        split(WrappedDomainKey("id", 0, b"\x02" + bytes(WRAPPED_BYTES - 1)))


@given(one=st.tuples(ids, generations), other=st.tuples(ids, generations))
def test_different_places_have_different_associated_data(one: tuple[str, int], other: tuple[str, int]) -> None:
    """No two pairs of id and generation bind alike."""
    assert (associated_data(*one) == associated_data(*other)) == (one == other)


def test_associated_data_is_as_documented() -> None:
    """The format is fixed: what it makes today opens for ever."""
    expected = bytes.fromhex("01 0005") + b"key-1" + bytes.fromhex("0000000000000007")

    assert associated_data("key-1", 7) == expected


@pytest.mark.parametrize(
    ("domain_key_id", "generation"), [("", 0), ("i" * (MAX_ID_BYTES + 1), 0), ("id", -1), ("id", 1 << 64)]
)
def test_what_the_format_cannot_hold_is_refused(domain_key_id: str, generation: int) -> None:
    """An id or generation out of bounds is a mistake of the program, not of the data."""
    with pytest.raises(ValueError, match=r"domain key id|generation"):
        associated_data(domain_key_id, generation)
