"""A peer that is connected to an embedded service by a socketpair."""

from __future__ import annotations

import array
import asyncio
import socket
import time
from typing import Any

import msgspec

from kmsd.api.operation import MAX_FRAME_BYTES, Operation
from kmsd.config import Limits
from kmsd.server.connection import Connection
from kmsd.server.limits import Shares
from kmsd.service.call import Session
from kmsd.wire.framing import LENGTH_BYTES
from tests.support.embedded import ALICE, Answer, Embedded, answers_in, request_frame

# What the kernel keeps for a socket of a pair when it is asked for as little as possible.
LITTLE_BYTES = 4096
# So long a test waits for what has to come.
PATIENCE_SECONDS = 10.0


class ConnectedPeer:
    """The client's end of a connection that is served."""

    def __init__(
        self,
        service: Embedded,
        shares: Shares | None = None,
        *,
        limits: Limits | None = None,
        session: Session = ALICE,
        max_body: int = MAX_FRAME_BYTES,
        buffer_bytes: int | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.shares = shares or Shares(limits or Limits(), time.monotonic)
        served, self.socket = socket.socketpair()
        for end in (served, self.socket):
            end.setblocking(False)
            if buffer_bytes is not None:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self.closings = 0
        self.share = self.shares.join(session.caller.uid, known=session.caller.user is not None)
        self.connection = Connection(
            loop, served, session, self.share, service.pipeline, max_body=max_body, closed=self._closed
        )
        self.descriptors: list[int] = []
        self._received = bytearray()
        self._next_id = 0
        self.connection.start()

    def _closed(self, connection: Connection) -> None:
        self.closings += 1
        self.shares.leave(connection.share)

    def frame(self, operation: Operation[Any, Any], request: msgspec.Struct) -> bytearray:
        """The frame of the next request."""
        self._next_id += 1
        return request_frame(operation, request, self._next_id)

    async def send(self, data: bytes | bytearray) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.socket, data), PATIENCE_SECONDS)

    async def ask(self, operation: Operation[Any, Any], request: msgspec.Struct) -> None:
        """Send a request."""
        await self.send(self.frame(operation, request))

    async def read(self, count: int = 1 << 16, *, descriptors: int = 0) -> bytes:
        """Read once; descriptors are kept. b"" is the end."""
        if descriptors:
            data = await self._read_with_descriptors(count, socket.CMSG_SPACE(4 * descriptors))
        else:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, count), PATIENCE_SECONDS)
        self._received += data
        return data

    async def _read_with_descriptors(self, count: int, room: int) -> bytes:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert time.monotonic() < deadline, "nothing more comes"
            try:
                data, passed, _, _ = self.socket.recvmsg(count, room)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            for _, _, content in passed:
                self.descriptors += array.array("i", content)
            return data

    async def answers(self, count: int, *, descriptors: int = 0) -> list[Answer]:
        """The next so many answers."""
        found: list[Answer] = []
        while len(found) < count:
            while len(found) < count and (answer := self._whole()) is not None:
                found.append(answer)
            if len(found) < count:
                assert await self.read(descriptors=descriptors), f"the end came after {len(found)} answers: {found}"
        return found

    def _whole(self) -> Answer | None:
        end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "big")
        if len(self._received) < max(end, LENGTH_BYTES + 1):
            return None
        [answer] = answers_in(self._received[:end])
        del self._received[:end]
        return answer

    async def until_end(self) -> list[Answer]:
        """All answers until the daemon closes."""
        try:
            while await self.read():
                pass
        except ConnectionResetError:  # it closed with requests unread, and what it had sent was read before
            pass
        found = []
        while (answer := self._whole()) is not None:
            found.append(answer)
        assert not self._received
        return found

    def hang_up(self) -> None:
        self.socket.close()

    async def closed(self) -> None:
        """Wait until the daemon's end is closed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.closings:
            assert time.monotonic() < deadline, "the connection is still open"
            await asyncio.sleep(0.001)
