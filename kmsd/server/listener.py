"""The listening socket: accepts connections and learns who each peer is before a byte is parsed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from kmsd.api.errors import KmsError, LimitExceededError
from kmsd.audit.record import Actor
from kmsd.identity.callers import Callers
from kmsd.identity.peer import Peer, peer_of
from kmsd.identity.principals import Caller
from kmsd.identity.process import Process, process_of
from kmsd.logs import Logger
from kmsd.server.activation import SocketPaths, Sockets
from kmsd.server.connection import Connection
from kmsd.server.limits import Shares
from kmsd.service.call import Session
from kmsd.service.pipeline import Pipeline
from kmsd.wire.codec import ReplyEncoder

# Only root is handed credentials, and root passes by every mode.
_CREDENTIALS_MODE = 0o600
# Connections that the kernel keeps until they are accepted: the system's usual maximum.
_BACKLOG = 4096
# Connections accepted before those that exist have their turn.
_ACCEPTS_PER_TICK = 16
# Connections of which it is being looked up whose they are. With two descriptors each, and some hundred microseconds
# where the name service knows them.
_ARRIVING = 256
# How long to accept nothing after the process ran out of descriptors.
_OUT_OF_DESCRIPTORS_SECONDS = 0.1
# Refused peers are logged at most twice in so long.
_REFUSALS_SECONDS = 1.0


class SocketInUseError(RuntimeError):
    """Another process serves the socket, or what stands in its place is none."""


def bind(path: Path, mode: int) -> socket.socket:
    """Return a listening socket at `path` whose file has `mode` from the first moment.

    A socket nobody listens on any more (after a crash) is replaced. Raises SocketInUseError or OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path)
        # bind creates the file under the umask, so that there is no moment at which it has another mode.
        previous = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        finally:
            os.umask(previous)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        # The system's own words name no file.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    except BaseException:
        sock.close()
        raise
    return sock


def bind_all(paths: SocketPaths, clients_mode: int) -> Sockets:
    """Return listening sockets at `paths`; raises what `bind` raises."""
    clients = bind(paths.clients, clients_mode)
    try:
        return Sockets(clients, bind(paths.credentials, _CREDENTIALS_MODE))
    except BaseException:
        clients.close()
        paths.clients.unlink(missing_ok=True)
        raise


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise SocketInUseError(f"{path} is there and is no socket: move it away")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
    raise SocketInUseError(f"another process serves {path}")


class Listener:
    """Accepts connections on a listening socket, and serves each once it is known who is at the other end.

    That may take a while where the host's name service is slow; nothing is read from the peer meanwhile, and nobody
    else waits for it. So many may be in that state: `connections_per_uid` of a uid, beyond which they are turned away,
    and _ARRIVING in all, beyond which the others wait in the kernel. `admit` may refuse a peer by raising a KmsError.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        pipeline: Pipeline,
        shares: Shares,
        callers: Callers,
        admit: Callable[[Peer], None],
        connections_per_uid: int,
        max_body: int,
        logger: Logger,
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._pipeline = pipeline
        self._shares = shares
        self._callers = callers
        self._admit = admit
        self._connections_per_uid = connections_per_uid
        self._max_body = max_body
        self._logger = logger
        self._encoder = ReplyEncoder()
        self._arriving: dict[asyncio.Task[None], int] = {}  # to the uid
        self._accepting = False
        self._connections: set[Connection] = set()
        # How many peers were refused since the last line about it; None when no such line is due.
        self._refusals: int | None = None

    def start(self) -> None:
        """Begin to accept."""
        if not self._accepting and self._socket.fileno() >= 0:
            self._accepting = True
            self._loop.add_reader(self._socket, self._acceptable)

    def _pause(self) -> None:
        self._accepting = False
        self._loop.remove_reader(self._socket)

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTS_PER_TICK):
            if len(self._arriving) >= _ARRIVING:
                self._pause()
                return
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                self._rest(error)
                return
            sock.setblocking(False)
            self._welcome(sock)

    def _rest(self, error: OSError) -> None:
        self._logger.warning("accept_failed", errno=error.errno)
        self._pause()
        self._loop.call_later(_OUT_OF_DESCRIPTORS_SECONDS, self.start)

    def _welcome(self, sock: socket.socket) -> None:
        """Take down what the kernel says of the peer now, and have the rest looked up."""
        try:
            peer = peer_of(sock)
            self._admit(peer)
            if sum(uid == peer.uid for uid in self._arriving.values()) >= self._connections_per_uid:
                raise LimitExceededError(
                    f"uid {peer.uid} has {self._connections_per_uid} connections of which it is still looked up whose "
                    "they are"
                )
        except KmsError as error:
            self._turn_away(sock, error)
            return
        except OSError:
            sock.close()  # the peer is gone already
            return
        task = self._loop.create_task(self._arrive(sock, peer, process_of(sock, peer.pid)))
        self._arriving[task] = peer.uid
        task.add_done_callback(self._arrived)

    async def _arrive(self, sock: socket.socket, peer: Peer, process: Process | None) -> None:
        """Serve a connection once its names are known."""
        try:
            with process or contextlib.nullcontext():
                caller = await self._callers.caller_of(peer, process)
            share = self._shares.join(caller.uid, known=caller.user is not None)
        except KmsError as error:
            self._turn_away(sock, error)
            return
        except BaseException:
            sock.close()
            raise
        connection = Connection(
            self._loop,
            sock,
            Session(caller, actor_of(caller)),
            share,
            self._pipeline,
            max_body=self._max_body,
            closed=self._forget,
        )
        self._connections.add(connection)
        connection.start()

    def _arrived(self, task: asyncio.Task[None]) -> None:
        del self._arriving[task]
        self.start()

    def _turn_away(self, sock: socket.socket, error: KmsError) -> None:
        self._tell_refusal(error)
        out = bytearray()
        self._encoder.append_error(out, 0, error)
        with sock:
            try:
                sock.send(out)
            except OSError:
                return

    def _tell_refusal(self, error: KmsError) -> None:
        """Log the first refusal, and then at most a count of them a second: a peer must not be able to fill the log."""
        if self._refusals is not None:
            self._refusals += 1
            return
        self._refusals = 0
        self._logger.warning("peer_refused", code=error.code, reason=error.message)
        self._loop.call_later(_REFUSALS_SECONDS, self._tell_refusals)

    def _tell_refusals(self) -> None:
        count, self._refusals = self._refusals, None
        if count:
            self._logger.warning("more_peers_refused", count=count, seconds=_REFUSALS_SECONDS)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._shares.leave(connection.share)

    async def stop(self, grace_seconds: float) -> None:
        """Accept nothing more, let what is being served end for at most `grace_seconds`, close all connections."""
        self._pause()
        self._socket.close()
        if self._arriving:
            # They may have sent a request, and it is answered like those of the others.
            await asyncio.wait([*self._arriving], timeout=grace_seconds)
        for task in self._arriving:
            task.cancel()
        finishing = [asyncio.ensure_future(connection.finish()) for connection in self._connections]
        if finishing:
            _, late = await asyncio.wait(finishing, timeout=grace_seconds)
            for task in late:
                task.cancel()
        for connection in list(self._connections):
            connection.close()


def actor_of(caller: Caller) -> Actor:
    """Return a caller as the audit trail names it."""
    # What stands behind a user's unit is that user's word, so it must not look like a unit of the system.
    unit = f"user-unit:{caller.user_unit}" if caller.user_unit is not None else caller.unit
    return Actor(uid=caller.uid, gid=caller.gid, user=caller.user, pid=caller.pid, unit=unit, exe=caller.exe)
