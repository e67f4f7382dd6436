"""The reading half of a file worker: takes from a source and fills buffers with what is to be written.

Frames smaller than 1 MiB are read and written many at a time, so that their length does not set the pace.
"""

from __future__ import annotations

from typing import Protocol

from kmsd.api.errors import MessageFormatError
from kmsd.envelope.descriptors import Source
from kmsd.envelope.frames import (
    FINAL_OVERHEAD,
    MAX_FRAME_LENGTH,
    REGULAR_OVERHEAD,
    UNFRAMED_OVERHEAD,
    UNFRAMED_PREFIX,
    FrameOpener,
    FrameSealer,
    open_unframed_into,
    unframed_length,
)
from kmsd.envelope.header import FRAMED, TAG_BYTES, MessageHeader

# 256 KiB to 4 MiB measure alike (DESIGN 10).
_BATCH_BYTES = 1024 * 1024


class Stage(Protocol):
    """Fills buffers of at least `buffer_bytes` until nothing is left."""

    buffer_bytes: int

    def produce(self, out: memoryview) -> int:
        """Fill the start of `out` and return how much; 0 when there is no more. Raises KmsError."""


class EncryptingStage:
    """Produces the message: `header_bytes`, then frames of what `source` gives."""

    def __init__(self, header: MessageHeader, header_bytes: bytes, message_key: memoryview, source: Source) -> None:
        self._header_bytes = header_bytes
        self._frame_length = header.frame_length
        self._sealer = FrameSealer(header.message_id, message_key, header.frame_length)
        self._source = source
        frames = _frames_in_a_batch(header.frame_length)
        batch = frames * header.frame_length
        self.buffer_bytes = len(header_bytes) + frames * (header.frame_length + REGULAR_OVERHEAD) + FINAL_OVERHEAD
        # Two, because whether a full batch ends in the final frame shows only when the next one was read.
        self._current, self._next = memoryview(bytearray(batch)), memoryview(bytearray(batch))
        self._filled: int | None = None
        self._final_made = False

    def produce(self, out: memoryview) -> int:
        """Make a batch of frames; the first comes behind the header."""
        if self._final_made:
            return 0
        end = 0
        if self._filled is None:
            self._filled = self._source.fill(self._current)
            end = len(self._header_bytes)
            out[:end] = self._header_bytes
        following = self._source.fill(self._next) if self._filled == len(self._current) else 0
        end += self._seal(self._current[: self._filled], out[end:], last_batch=following == 0)
        self._current, self._next, self._filled = self._next, self._current, following
        self._final_made = following == 0
        return end

    def _seal(self, plaintext: memoryview, out: memoryview, *, last_batch: bool) -> int:
        end = 0
        # An empty source still makes one frame: the final one, with nothing in it.
        for start in range(0, max(1, len(plaintext)), self._frame_length):
            piece = plaintext[start : start + self._frame_length]
            final = last_batch and start + self._frame_length >= len(plaintext)
            end += self._sealer.seal_into(piece, out[end:], final=final)
        return end


class DecryptingStage:
    """Produces the plaintext of a framed message whose body `source` gives. Only authenticated frames are produced.

    Raises MessageFormatError for frames above 16 MiB.
    """

    def __init__(self, header: MessageHeader, message_key: memoryview, source: Source) -> None:
        if header.frame_length > MAX_FRAME_LENGTH:
            raise MessageFormatError(
                f"frames above {MAX_FRAME_LENGTH} bytes are not supported; this message's have {header.frame_length}"
            )
        self._frame_length = header.frame_length
        self._opener = FrameOpener(header.message_id, message_key, header.frame_length)
        self._source = source
        frames = _frames_in_a_batch(header.frame_length)
        self.buffer_bytes = frames * header.frame_length
        # Whole regular frames, so that normally nothing is left over to be moved; one more place for a final frame,
        # which is longer by some bytes, but it is read only when one is left over.
        self._batch = frames * (header.frame_length + REGULAR_OVERHEAD)
        self._data = memoryview(bytearray(self._batch + FINAL_OVERHEAD))
        self._left = 0
        self._final_seen = False

    def produce(self, out: memoryview) -> int:
        """Open a batch of frames."""
        length = 0
        # One round nearly always. An empty final frame gives nothing to write, but then nothing more comes either.
        while length == 0 and not self._final_seen:
            length = self._round(out)
        return length

    def _round(self, out: memoryview) -> int:
        wanted = self._batch if self._left == 0 else len(self._data)
        filled = self._left + self._source.fill(self._data[self._left : wanted])
        length = taken = 0
        while len(out) - length >= self._frame_length:
            frame = self._opener.open_into(self._data[taken:filled], out[length:])
            if frame is None:
                if filled < wanted:
                    raise self._opener.truncated()
                break
            taken += frame.taken
            length += frame.length
            if frame.final:
                self._final_seen = True
                if filled > taken or self._source.fill(self._data[:1]):
                    raise MessageFormatError("something follows the message's final frame")
                break
        self._left = filled - taken
        self._data[: self._left] = self._data[taken:filled]
        return length


class UnframedStage:
    """Produces the plaintext of an unframed message of at most 16 MiB, all at once after it was authenticated."""

    def __init__(self, header: MessageHeader, message_key: memoryview, source: Source) -> None:
        self._message_id = header.message_id
        self._key = message_key
        self._source = source
        # Only touched pages cost memory, so a short message costs little.
        self.buffer_bytes = MAX_FRAME_LENGTH
        self._done = False

    def produce(self, out: memoryview) -> int:
        """Open the one block."""
        if self._done:
            return 0
        prefix = memoryview(bytearray(UNFRAMED_PREFIX))
        if self._source.fill(prefix) < len(prefix):
            raise self._truncated()
        length = unframed_length(prefix)
        body = memoryview(bytearray(length + UNFRAMED_OVERHEAD))
        body[:UNFRAMED_PREFIX] = prefix
        if self._source.fill(body[UNFRAMED_PREFIX:]) < length + TAG_BYTES:
            raise self._truncated()
        open_unframed_into(self._message_id, self._key, body, out[:length])
        if self._source.fill(prefix[:1]):
            raise MessageFormatError("something follows the message's end")
        self._done = True
        return length

    @staticmethod
    def _truncated() -> MessageFormatError:
        return MessageFormatError("the message ends before its tag: it was truncated")


def decrypting_stage(header: MessageHeader, message_key: memoryview, source: Source) -> Stage:
    """Return the stage for the header's content type."""
    return (DecryptingStage if header.content_type == FRAMED else UnframedStage)(header, message_key, source)


def _frames_in_a_batch(frame_length: int) -> int:
    return max(1, _BATCH_BYTES // (frame_length + REGULAR_OVERHEAD))
