"""One client's connection: reads frames, has them served, sends the replies; bounded in both directions.

The daemon never receives descriptors: its reads have no control buffer, the kernel drops what was passed, and
MSG_CTRUNC tells that somebody tried, which ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

from kmsd.api.errors import ProtocolError, ShuttingDownError, ThrottlingError
from kmsd.server.limits import Share
from kmsd.service.batch import Batch
from kmsd.service.call import Session
from kmsd.service.pipeline import Pipeline
from kmsd.wire.codec import CONNECTION_ID, ReplyEncoder, Request, RequestDecoder
from kmsd.wire.connection import ServerConnection
from kmsd.wire.framing import FrameBuffer

# So many requests of one connection are served before the others have their turn.
_FRAMES_PER_TICK = 32


class _Segment(NamedTuple):
    """Bytes that wait to be sent, and descriptors that leave with their first byte."""

    data: memoryview
    descriptors: list[int]


class _Place:
    """A request's place among those in flight, of its connection and of its uid; given back once."""

    __slots__ = ("_identifier", "_share", "_state", "_taken")

    def __init__(self, share: Share, state: ServerConnection, identifier: int) -> None:
        self._share = share
        self._state = state
        self._identifier = identifier
        self._taken = True
        share.in_flight += 1

    def give_back(self) -> None:
        """Free the place, unless that has been done."""
        if self._taken:
            self._taken = False
            self._share.in_flight -= 1
            self._state.end(self._identifier)


