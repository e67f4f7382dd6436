"""A peer that speaks the wire protocol by hand, and may therefore say what no client would."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

_LENGTH = struct.Struct(">I")
TIMEOUT_SECONDS = 20


def frame(body: bytes) -> bytes:
    """A frame with this body."""
    return _LENGTH.pack(len(body)) + body


def request(identifier: object, operation: object, params: object) -> bytes:
    """A frame with a request, of whatever types."""
    return frame(msgspec.msgpack.encode({"id": identifier, "op": operation, "params": params}))


class RawPeer:
    """A connection to the daemon's socket."""

    def __init__(self, path: Path | None, *, connected: socket.socket | None = None) -> None:
        self.socket = connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_SECONDS)
        if connected is None:
            self.socket.connect(str(path))
        self._last = 0

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, operation: object, params: object) -> dict[str, Any]:
        """Send a request and return the whole reply."""
        self._last += 1
        self.send(request(self._last, operation, params))
        reply = self.reply()
        assert reply is not None
        assert reply["id"] == self._last
        return reply

    def refusal(self, operation: object, params: object) -> tuple[str, str]:
        """Send a request that is refused, and return the error's code and message."""
        error = self.ask(operation, params)["error"]
        assert error["request_id"]
        return error["code"], error["message"]

    def reply(self) -> dict[str, Any] | None:
        """The next reply, or None at the end of the connection."""
        head = self._read(_LENGTH.size)
        if head is None:
            return None
        body = self._read(_LENGTH.unpack(head)[0])
        assert body is not None
        decoded: dict[str, Any] = msgspec.msgpack.decode(body)
        return decoded

    def is_closed(self) -> bool:
        """Whether the daemon ends the connection, without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _read(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                piece = self.socket.recv(count - len(data))
            except ConnectionResetError:
                return None
            if not piece:
                return None
            data += piece
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()
