"""The blocking client: one connection, one request at a time."""

from __future__ import annotations

import os
import socket
import time
from threading import Lock
from types import TracebackType
from typing import Any, Self, cast

from kmsd.api.errors import KmsError, ShuttingDownError
from kmsd.api.operation import Operation, RequestT, ResponseT
from kmsd.wire.connection import ClientConnection, Completed
from kmsd.wire.retry import delay_before_retry
from kmsd_client import _transport
from kmsd_client._operations import Operations


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
        try:
            while output := connection.output():
                connection.sent(sock.send(output))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon may have said why before it closed the connection: read that first
        while True:
            _transport.receive(sock, connection)
            for done in connection.completed():
                if done.id == identifier:
                    return done
            _transport.close_all(connection.unclaimed())
            if connection.lost is not None:
                raise connection.lost

    def _connected(self) -> socket.socket:
        if self._socket is None or self._pid != os.getpid():
            self.close()
            self._socket = _transport.connect(self._path, timeout_seconds=self._timeout_seconds)
            self._connection = ClientConnection()
            self._pid = os.getpid()
        return self._socket
