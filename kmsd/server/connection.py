"""One client's connection: reads frames, has them served, sends the replies; bounded in both directions.

The daemon never receives descriptors: its reads have no control buffer, the kernel drops what was passed, and
MSG_CTRUNC tells that somebody tried, which ends the connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from kmsd.api.errors import ProtocolError, ThrottlingError
from kmsd.server.limits import Share
from kmsd.service.batch import Batch
from kmsd.service.call import Session
from kmsd.service.pipeline import Pipeline
from kmsd.wire.codec import ReplyEncoder, Request, RequestDecoder
from kmsd.wire.connection import ServerConnection
from kmsd.wire.framing import FrameBuffer

# So many requests of one connection are served before the others have their turn.
_FRAMES_PER_TICK = 32


class _Segment(NamedTuple):
    """Bytes that wait to be sent, and descriptors that leave with their first byte."""

    data: memoryview
    descriptors: list[int]


class Connection:
    """Serves one connected socket until its peer hangs up, breaks the protocol or the daemon stops."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        session: Session,
        share: Share,
        pipeline: Pipeline,
        *,
        max_body: int,
        closed: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._session = session
        self._pipeline = pipeline
        self._closed = closed
        self._limits = share.limits
        self.share = share
        self._buffer = FrameBuffer(max_body)
        self._decoder = RequestDecoder()
        self._encoder = ReplyEncoder()
        self._state = ServerConnection(share.limits.requests_in_flight_per_uid)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsent: deque[_Segment] = deque()
        self._unsent_bytes = 0
        self._reading = False
        self._throttled: asyncio.TimerHandle | None = None
        self._ending = False

    def start(self) -> None:
        """Begin to serve."""
        self._resume_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._ending and self._throttled is None and not self._is_congested():
            self._reading = True
            self._loop.add_reader(self._socket, self._readable)

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _is_congested(self) -> bool:
        return self._unsent_bytes > self._limits.send_buffer_bytes_per_connection

    def _readable(self) -> None:
        try:
            count, _, flags, _ = self._socket.recvmsg_into([self._buffer.space()])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if count == 0 or flags & socket.MSG_CTRUNC:
            self.close()
            return
        self._buffer.received(count)
        self._serve_frames()

    def _serve_frames(self) -> None:
        batch = Batch()
        charges = 0.0
        served = 0
        try:
            for frame in self._buffer.frames(_FRAMES_PER_TICK):
                served += 1
                charges += 1 + len(frame) // self._limits.bytes_per_request_charge
                request = self._decoder.decode(frame)
                self._state.begin(request.id)
                if self.share.in_flight >= self._limits.requests_in_flight_per_uid:
                    self._throttle(request, batch)
                    continue
                later = self._pipeline.serve(self._session, request, batch)
                if later is None:
                    self._state.end(request.id)
                else:
                    self._follow(request.id, later)
        except ProtocolError as error:
            self._ending = True
            self._pause_reading()
            self._encoder.append_error(batch.out, 0, error)
        self._complete(batch)
        wait = self.share.bucket.charge(charges)
        if self._ending:
            return
        if wait > 0:
            self._pause_for(wait)
        elif served == _FRAMES_PER_TICK:
            # More may be in the buffer already, which no readiness would tell.
            self._pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._ending:
            self._serve_frames()
            self._resume_reading()

    def _throttle(self, request: Request, batch: Batch) -> None:
        self._state.end(request.id)
        limit = self._limits.requests_in_flight_per_uid
        error = ThrottlingError(f"{limit} requests of this uid are in flight, which is its limit")
        self._pipeline.refuse(self._session, request, batch, error)

    def _pause_for(self, seconds: float) -> None:
        """Stop reading for a time: a peer above its rate is slowed down, and learns of it by waiting."""
        self._pause_reading()
        self._throttled = self._loop.call_later(seconds, self._end_pause)

    def _end_pause(self) -> None:
        self._throttled = None
        self._go_on()

    def _follow(self, identifier: int, later: Coroutine[Any, Any, Batch]) -> None:
        self.share.in_flight += 1
        self._run(self._await(identifier, later))

    async def _await(self, identifier: int, later: Coroutine[Any, Any, Batch]) -> None:
        try:
            batch = await later
        finally:
            self.share.in_flight -= 1
            self._state.end(identifier)
        if self._ending:
            _discard(batch)
        else:
            self._send(batch)

    def _complete(self, batch: Batch) -> None:
        if batch.identifiers:
            self._pipeline.finish(batch)
            if self._pipeline.settles:
                self._run(self._send_settled(batch))
                return
        self._send(batch)

    async def _send_settled(self, batch: Batch) -> None:
        await self._pipeline.settle(batch)
        self._send(batch)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, batch: Batch) -> None:
        if not batch.out:
            if self._ending:
                self._close_when_sent()
            return
        if not self._unsent and not batch.descriptors:
            # By far the most frequent: everything leaves at once, and nothing of a plaintext stays behind.
            try:
                sent = self._socket.send(batch.out)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(batch.out):
                batch.out[:] = bytes(sent)
                if self._ending:
                    self.close()
                return
            batch.out[:sent] = bytes(sent)
            del batch.out[:sent]
        self._unsent.append(_Segment(memoryview(batch.out), batch.descriptors))
        self._unsent_bytes += len(batch.out)
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else self._socket.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._writable)
                self._close_or_pause()
                return
            except OSError:
                self.close()
                return
            _close_all(descriptors)
            # A reply may hold a plaintext: nothing of it stays behind.
            data[:sent] = bytes(sent)
            self._unsent_bytes -= sent
            self._unsent.popleft()
            if sent < len(data):
                self._unsent.appendleft(_Segment(data[sent:], []))
        if self._ending:
            self.close()

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._flush()
        if not self._unsent:
            self._resume_reading()

    def _close_or_pause(self) -> None:
        if self._is_congested():
            self._pause_reading()

    def _close_when_sent(self) -> None:
        if not self._unsent:
            self.close()

    def close(self) -> None:
        """End the connection and cancel what was being served for it; safe to call twice."""
        if self._socket.fileno() < 0:
            return
        self._ending = True
        self._pause_reading()
        self._loop.remove_writer(self._socket)
        if self._throttled is not None:
            self._throttled.cancel()
        for segment in self._unsent:
            _close_all(segment.descriptors)
        self._unsent.clear()
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        self._closed(self)

    async def finish(self) -> None:
        """Read nothing more, wait for what is being served and send it: the daemon is stopping."""
        self._pause_reading()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if not self._unsent:
            self.close()


def _discard(batch: Batch) -> None:
    batch.out[:] = bytes(len(batch.out))
    _close_all(batch.descriptors)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
