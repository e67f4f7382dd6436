"""Datagrams between client and file worker: `kmsd.envelope.conversation`."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import ERRORS, KmsError, ProtocolError, ThrottlingError
from kmsd.api.failure import Failure
from kmsd.envelope.conversation import (
    MAX_DATAGRAM_BYTES,
    Done,
    Progress,
    Report,
    Start,
    decode_report,
    decode_start,
    encode,
)

counts = st.integers(0, 2**62)
starts = st.builds(Start, progress=st.booleans(), size=st.none() | counts)
reports = st.one_of(
    st.builds(Report, progress=st.builds(Progress, counts, st.none() | counts)),
    st.builds(Report, done=st.builds(Done, counts, counts)),
    st.builds(Report, error=st.builds(Failure, st.text(max_size=30), st.text(max_size=200))),
)


@given(starts, reports)
def test_datagrams_decode_to_what_was_said(start: Start, report: Report) -> None:
    """Both sides' encodings are read by the other."""
    assert decode_start(encode(start)) == start
    assert decode_report(encode(report)) == report


@given(st.binary(max_size=100) | starts.map(encode).map(lambda data: data[:-1]))
def test_anything_else_is_a_protocol_error(data: bytes) -> None:
    """No datagram raises anything but a ProtocolError."""
    for decode in (decode_start, decode_report):
        with contextlib.suppress(ProtocolError):
            decode(data)


def test_text_that_is_no_utf_8_is_a_protocol_error() -> None:
    """The decoder's error of another kind is one of the protocol too."""
    with pytest.raises(ProtocolError):
        decode_report(encode(Report(error=Failure("code", "?"))).replace(b"?", b"\xff"))
    with pytest.raises(ProtocolError):
        decode_start(encode(Start()).replace(b"start", b"st\xffrt"))


@pytest.mark.parametrize("kind", ERRORS.values())
def test_every_error_is_told_and_heard(kind: type[KmsError]) -> None:
    """Class, text and whether it may be retried cross the socket."""
    heard = decode_report(encode(Report(error=Failure.of(kind("what happened"))))).error

    assert heard is not None
    assert type(heard.error()) is kind
    assert (heard.error().message, heard.error().retryable) == ("what happened", kind.retryable)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=900, max_size=3000))
def test_the_longest_error_fits_a_datagram(text: str) -> None:
    """A text is cut, rather than its datagram."""
    assert len(encode(Report(error=Failure.of(ThrottlingError(text))))) <= MAX_DATAGRAM_BYTES