class Connection:
    """Serves one connected socket until its peer hangs up, breaks the protocol or the daemon stops.

    Reading stops, and goes on by itself, while the peer is above its rate, while too much waits to be sent, and while
    requests that were read wait for their tick.
    """

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
        self._on_closed = closed
        self._limits = share.limits
        self.share = share
        self._buffer = FrameBuffer(max_body)
        self._decoder = RequestDecoder()
        self._encoder = ReplyEncoder()
        self._state = ServerConnection(share.limits.requests_in_flight_per_uid)
        self._tasks: set[asyncio.Task[None]] = set()
        self._settling = 0
        self._unsent: deque[_Segment] = deque()
        # Of replies that wait for the peer, or for their records to be on the disk.
        self.unsent_bytes = 0
        self._reading = False
        self._throttled: asyncio.TimerHandle | None = None
        self._next_tick: asyncio.Handle | None = None
        # No further request is served; what was begun is answered, unless the peer broke the protocol.
        self._stopping = False
        self._breach: ProtocolError | None = None
        self._told = False
        self._closed = asyncio.Event()

    def start(self) -> None:
        """Begin to serve."""
        self._resume_reading()

    def _resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._socket, self._readable)

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _is_congested(self) -> bool:
        return self.unsent_bytes > self._limits.send_buffer_bytes_per_connection

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
        try:
            self._serve_into(batch)
        except BaseException:
            # Nobody foresaw this. What was being served is not answered, so the peer must not be left waiting for it;
            # the loop's exception handler logs the rest.
            batch.discard()
            self.close()
            raise

    def _serve_into(self, batch: Batch) -> None:
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
            if served < _FRAMES_PER_TICK and self._buffer.buffered:
                self._buffer.frames(1)  # none is whole; this looks at what the next one announces
        except ProtocolError as error:
            self._breach = error.with_traceback(None)  # which would keep the frames
            self._stopping = True
        wait = self.share.bucket.charge(charges)
        self._complete(batch)
        if self._stopping:
            self._pause_reading()
            self._close_if_done()
        elif wait > 0:
            # A peer above its rate is slowed down, and learns of it by waiting.
            self.share.pauses += 1
            self._pause_reading()
            self._throttled = self._loop.call_later(wait, self._end_pause)
        elif self._is_congested():
            self._pause_reading()
        elif served == _FRAMES_PER_TICK:
            self._pause_reading()
            self._go_on_soon()
        else:
            self._resume_reading()

    def _go_on_soon(self) -> None:
        """Serve what is in the buffer already, which no readiness would tell, after the others had their turn."""
        if self._next_tick is None and not self._reading and not self._stopping:
            self._next_tick = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._next_tick = None
        # Whatever stops the connection from going on says so when it ends.
        if not self._stopping and self._throttled is None and not self._is_congested():
            self._serve_frames()

    def _end_pause(self) -> None:
        self._throttled = None
        self._go_on_soon()

    def _throttle(self, request: Request, batch: Batch) -> None:
        self._state.end(request.id)
        limit = self._limits.requests_in_flight_per_uid
        error = ThrottlingError(f"{limit} requests of this uid are in flight, which is its limit")
        self._pipeline.refuse(self._session, request, batch, error)

    def _follow(self, identifier: int, later: Coroutine[Any, Any, Batch]) -> None:
        place = _Place(self.share, self._state, identifier)
        task = self._loop.create_task(self._answer(place, later))
        self._tasks.add(task)
        task.add_done_callback(partial(self._followed, place, later))

    async def _answer(self, place: _Place, later: Coroutine[Any, Any, Batch]) -> None:
        batch = await later
        # Before the reply leaves, after which the peer may use the id again.
        place.give_back()
        if self._breach is not None:
            batch.discard()
        else:
            self._send(batch)

    def _followed(self, place: _Place, later: Coroutine[Any, Any, Batch], task: asyncio.Task[None]) -> None:
        # Not in the task: one that is cancelled before its first turn ends without having begun.
        later.close()
        place.give_back()
        self._tasks.discard(task)
        self._close_after_fault(task)
        self._close_if_done()

    def _close_after_fault(self, task: asyncio.Task[None]) -> bool:
        """Close the connection, and tell the loop, if a task ended in a way nobody foresaw; tell whether it did."""
        if task.cancelled() or task.exception() is None:
            return False
        self._loop.call_exception_handler({"message": "serving a request failed", "exception": task.exception()})
        self.close()
        return True

    def _complete(self, batch: Batch) -> None:
        """Record and send what was served at once."""
        if not batch.identifiers:
            return
        self._pipeline.finish(batch)
        if not self._pipeline.settles:
            self._send(batch)
            return
        self._settling += 1
        held = len(batch.out)
        self.unsent_bytes += held
        task = self._loop.create_task(self._pipeline.settle(batch))
        self._tasks.add(task)
        task.add_done_callback(partial(self._settled, batch, held))

    def _settled(self, batch: Batch, held: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._settling -= 1
        self.unsent_bytes -= held
        if task.cancelled() or self._close_after_fault(task):
            batch.discard()
            return
        self._send(batch)
        self._close_if_done()
        self._go_on_soon()

    def _send(self, batch: Batch) -> None:
        if self._closed.is_set():
            batch.discard()
            return
        if not self._unsent and not batch.descriptors:
            # By far the most frequent: everything leaves at once, and nothing of a plaintext stays behind.
            try:
                sent = self._socket.send(batch.out)
            except BlockingIOError:
                sent = 0
            except OSError:
                batch.discard()
                self.close()
                return
            batch.out[:sent] = bytes(sent)
            if sent == len(batch.out):
                return
            del batch.out[:sent]
        self._unsent.append(_Segment(memoryview(batch.out), batch.descriptors))
        self.unsent_bytes += len(batch.out)
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        """Send what waits, as much as the socket takes."""
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else self._socket.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._writable)
                return
            except OSError:
                self.close()
                return
            _close_all(descriptors)
            # A reply may hold a plaintext: nothing of it stays behind.
            data[:sent] = bytes(sent)
            self.unsent_bytes -= sent
            self._unsent.popleft()
            if sent < len(data):
                self._unsent.appendleft(_Segment(data[sent:], []))

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._flush()
        if not self._unsent:
            self._close_if_done()
            self._go_on_soon()

    def _close_if_done(self) -> None:
        """Close a connection that serves nothing more, when all it has to say is sent."""
        if not self._stopping or self._settling or self._unsent or self._closed.is_set():
            return
        if self._breach is not None and not self._told:
            self._told = True
            last = Batch()
            self._encoder.append_error(last.out, CONNECTION_ID, self._breach)
            self._send(last)
            if self._unsent:
                return
        # Behind the last word nothing is answered, whatever is still being served.
        if self._breach is not None or not self._tasks:
            self.close()

    def close(self) -> None:
        """End the connection and cancel what was being served for it; safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._stopping = True
        self._pause_reading()
        self._loop.remove_writer(self._socket)
        for handle in (self._throttled, self._next_tick):
            if handle is not None:
                handle.cancel()
        for data, descriptors in self._unsent:
            data[:] = bytes(len(data))
            self.unsent_bytes -= len(data)
            _close_all(descriptors)
        self._unsent.clear()
        self._buffer.wipe()
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        self._on_closed(self)

    async def finish(self) -> None:
        """Serve nothing more, and wait until all that was begun is answered and sent: the daemon is stopping.

        How long that may take is the caller's to say: it depends on the peer.
        """
        self._stopping = True
        self._pause_reading()
        self._refuse_the_rest()
        self._close_if_done()
        await self._closed.wait()

    def _refuse_the_rest(self) -> None:
        """Answer what the peer has sent and nobody has looked at: it may then ask again without doing a thing twice.

        From here on the peer cannot send any more, and learns that at once (EPIPE), so that nothing is in between.
        """
        batch = Batch()
        with contextlib.suppress(OSError, ProtocolError):  # it hung up; or the next frame is none, and it is told less
            self._socket.shutdown(socket.SHUT_RD)
            while True:
                while frames := self._buffer.frames(_FRAMES_PER_TICK):
                    for frame in frames:
                        error = ShuttingDownError("kmsd is stopping; ask again when it has started")
                        self._pipeline.refuse(self._session, self._decoder.decode(frame), batch, error)
                count, _, flags, _ = self._socket.recvmsg_into([self._buffer.space()])
                if count == 0 or flags & socket.MSG_CTRUNC:
                    break
                self._buffer.received(count)
        self._complete(batch)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
