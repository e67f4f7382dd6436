"""Both ends of a connection as state machines that do no I/O: `ServerConnection` and its mirror `ClientConnection`.

The rules, which `PROTOCOL.md` gives to both sides:

1. A request's id is 1 or more and in flight from when the request is taken until its result or error is queued. The
   id of a request in flight must not be used for another. Progress leaves it in flight.
2. The server takes at most `max_in_flight` requests at once; what comes beyond waits in the buffer and then in the
   socket, until the peer cannot send any more. That is how a flood is held back; it is no error.
3. Whoever breaks the framing or the envelope has ended the connection: the server queues one error under id 0, takes
   no more requests, answers what it has taken, and closes. The client gives up everything in flight.
4. Descriptors go with the first byte of their reply, so when a reply is whole they are there, in the order of replies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from kmsd.api.errors import ConnectionLostError, KmsError, ProtocolError, ValidationError
from kmsd.api.operation import MAX_FRAME_BYTES, Operation
from kmsd.wire.codec import (
    CONNECTION_ID,
    ParamsDecoder,
    Reply,
    ReplyDecoder,
    ReplyEncoder,
    Request,
    RequestDecoder,
    append_request,
)
from kmsd.wire.framing import FrameBuffer

# Frames that a client takes at once; it only bounds a list.
_BATCH = 1024


class Output(NamedTuple):
    """What to send next, in one sendmsg(2): `descriptors` go with the first byte of `data`.

    `data` may be the connection's own buffer: send it before calling anything else.
    """

    data: bytes | bytearray
    descriptors: tuple[int, ...] = ()


class _Outbox:
    """Bytes on their way out, and which descriptors go with which of them."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._marks: deque[tuple[int, tuple[int, ...]]] = deque()  # offsets into `data`, ascending

    def mark(self, offset: int, descriptors: tuple[int, ...]) -> None:
        """Let `descriptors` go with the byte at `offset`, which no earlier call may have been beyond."""
        self._marks.append((offset, descriptors))

    def next(self) -> Output:
        """Return what to send next: up to, or beginning with, the next byte that descriptors go with."""
        if not self._marks:
            return Output(self.data)
        offset, descriptors = self._marks[0]
        if offset:
            return Output(bytes(self.data[:offset]))
        end = self._marks[1][0] if len(self._marks) > 1 else len(self.data)
        return Output(bytes(self.data[:end]), descriptors)

    def sent(self, count: int) -> tuple[int, ...]:
        """Drop `count` bytes, which were sent, and return the descriptors that went with them."""
        gone: tuple[int, ...] = ()
        if count and self._marks:
            if self._marks[0][0] == 0:
                gone = self._marks.popleft()[1]
            self._marks = deque((offset - count, descriptors) for offset, descriptors in self._marks)
        del self.data[:count]
        return gone

    def abandon(self) -> tuple[int, ...]:
        """Drop everything and return the descriptors that did not go."""
        descriptors = tuple(descriptor for _, marked in self._marks for descriptor in marked)
        self._marks.clear()
        self.data.clear()
        return descriptors


