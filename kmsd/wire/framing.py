"""Frames: a length of four bytes, then a body of that many.

`FrameBuffer` turns a stream of bytes, however it was cut, into bodies:

1. The peer's bytes are read straight into `space()`; `frames()` hands out views of them, so nothing is copied.
2. A length is checked as soon as its four bytes are there, before any of the body is kept.
3. Memory grows with the bytes that arrived, never with a length that was announced, and never beyond one frame; it is
   given back as soon as the frame that needed it was taken.
4. A frame that was handed out stays as it is for as long as anything refers to it: before the buffer is used again
   it asks whether a view of it lives, and if so leaves it to its holder and takes a fresh one. Decoded requests refer
   to their frame (`memoryview` members), and one that has to wait for the store must not see the next one's bytes.
"""

from __future__ import annotations

import struct

from kmsd.api.errors import ProtocolError

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size

# What an idle connection keeps: 1,024 connections (DESIGN 13) then hold 16 MiB, and a batch of 32 frames (DESIGN 3),
# which have some 200-400 bytes each, still comes in with one read.
_IDLE_BYTES = 16 * 1024


def seal_frame(out: bytearray, start: int) -> None:
    """Write the length of the frame that begins at `start`, with `LENGTH_BYTES` left free, and ends with `out`."""
    _LENGTH.pack_into(out, start, len(out) - start - LENGTH_BYTES)


class FrameBuffer:
    """Bytes in, bodies of frames out; `max_body` (bytes) is the longest body that is let in."""

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._limit = LENGTH_BYTES + max_body
        self._idle = min(_IDLE_BYTES, self._limit)
        self._buffer = bytearray(self._idle)
        self._start = 0
        self._end = 0

    @property
    def buffered(self) -> int:
        """How many bytes have come in that no frame was made of yet."""
        return self._end - self._start

    def space(self) -> memoryview:
        """Return where to read into next, at least one byte.

        Use it at once and keep no reference to it (`sock.recv_into(frames.space())`): a living one makes the next
        call allocate. Raises BufferError when the buffer is full of frames that were not taken.
        """
        if self._start:
            self._move_to_front()
        if self._end == len(self._buffer):
            self._grow()
        return memoryview(self._buffer)[self._end :]

    def received(self, count: int) -> None:
        """Say that `count` bytes were read into what `space()` returned."""
        self._end += count

    def frames(self, limit: int) -> list[memoryview]:
        """Return the bodies of the complete frames, in order and at most `limit`.

        Raises ProtocolError when the next frame announces no body or one of more than `max_body` bytes, after the
        frames before it were returned.
        """
        bodies: list[memoryview] = []
        view = memoryview(self._buffer)
        start, end = self._start, self._end
        while end - start >= LENGTH_BYTES and len(bodies) < limit:
            (length,) = _LENGTH.unpack_from(view, start)
            if not 0 < length <= self._max_body:
                if bodies:
                    break
                raise ProtocolError(f"a frame announces {length} bytes; 1 to {self._max_body} are allowed")
            body = start + LENGTH_BYTES
            if end - body < length:
                break
            start = body + length
            bodies.append(view[body:start])
        self._start = start
        if bodies and len(self._buffer) > self._idle and end - start < self._idle:
            # Here and not at the next space(), which an idle connection never asks for.
            self._replace(self._idle)
            self._start, self._end = 0, end - start
        return bodies

    def wipe(self) -> None:
        """Overwrite the frames that were taken, which may hold a plaintext, unless something refers to them still.

        For a connection that goes idle: the next bytes would overwrite them only when they come.
        """
        if self._start and not self._is_held():
            self._buffer[: self._start] = bytes(self._start)

    def _move_to_front(self) -> None:
        kept = self._end - self._start
        if self._is_held():
            self._replace(len(self._buffer))
        elif kept:
            view = memoryview(self._buffer)
            view[:kept] = view[self._start : self._end]
        self._start, self._end = 0, kept

    def _grow(self) -> None:
        if self._end == self._limit:
            raise BufferError("the buffer is full: take its frames first")
        self._replace(min(2 * self._end, self._limit))

    def _replace(self, size: int) -> None:
        kept = memoryview(self._buffer)[self._start : self._end]
        self._buffer = bytearray(size)
        self._buffer[: len(kept)] = kept

    def _is_held(self) -> bool:
        """Tell whether any view of the buffer lives: such a bytearray refuses to change its size."""
        try:
            self._buffer.append(0)
        except BufferError:
            return True
        self._buffer.pop()
        return False
