"""Frames out of a stream of bytes, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import ProtocolError
from kmsd.wire.framing import LENGTH_BYTES, FrameBuffer, seal_frame

MAX_BODY = 100_000


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def feed(buffer: FrameBuffer, data: bytes) -> bytes:
    """Put as much of `data` into the buffer as one read would, and return the rest."""
    space = buffer.space()
    count = min(len(space), len(data))
    space[:count] = data[:count]
    buffer.received(count)
    return data[count:]


def size_of(buffer: FrameBuffer) -> int:
    return len(buffer._buffer)


@given(
    st.lists(st.binary(min_size=1, max_size=300) | st.integers(1, MAX_BODY).map(bytes), max_size=8),
    st.lists(st.integers(1, 70_000), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_frames_come_out_as_they_went_in(bodies: list[bytes], chunks: list[int], limit: int) -> None:
    """Whatever the chunks and however many are taken at once, the bodies are the same and in order."""
    buffer = FrameBuffer(MAX_BODY)
    stream = b"".join(map(framed, bodies))
    taken = []
    position = turn = 0
    while position < len(stream):
        chunk = stream[position : position + chunks[turn % len(chunks)]]
        position += len(chunk) - len(feed(buffer, chunk))
        turn += 1
        while frames := buffer.frames(limit):
            assert len(frames) <= limit
            taken += [bytes(frame) for frame in frames]

    assert bodies == taken
    assert buffer.buffered == 0


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=50))
def test_any_bytes_give_frames_or_a_protocol_error_in_bounded_memory(chunks: list[bytes]) -> None:
    """Arbitrary bytes never do anything else, and never make the buffer longer than one frame."""
    limit = 1000
    buffer = FrameBuffer(limit)
    try:
        for chunk in chunks:
            data = chunk
            while data:
                data = feed(buffer, data)
                while frames := buffer.frames(3):
                    assert all(0 < len(frame) <= limit for frame in frames)
            assert size_of(buffer) <= LENGTH_BYTES + limit
    except ProtocolError:
        pass


@pytest.mark.parametrize("length", [0, MAX_BODY + 1, 2**32 - 1])
def test_a_length_that_is_not_allowed_is_refused_before_its_body_arrives(length: int) -> None:
    """Four bytes are enough to refuse a frame, again and again."""
    buffer = FrameBuffer(MAX_BODY)
    feed(buffer, length.to_bytes(4, "big"))

    for _ in range(2):
        with pytest.raises(ProtocolError, match=str(length)):
            buffer.frames(1)


def test_the_frames_before_a_broken_one_are_returned_first() -> None:
    """A peer is served up to the point where it broke the protocol."""
    buffer = FrameBuffer(MAX_BODY)
    feed(buffer, framed(b"good") + bytes(4))

    assert buffer.frames(10) == [b"good"]
    with pytest.raises(ProtocolError):
        buffer.frames(10)


def test_a_frame_stays_as_it_is_while_it_is_held() -> None:
    """A decoded request may refer to its frame and wait; later bytes must not replace it."""
    buffer = FrameBuffer(MAX_BODY)
    feed(buffer, framed(b"first") + framed(b"sec"))
    (held, _) = buffer.frames(2)
    for _ in range(3):
        feed(buffer, framed(b"later"))
        buffer.frames(1)

    assert bytes(held) == b"first"


def test_a_buffer_is_used_again_when_nothing_refers_to_its_frames() -> None:
    """The ordinary path allocates no memory."""
    buffer = FrameBuffer(MAX_BODY)
    feed(buffer, framed(b"first"))
    before = buffer._buffer
    buffer.frames(1)
    feed(buffer, framed(b"second"))

    assert before is buffer._buffer


def test_an_announced_length_takes_no_memory() -> None:
    """Memory follows what arrived."""
    buffer = FrameBuffer(1024 * 1024)
    before = size_of(buffer)
    feed(buffer, (1024 * 1024).to_bytes(4, "big") + b"x")
    buffer.frames(1)
    buffer.space()

    assert before == size_of(buffer)


def test_memory_for_a_large_frame_is_given_back() -> None:
    """A connection that had one large frame is not large for ever."""
    buffer = FrameBuffer(MAX_BODY)
    before = size_of(buffer)
    data = framed(bytes(MAX_BODY))
    while data:
        data = feed(buffer, data)
    assert size_of(buffer) > before
    (frame,) = buffer.frames(1)

    assert before == size_of(buffer)
    assert frame == bytes(MAX_BODY)


def test_what_came_behind_a_large_frame_is_kept() -> None:
    """When its memory is given back."""
    buffer = FrameBuffer(MAX_BODY)
    before = size_of(buffer)
    data = framed(bytes(40_000)) + framed(b"next") + framed(b"begun")[:6]
    while data:
        data = feed(buffer, data)

    assert [len(frame) for frame in buffer.frames(1)] == [40_000]
    assert before == size_of(buffer)
    assert buffer.frames(5) == [b"next"]
    feed(buffer, b"gun")
    assert buffer.frames(5) == [b"begun"]


def test_wiping_overwrites_taken_frames_and_nothing_else() -> None:
    """A plaintext need not stay for as long as its connection is idle."""
    buffer = FrameBuffer(MAX_BODY)
    feed(buffer, framed(b"plaintext") + framed(b"begun")[:6])
    held = buffer.frames(5)
    buffer.wipe()
    assert held == [b"plaintext"]

    held.clear()
    buffer.wipe()

    assert b"plaintext" not in buffer._buffer
    feed(buffer, b"gun")
    assert buffer.frames(5) == [b"begun"]


def test_a_buffer_full_of_frames_says_that_they_have_to_be_taken() -> None:
    """Reading on without taking frames is the owner's mistake and cannot grow the buffer."""
    buffer = FrameBuffer(100)
    feed(buffer, framed(b"x") * 50)

    with pytest.raises(BufferError):
        buffer.space()


def test_a_frame_is_sealed_with_its_length() -> None:
    """The length counts the body only."""
    out = bytearray(b"before") + bytes(LENGTH_BYTES) + b"body"
    seal_frame(out, len(b"before"))

    assert out == b"before\x00\x00\x00\x04body"