class ServerConnection:
    """The daemon's end of one connection.

    The owner reads into `space()`, tells `received()`, takes `requests()` until it gets fewer than it asked for,
    answers each with `send_result`, `send_error` or `send_frame`, and sends `output()`, telling `sent()`, until there
    is none. It reads while `wants_input` is true (when it becomes true again, requests may be waiting in the buffer
    already: take those first) and closes the socket once `finished` is true. `decoder` and `encoder` may be shared by
    all connections of a thread.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_body: int = MAX_FRAME_BYTES,
        decoder: RequestDecoder | None = None,
        encoder: ReplyEncoder | None = None,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._frames = FrameBuffer(max_body)
        self._decoder = decoder or RequestDecoder()
        self._encoder = encoder or ReplyEncoder()
        self._in_flight: set[int] = set()
        self._outbox = _Outbox()
        self._ending = False
        self.broken: ProtocolError | None = None  # how the peer broke the protocol, once it has

        # The two calls of the hot path go straight to the buffer.
        self.space = self._frames.space
        self.received = self._frames.received

    @property
    def in_flight(self) -> int:
        """How many requests were taken and not answered."""
        return len(self._in_flight)

    @property
    def buffered(self) -> int:
        """How many bytes came in and were not taken as requests."""
        return self._frames.buffered

    @property
    def queued(self) -> int:
        """How many bytes are to be sent."""
        return len(self._outbox.data)

    @property
    def wants_input(self) -> bool:
        """Whether to read: false at the most requests in flight, and once the connection is ending."""
        return not self._ending and len(self._in_flight) < self._max_in_flight

    @property
    def finished(self) -> bool:
        """Whether the connection is ending, all that was taken is answered and all answers were sent."""
        return self._ending and not self._in_flight and not self._outbox.data

    def end_input(self) -> None:
        """Say that the peer will send no more, or that no more is to be taken from it: what was taken is answered."""
        self._ending = True

    def requests(self, limit: int) -> list[Request]:
        """Return requests that came in, in order and at most `limit`; fewer than that when there are no more to take.

        A peer that broke the protocol gets the requests before that served: they are returned, `broken` is set, and
        the error is queued for it under id 0.
        """
        room = min(limit, self._max_in_flight - len(self._in_flight))
        requests: list[Request] = []
        if room <= 0 or self._ending:
            return requests
        try:
            # Asked until nothing whole is left, as the last frame may be followed by what is none.
            while len(requests) < room and self._frames.buffered:
                frames = self._frames.frames(room - len(requests))
                if not frames:
                    break
                for frame in frames:
                    request = self._decoder.decode(frame)
                    self._take(request.id)
                    requests.append(request)
        except ProtocolError as error:
            self.broken = error
            self._ending = True
            self._encoder.append_error(self._outbox.data, CONNECTION_ID, error)
        return requests

    def send_result(
        self,
        id: int,  # noqa: A002 - the member's name
        result: msgspec.Struct,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        """Queue a result, with which `descriptors` go; they are the caller's to close once `sent` has named them.

        Raises KMSInternalError when the result cannot be sent; the request is then still in flight.
        """
        self._check(id)
        offset = len(self._outbox.data)
        self._encoder.append_result(self._outbox.data, id, result, len(descriptors))
        if descriptors:
            self._outbox.mark(offset, descriptors)
        self._in_flight.remove(id)

    def send_error(self, id: int, error: KmsError) -> None:  # noqa: A002 - the member's name
        """Queue an error."""
        self._check(id)
        self._encoder.append_error(self._outbox.data, id, error)
        self._in_flight.remove(id)

    def send_progress(self, id: int, done: int, total: int | None) -> None:  # noqa: A002 - the member's name
        """Queue a report of progress; the request stays in flight."""
        self._check(id)
        self._encoder.append_progress(self._outbox.data, id, done, total)

    def send_frame(self, id: int, frame: bytes | bytearray) -> None:  # noqa: A002 - the member's name
        """Queue a result or error that a ReplyEncoder wrote before it was certain that it may leave."""
        self._check(id)
        self._outbox.data += frame
        self._in_flight.remove(id)

    def output(self) -> Output:
        """Return what to send next; its `data` is empty when there is nothing to send."""
        return self._outbox.next()

    def sent(self, count: int) -> tuple[int, ...]:
        """Say that the first `count` bytes of `output()` were sent; return the descriptors that went, to be closed."""
        return self._outbox.sent(count)

    def abandon(self) -> tuple[int, ...]:
        """Give up the connection: return the queued descriptors, to be closed."""
        self._ending = True
        self._in_flight.clear()
        return self._outbox.abandon()

    def _take(self, id: int) -> None:  # noqa: A002 - the member's name
        if id in self._in_flight:
            raise ProtocolError(f"id {id} is in flight already")
        self._in_flight.add(id)

    def _check(self, id: int) -> None:  # noqa: A002 - the member's name
        if id not in self._in_flight:
            raise LookupError(f"no request {id} is in flight")


class Completed(NamedTuple):
    """A request that was answered: `outcome` is the response, or the error to raise."""

    id: int
    outcome: Any
    descriptors: tuple[int, ...] = ()


class _Waiting(NamedTuple):
    operation: Operation[Any, Any]
    end: int  # where its frame ends, in bytes ever queued


class ClientConnection:
    """The client's end of one connection.

    The owner queues `request`s, sends `output()` and tells `sent()`, reads into `space()` (with room for descriptors
    while `expects_descriptors` is true) and tells `received()`, and takes `completed()` requests. Once `lost` says
    why, nothing more will complete.
    """

    def __init__(self) -> None:
        self._frames = FrameBuffer(MAX_FRAME_BYTES)
        self._decoder = ReplyDecoder()
        self._results: dict[str, ParamsDecoder[Any]] = {}  # made when first needed, which costs some 20 us each
        self._out = bytearray()
        self._last_id = CONNECTION_ID
        self._queued = 0  # bytes ever queued, and ever sent
        self._sent = 0
        self._waiting: dict[int, _Waiting] = {}
        self._forgotten: set[int] = set()
        self._arrived: deque[int] = deque()  # descriptors whose replies are not whole yet
        self._unclaimed: list[int] = []
        self.lost: ConnectionLostError | None = None
        self.space = self._frames.space

    @property
    def in_flight(self) -> int:
        """How many requests wait for their answers, forgotten ones included."""
        return len(self._waiting)

    @property
    def expects_descriptors(self) -> bool:
        """Whether a request in flight is answered with descriptors; otherwise read without room for any."""
        return any(waiting.operation.descriptors for waiting in self._waiting.values())

    def request(self, operation: Operation[Any, Any], request: msgspec.Struct) -> int:
        """Queue a request and return its id. Raises ValidationError when it cannot be sent."""
        before = len(self._out)
        append_request(self._out, self._last_id + 1, operation.name, request, max_bytes=operation.frame_bytes)
        self._last_id += 1
        self._queued += len(self._out) - before
        self._waiting[self._last_id] = _Waiting(operation, self._queued)
        return self._last_id

    def output(self) -> bytearray:
        """Return what is to be sent: the connection's own buffer, so send it before calling anything else."""
        return self._out

    def sent(self, count: int) -> None:
        """Say that the first `count` bytes of `output()` were sent."""
        self._sent += count
        del self._out[:count]

    def was_sent(self, id: int) -> bool:  # noqa: A002 - the member's name
        """Tell whether all of a request in flight was sent; a daemon that got less of it has not begun with it."""
        return self._sent >= self._waiting[id].end

    def received(self, count: int, descriptors: Iterable[int] = ()) -> None:
        """Say that `count` bytes were read into what `space()` returned, and `descriptors` with them."""
        self._frames.received(count)
        self._arrived.extend(descriptors)

    def completed(self) -> list[Completed]:
        """Return the requests that were answered since the last call, and then look at `lost`."""
        completed: list[Completed] = []
        try:
            while frames := self._frames.frames(_BATCH):
                for frame in frames:
                    self._complete(self._decoder.decode(frame), completed)
        except ProtocolError as error:
            self.lost = ConnectionLostError(f"the daemon broke the protocol: {error.message}")
        except ConnectionLostError as error:
            self.lost = error
        return completed

    def forget(self, id: int) -> None:  # noqa: A002 - the member's name
        """Wait for a request no longer; its answer, when it comes, is dropped."""
        if id in self._waiting:
            self._forgotten.add(id)

    def unclaimed(self) -> list[int]:
        """Return the descriptors that nobody waits for any more, to be closed."""
        unclaimed, self._unclaimed = self._unclaimed, []
        return unclaimed

    def abandon(self) -> list[int]:
        """Give up the connection: return all descriptors that were not given out, to be closed."""
        self._unclaimed.extend(self._arrived)
        self._arrived.clear()
        return self.unclaimed()

    def _complete(self, reply: Reply, completed: list[Completed]) -> None:
        if reply.id == CONNECTION_ID and reply.error is not None:
            raise ConnectionLostError(f"the daemon ended the connection: {reply.error.message}")
        waiting = self._waiting.get(reply.id)
        if waiting is None:
            raise ProtocolError("it answered what was not asked")
        if reply.progress is not None:
            return
        expected = waiting.operation.descriptors if reply.error is None else 0
        if reply.descriptors != expected or len(self._arrived) < expected:
            raise ProtocolError("the descriptors of a reply did not come with it")
        descriptors = tuple(self._arrived.popleft() for _ in range(expected))
        del self._waiting[reply.id]
        outcome = reply.error or self._result(waiting.operation, reply)
        if reply.id in self._forgotten:
            self._forgotten.remove(reply.id)
            self._unclaimed.extend(descriptors)
        elif isinstance(outcome, KmsError):
            self._unclaimed.extend(descriptors)
            completed.append(Completed(reply.id, outcome))
        else:
            completed.append(Completed(reply.id, outcome, descriptors))

    def _result(self, operation: Operation[Any, Any], reply: Reply) -> Any:
        decoder = self._results.get(operation.name)
        if decoder is None:
            decoder = ParamsDecoder(operation.response, max_bytes=MAX_FRAME_BYTES)
            self._results[operation.name] = decoder
        try:
            return decoder.decode(reply.result or memoryview(b""))
        except ValidationError as error:
            return ConnectionLostError(f"the daemon's answer to {operation.name} is not understood: {error.message}")
