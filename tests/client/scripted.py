"""A daemon for tests: kmsd's own framing and codec, with answers that a test writes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kmsd.api import BY_NAME
from kmsd.api.errors import KmsError, ProtocolError
from kmsd.wire.codec import CONNECTION_ID, ParamsDecoder, ReplyEncoder, Request, RequestDecoder
from kmsd.wire.connection import ServerConnection
from kmsd.wire.framing import FrameBuffer

Answer = tuple[msgspec.Struct, list[int]]


class HangUpError(Exception):
    """Raised by an answer: close the connection without a reply; `reply` is sent as it is before that."""

    def __init__(self, reply: bytes | bytearray = b"") -> None:
        super().__init__()
        self.reply = reply


def descriptors_open() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def comes_down_to(descriptors: int) -> bool:
    """Tell whether this process has no more than so many descriptors, once the daemon's threads have closed theirs."""
    deadline = time.monotonic() + 5
    while descriptors_open() > descriptors and time.monotonic() < deadline:
        time.sleep(0.001)
    return descriptors_open() <= descriptors


def tasks() -> int:
    """Return how many threads the kernel sees in this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def hang_up(_name: str, _request: Any) -> Answer:
    """Answer nothing: what a daemon does until a test says otherwise."""
    raise HangUpError


class ScriptedDaemon:
    """Serves a socket in threads of its own; `answer` may be replaced at any time.

    An answer returns the response and the descriptors to send with it (closed after that), or raises what the client
    is to get. What `hold` names is answered only after `held_back` other requests of its connection were.
    """

    def __init__(self, path: Path) -> None:
        self._tasks_before = tasks()
        self.path = path
        self.answer: Callable[[str, Any], Answer] = hang_up
        self.hold: str | None = None
        self.held_back = 0
        self.greeting = b""
        self.accepted = 0
        self.asked: list[str] = []
        self.was_asked = threading.Event()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            if self.greeting:
                sock.sendall(self.greeting)
                return
            try:
                self._converse(sock)
            except HangUpError as end:
                sock.sendall(end.reply)
            except OSError:
                return

    def _converse(self, sock: socket.socket) -> None:
        frames, decoder, state = FrameBuffer(1024 * 1024), RequestDecoder(), ServerConnection(256)
        held: list[Request] = []
        answered = 0
        while count := sock.recv_into(frames.space()):
            frames.received(count)
            try:
                requests = [decoder.decode(frame) for frame in frames.frames(1000)]
            except ProtocolError as error:
                out = bytearray()
                ReplyEncoder().append_error(out, CONNECTION_ID, error)
                raise HangUpError(out) from None
            for request in requests:
                state.begin(request.id)
                self.asked.append(request.op)
                self.was_asked.set()
                if request.op == self.hold:
                    held.append(request)
                    continue
                self._reply(sock, request)
                state.end(request.id)
                answered += 1
            if self.hold is not None and answered >= self.held_back:
                for request in held:
                    self._reply(sock, request)
                    state.end(request.id)
                held.clear()

    def _reply(self, sock: socket.socket, request: Request) -> None:
        out = bytearray()
        descriptors: list[int] = []
        try:
            operation = BY_NAME[request.op]
            params = ParamsDecoder(operation.request, max_bytes=operation.frame_bytes).decode(request.params)
            response, descriptors = self.answer(request.op, params)
            ReplyEncoder().append_result(out, request.id, response, len(descriptors))
        except KmsError as error:
            ReplyEncoder().append_error(out, request.id, error)
        if descriptors:
            sent = socket.send_fds(sock, [out], descriptors)
            del out[:sent]
            for descriptor in descriptors:
                os.close(descriptor)
        sock.sendall(out)

    def hang_up(self) -> None:
        """Close every connection and go on accepting new ones."""
        while self._connections:
            sock = self._connections.pop()
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its thread has closed it

    def close(self) -> None:
        """Stop, and wait until all threads have."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        # A joined thread is still the kernel's for a moment, and other tests may fork only where there is one thread.
        deadline = time.monotonic() + 5
        while tasks() > self._tasks_before and time.monotonic() < deadline:
            time.sleep(0.001)
