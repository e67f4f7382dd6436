"""The client for asyncio: one connection, any number of requests at once."""

from __future__ import annotations

import asyncio
import os
import socket
from types import TracebackType
from typing import Any, Self, cast

from kmsd.api.errors import ConnectionLostError, KmsError
from kmsd.api.operation import Operation, RequestT, ResponseT
from kmsd.wire.connection import ClientConnection, Completed
from kmsd.wire.retry import delay_before_retry
from kmsd_client import _transport
from kmsd_client._operations import AsyncOperations


class AsyncClient(AsyncOperations):
    """A client of the daemon at `socket_path` (else KMSD_SOCKET, the system's or the user instance's socket).

    It connects when first called, and again when the connection was lost; `timeout` is how many seconds an answer may
    take. Calls made at the same time go over one connection without waiting for each other; cancelling one drops its
    answer. A client belongs to one event loop. Every failure is a `kmsd.api.errors.KmsError`.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        timeout: float = _transport.DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._path = _transport.find_socket(socket_path, os.environ)
        self._timeout_seconds = timeout
        self._socket: socket.socket | None = None
        self._connection = ClientConnection()
        self._answers: dict[int, asyncio.Future[Completed]] = {}

    async def call(self, operation: Operation[RequestT, ResponseT], request: RequestT) -> ResponseT:
        """Ask for `operation` and return its response. Raises the KmsError it ended with."""
        response, descriptors = await self.call_with_descriptors(operation, request)
        _transport.close_all(descriptors)
        return response

    async def call_with_descriptors(
        self, operation: Operation[RequestT, ResponseT], request: RequestT
    ) -> tuple[ResponseT, list[int]]:
        """Do as `call` does, and also return the descriptors that came with the response, now the caller's to close."""
        failures = 0
        while True:
            done = await self._exchange(operation, request)
            if not isinstance(done.outcome, KmsError):
                return cast(ResponseT, done.outcome), list(done.descriptors)
            failures += 1
            delay_seconds = delay_before_retry(
                operation, done.outcome, sent=done.sent, failures=failures, random=_transport.random_fraction
            )
            if delay_seconds is None:
                raise done.outcome
            await asyncio.sleep(delay_seconds)

    async def close(self) -> None:
        """End the connection and every call on it; another call opens a new one."""
        self._lose(ConnectionLostError("the client was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _exchange(self, operation: Operation[Any, Any], request: Any) -> Completed:
        loop = asyncio.get_running_loop()
        try:
            if self._socket is None:
                self._socket = _transport.connect(self._path, timeout_seconds=None)
                self._connection = ClientConnection()
                loop.add_reader(self._socket, self._readable)
        except KmsError as error:
            return Completed(0, error, sent=False)
        connection = self._connection
        identifier = connection.request(operation, request)
        answer: asyncio.Future[Completed] = loop.create_future()
        self._answers[identifier] = answer
        self._writable()
        done: Completed | None = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                done = await answer
        except TimeoutError:
            if answer.cancelled():
                done = connection.given_up(identifier, _transport.timed_out(self._timeout_seconds))
            else:
                done = answer.result()  # it came in the same moment
        finally:
            connection.forget(identifier)
            self._answers.pop(identifier, None)
            if done is None and answer.done() and not answer.cancelled():  # cancelled just after it came
                _transport.close_all(answer.result().descriptors)
        return done

    def _writable(self) -> None:
        sock, loop = self._socket, asyncio.get_running_loop()
        if sock is None:
            return
        try:
            while output := self._connection.output():
                self._connection.sent(sock.send(output))
        except BlockingIOError:
            loop.add_writer(sock, self._writable)
            return
        except OSError:
            pass  # the daemon may have said why before it closed the connection: reading finds out
        loop.remove_writer(sock)

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            _transport.receive(self._socket, self._connection)
        except BlockingIOError:
            return
        except (OSError, ConnectionLostError) as error:
            self._lose(_transport.lost_to(error) if isinstance(error, OSError) else error)
            return
        for done in self._connection.completed():
            answer = self._answers.pop(done.id)
            if answer.done():
                _transport.close_all(done.descriptors)
            else:
                answer.set_result(done)
        _transport.close_all(self._connection.unclaimed())
        if self._connection.lost is not None:
            self._lose(self._connection.lost)

    def _lose(self, error: KmsError) -> None:
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        _transport.close_all(self._connection.abandon())
        for identifier, answer in self._answers.items():
            if not answer.done():
                answer.set_result(self._connection.given_up(identifier, error))
        self._answers.clear()
