"""The daemon's side of a child that looks things up (kmsd.identity.answering).

Question and answer are one datagram each of a SOCK_SEQPACKET pair, any number of them under way. The daemon waits for
an answer for a bounded time, and nobody but who asked waits. It believes the children about names, programs and control
groups, as it would believe the libraries.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from kmsd.identity.answering import MAX_DATAGRAM_BYTES, NAMES_AT_A_TIME, Answer, Found, Kind, Question, Subject
from kmsd.identity.principals import NameServiceError

# A directory in the network that answers at all does so within a fraction of this.
_DEADLINE_SECONDS = 2.0
# When nothing at all is answered, nothing is asked for so long, so that nobody waits in vain.
_REST_SECONDS = 30.0
# Questions under way: as many as there may be connections that wait for their names, each with two or three.
_MAX_UNDER_WAY = 1024


class NoAnswerError(NameServiceError):
    """Something was asked and not answered in time."""


class Source(Protocol):
    """Who can be asked."""

    async def ask(self, kind: Kind, subject: Subject) -> Found:
        """Return what was found about the subject; raises NameServiceError when that cannot be found out."""


class Lookups:
    """`connect` starts the child and returns the socket to it; nothing is known until `start`.

    A child that ends or answers nothing is replaced; until then everything raises NameServiceError.
    """

    def __init__(self, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        self._connect = connect
        self._starting: asyncio.Task[None] | None = None
        self._channel: socket.socket | None = None
        self._numbers = itertools.count()
        self._decoder = msgspec.msgpack.Decoder(Answer)
        self._under_way: dict[int, asyncio.Future[Found]] = {}
        # Questions that the socket had no room for, by their numbers: a few hundred fill it.
        self._unsent: deque[tuple[int, bytes]] = deque()
        # How many questions were not answered in time since the child last answered one.
        self._late_in_a_row = 0

    async def start(self) -> None:
        """Start the child."""
        channel = await self._connect()
        channel.setblocking(False)
        self._channel = channel
        asyncio.get_running_loop().add_reader(channel, self._read, channel)

    def close(self) -> None:
        """Let the child end; whoever waits is told that nothing is known."""
        if self._starting is not None:
            self._starting.cancel()
        self._end()

    async def ask(self, kind: Kind, subject: Subject) -> Found:
        """Return what the child found; raises NameServiceError."""
        channel = self._channel
        if channel is None:
            raise NameServiceError("the process for look-ups is being started anew")
        if len(self._under_way) >= _MAX_UNDER_WAY:
            raise NameServiceError("too much is being looked up")
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        answer: asyncio.Future[Found] = loop.create_future()
        self._under_way[number] = answer
        deadline = loop.call_later(_DEADLINE_SECONDS, self._late, number)
        self._unsent.append((number, msgspec.msgpack.encode(Question(number, kind, subject))))
        if len(self._unsent) == 1:
            self._send(channel)
        try:
            return await answer
        finally:
            deadline.cancel()
            self._under_way.pop(number, None)

    def _send(self, channel: socket.socket) -> None:
        """Send what waits, and what the socket has no room for when it has."""
        loop = asyncio.get_running_loop()
        while self._unsent:
            number, question = self._unsent[0]
            try:
                if number in self._under_way:  # else nobody waits for it any more
                    channel.send(question)
            except BlockingIOError:
                loop.add_writer(channel, self._send, channel)
                return
            except OSError:
                self._replace(0)
                return
            self._unsent.popleft()
        loop.remove_writer(channel)

    def _read(self, channel: socket.socket) -> None:
        while channel is self._channel:
            try:
                answer = self._decoder.decode(channel.recv(MAX_DATAGRAM_BYTES))
            except BlockingIOError:
                return
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # it ended, or answers nonsense
                self._replace(0)
                return
            self._late_in_a_row = 0
            # One that is not there any more was late, or who asked is gone.
            if (waiting := self._under_way.pop(answer.number, None)) is not None and not waiting.done():
                waiting.set_result(answer.found)

    def _late(self, number: int) -> None:
        waiting = self._under_way.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(NoAnswerError("the name service does not answer"))
        self._late_in_a_row += 1
        if self._late_in_a_row >= NAMES_AT_A_TIME:  # not that one question is hard: nothing is answered any more
            self._replace(_REST_SECONDS)

    def _replace(self, rest_seconds: float) -> None:
        self._end()
        self._late_in_a_row = 0
        self._starting = asyncio.get_running_loop().create_task(self._start_anew(rest_seconds))

    def _end(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(channel)
            loop.remove_writer(channel)
            channel.close()
        for waiting in self._under_way.values():
            if not waiting.done():
                waiting.set_exception(NameServiceError("the name service does not answer"))
        self._under_way.clear()
        self._unsent.clear()

    async def _start_anew(self, rest_seconds: float) -> None:
        while True:
            await asyncio.sleep(rest_seconds)
            try:
                return await self.start()
            except (OSError, RuntimeError):  # no process can be made just now
                rest_seconds = _REST_SECONDS
