"""Both ends of a connection as state machines that do no I/O: `ServerConnection` and its mirror `ClientConnection`.

The rules, which `PROTOCOL.md` gives to both sides:

1. A request's id is 1 or more, and in flight until its result or error is sent. The id of a request in flight must not
   be used for another. Progress leaves a request in flight.
2. Replies come in any order.
3. Whoever breaks the framing or the envelope has ended the connection. The daemon sends one error under id 0 and
   closes; the client gives up everything in flight.
4. Descriptors go with their reply's first byte, so when a reply is whole they are there, in the order of the replies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from kmsd.api.errors import ConnectionLostError, KmsError, ProtocolError, ValidationError
from kmsd.api.operation import MAX_FRAME_BYTES, Operation
from kmsd.wire.codec import CONNECTION_ID, ParamsDecoder, Reply, ReplyDecoder, append_request
from kmsd.wire.framing import FrameBuffer

# Frames that a client takes at once; it only bounds a list.
_BATCH = 1024


class ServerConnection:
    """Which requests of one connection are in flight, at most `max_in_flight`.

    One more may begin, so that its owner can answer it with ThrottlingError.
    """

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._in_flight: set[int] = set()

    @property
    def in_flight(self) -> int:
        """How many requests began and did not end."""
        return len(self._in_flight)

    def begin(self, id: int) -> None:  # noqa: A002 - the member's name
        """Take a request. Raises ProtocolError when its id is in flight, or too many requests are."""
        if id in self._in_flight:
            raise ProtocolError(f"id {id} is in flight already")
        if len(self._in_flight) > self._max_in_flight:
            raise ProtocolError(f"more than {self._max_in_flight} requests are in flight")
        self._in_flight.add(id)

    def end(self, id: int) -> None:  # noqa: A002 - the member's name
        """Say that a request was answered. Raises KeyError when it is not in flight."""
        self._in_flight.remove(id)


class Completed(NamedTuple):
    """A request that is over: `outcome` is the response, or the error to raise.

    `sent` is false when the daemon cannot have got all of the request, so that it has not begun with it.
    """

    id: int
    outcome: Any
    descriptors: tuple[int, ...] = ()
    sent: bool = True


class _Waiting(NamedTuple):
    operation: Operation[Any, Any]
    end: int  # where its frame ends, in bytes ever queued


class ClientConnection:
    """The client's end of one connection.

    The owner queues `request`s, sends `output()` and tells `sent()`, reads into `space()` (with room for descriptors
    while `expects_descriptors` is true) and tells `received()`, and takes `completed()` requests. Once `lost` says
    why, which may be the daemon's own error about the connection, nothing more will complete.
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
        self._expecting = 0
        self._forgotten: set[int] = set()
        self._arrived: deque[int] = deque()  # descriptors whose replies are not whole yet
        self._unclaimed: list[int] = []
        self.lost: KmsError | None = None
        self.space = self._frames.space

    @property
    def in_flight(self) -> int:
        """How many requests wait for their answers, forgotten ones included."""
        return len(self._waiting)

    @property
    def expects_descriptors(self) -> bool:
        """Whether a request in flight is answered with descriptors; otherwise read without room for any."""
        return self._expecting > 0

    def request(self, operation: Operation[Any, Any], request: msgspec.Struct) -> int:
        """Queue a request and return its id. Raises ValidationError when it cannot be sent."""
        before = len(self._out)
        append_request(self._out, self._last_id + 1, operation.name, request, max_bytes=operation.frame_bytes)
        self._last_id += 1
        self._queued += len(self._out) - before
        self._waiting[self._last_id] = _Waiting(operation, self._queued)
        self._expecting += operation.descriptors > 0
        return self._last_id

    def output(self) -> bytearray:
        """Return what is to be sent: the connection's own buffer, so send it before calling anything else."""
        return self._out

    def sent(self, count: int) -> None:
        """Say that the first `count` bytes of `output()` were sent."""
        self._sent += count
        self._out[:count] = bytes(count)  # a request may hold a plaintext, and deleting leaves it in memory
        del self._out[:count]

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
                    reply = self._decoder.decode(frame)
                    if reply.id == CONNECTION_ID and reply.error is not None:
                        self.lost = reply.error
                        return completed
                    self._complete(reply, completed)
        except ProtocolError as error:
            self.lost = ConnectionLostError(f"the daemon broke the protocol: {error.message}")
        return completed

    def forget(self, id: int) -> None:  # noqa: A002 - the member's name
        """Wait for a request no longer; its answer, when it comes, is dropped."""
        if id in self._waiting:
            self._forgotten.add(id)

    def given_up(self, id: int, error: KmsError) -> Completed:  # noqa: A002 - the member's name
        """Return how a request ends whose answer nobody will wait for."""
        waiting = self._waiting.get(id)
        return Completed(id, error, sent=waiting is None or self._sent >= waiting.end)

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
        self._expecting -= waiting.operation.descriptors > 0
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
