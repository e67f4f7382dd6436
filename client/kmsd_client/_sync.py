"""The blocking client: one connection, one call at a time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Self, cast

from kmsd.api.errors import KmsError, ShuttingDownError
from kmsd.api.operation import Operation, RequestT, ResponseT
from kmsd.wire.connection import ClientConnection, Completed
from kmsd.wire.retry import delay_before_retry
from kmsd_client import _transport
from kmsd_client._operations import Operations

# Requests that are on their way together take a third of the time of one by one, and more of them no less. A daemon by
# default takes 16 times as many of one user.
_AT_ONCE = 16


class Client(Operations):
    """A client of the daemon at `socket_path` (else KMSD_SOCKET, the system's or the user instance's socket).

    It connects when first called, and again when the connection was lost; `timeout` is how many seconds the daemon may
    be silent during a call. Threads may share a client and then wait for each other. A fork gets its own connection,
    as the daemon takes a connection for the process that opened it. Every failure is a `kmsd.api.errors.KmsError`.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        timeout: float = _transport.DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._path = _transport.find_socket(socket_path, os.environ)
        self._timeout_seconds = timeout
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._connection = ClientConnection()
        self._pid = 0

    def call(self, operation: Operation[RequestT, ResponseT], request: RequestT) -> ResponseT:
        """Ask for `operation` and return its response. Raises the KmsError it ended with."""
        response, descriptors = self.call_with_descriptors(operation, request)
        _transport.close_all(descriptors)
        return response

    def call_with_descriptors(
        self, operation: Operation[RequestT, ResponseT], request: RequestT
    ) -> tuple[ResponseT, list[int]]:
        """Do as `call` does, and also return the descriptors that came with the response, now the caller's to close."""
        failures = 0
        with self._lock:
            while True:
                done = self._exchange(operation, request)
                if not isinstance(done.outcome, KmsError):
                    return cast(ResponseT, done.outcome), list(done.descriptors)
                failures += 1
                if isinstance(done.outcome, ShuttingDownError):
                    self.close()  # the next daemon has another
                delay_seconds = delay_before_retry(
                    operation, done.outcome, sent=done.sent, failures=failures, random=_transport.random_fraction
                )
                if delay_seconds is None:
                    raise done.outcome
                time.sleep(delay_seconds)

    def call_many(
        self, operation: Operation[RequestT, ResponseT], requests: Sequence[RequestT]
    ) -> list[ResponseT | KmsError]:
        """Ask for a read-only `operation` of many things, and return for each the response or what it was refused with.

        Many requests are on their way at a time. Raises the KmsError that would meet all of them: kmsd is sealed, or
        does not answer.
        """
        if not operation.read_only or operation.descriptors:
            raise ValueError(f"{operation.name} is to be called one by one")
        outcomes: list[ResponseT | KmsError] = []
        for start in range(0, len(requests), _AT_ONCE):
            batch = requests[start : start + _AT_ONCE]
            with self._lock:
                answered = self._exchange_many(operation, batch)
            outcomes += [
                self._again(operation, request) if isinstance(outcome, KmsError) and outcome.retryable else outcome
                for request, outcome in zip(batch, answered, strict=True)
            ]
        return outcomes

    def close(self) -> None:
        """End the connection; another call opens a new one."""
        _transport.close_all(self._connection.abandon())
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _again(self, operation: Operation[RequestT, ResponseT], request: RequestT) -> ResponseT | KmsError:
        """Ask once more for what failed for a reason that may pass; raise that reason if it does not pass."""
        try:
            return self.call(operation, request)
        except KmsError as error:
            if error.retryable:
                raise
            return error

    def _exchange_many(self, operation: Operation[Any, Any], requests: Sequence[Any]) -> list[Any]:
        """Return what requests ended with that are on their way together, in their order."""
        outcomes: dict[int, Any] = {}
        sock = self._connected()
        connection = self._connection
        try:
            identifiers = [connection.request(operation, request) for request in requests]
            _send(sock, connection)
            while len(outcomes) < len(requests):
                outcomes.update((done.id, done.outcome) for done in _receive(sock, connection))
                if connection.lost is not None and len(outcomes) < len(requests):
                    raise connection.lost
        except BlockingIOError:
            raise _transport.timed_out(self._timeout_seconds) from None
        except OSError as error:
            raise _transport.lost_to(error) from None
        finally:
            if len(outcomes) < len(requests):  # also after Ctrl-C
                self.close()
        return [outcomes[identifier] for identifier in identifiers]

    def _exchange(self, operation: Operation[Any, Any], request: Any) -> Completed:
        try:
            sock = self._connected()
        except KmsError as error:
            return Completed(0, error, sent=False)
        connection = self._connection
        identifier = connection.request(operation, request)
        done: Completed | None = None
        failure: KmsError
        try:
            done = self._converse(sock, connection, identifier)
        except BlockingIOError:
            failure = _transport.timed_out(self._timeout_seconds)
        except OSError as error:
            failure = _transport.lost_to(error)
        except KmsError as error:
            failure = error
        else:
            return done
        finally:
            if done is None:  # also after Ctrl-C, which leaves unknown how much was sent
                self.close()
        return connection.given_up(identifier, failure)

    def _converse(self, sock: socket.socket, connection: ClientConnection, identifier: int) -> Completed:
        _send(sock, connection)
        while True:
            for done in _receive(sock, connection):
                if done.id == identifier:
                    return done
            if connection.lost is not None:
                raise connection.lost

    def _connected(self) -> socket.socket:
        if self._socket is None or self._pid != os.getpid():
            self.close()
            self._socket = _transport.connect(self._path, timeout_seconds=self._timeout_seconds)
            self._connection = ClientConnection()
            self._pid = os.getpid()
        return self._socket


def _send(sock: socket.socket, connection: ClientConnection) -> None:
    try:
        while output := connection.output():
            connection.sent(sock.send(output))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon may have said why before it closed the connection: read that first


def _receive(sock: socket.socket, connection: ClientConnection) -> list[Completed]:
    """Read once, and return what was answered; then look at the connection's `lost`."""
    _transport.receive(sock, connection)
    completed = connection.completed()
    _transport.close_all(connection.unclaimed())
    return completed
