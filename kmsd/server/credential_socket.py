"""The socket on which systemd asks for credentials: it connects, reads until the end, and writes nothing.

systemd takes an end without a byte for an empty credential, and starts the unit with it. So whoever is uid 0, or cannot
be told, and gets no credential is sent more than a credential may have: systemd refuses that, and the unit does not
start. (A reset of the connection would say it better, but closing an accepted Unix socket resets it only if something
was sent to it.) Others get nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from kmsd.api.errors import KmsError
from kmsd.logs import Logger
from kmsd.service.call import Session
from kmsd.service.credential_delivery import CredentialDelivery

# systemd: CREDENTIAL_SIZE_MAX. A byte more is an error for it (E2BIG).
_MOST_SYSTEMD_TAKES = 1024 * 1024
# Begins with text, for whoever looks at it by hand.
_FILLING = b"kmsd has no credential for this. What follows keeps systemd from taking it for one.\n".ljust(
    64 * 1024, b"\0"
)
_FILLINGS = _MOST_SYSTEMD_TAKES // len(_FILLING) + 1
# A boot starts many units at once; more than this wait in the socket's queue.
_PEERS = 64
# systemd reads at once; who takes nothing for so long is none.
_SEND_SECONDS = 5.0
# How long to accept nothing after the process ran out of descriptors.
_OUT_OF_DESCRIPTORS_SECONDS = 0.1

SessionOf: TypeAlias = Callable[[socket.socket], Awaitable[Session]]


class CredentialListener:
    """Accepts connections on a listening socket, at most `_PEERS` at a time.

    `session_of` tells who is at the other end of one, and may raise a KmsError or OSError.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        delivery: CredentialDelivery,
        session_of: SessionOf,
        logger: Logger,
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._delivery = delivery
        self._session_of = session_of
        self._logger = logger
        self._peers: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._stopped = False

    def start(self) -> None:
        """Begin to accept."""
        if not self._accepting and not self._stopped:
            self._accepting = True
            self._loop.add_reader(self._socket, self._acceptable)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._socket)

    def _acceptable(self) -> None:
        while len(self._peers) < _PEERS:
            try:
                # The address as it was when the peer connected: it is given here and not asked for.
                sock, address = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                self._logger.warning("accept_failed", errno=error.errno)
                self._pause()
                self._loop.call_later(_OUT_OF_DESCRIPTORS_SECONDS, self.start)
                return
            sock.setblocking(False)
            # An address that is a name in the file system, or none, comes as text.
            peer = self._loop.create_task(self._serve(sock, address if isinstance(address, bytes) else b""))
            self._peers.add(peer)
            peer.add_done_callback(self._served)
        self._pause()

    def _served(self, peer: asyncio.Task[None]) -> None:
        self._peers.discard(peer)
        if not peer.cancelled() and (fault := peer.exception()) is not None:
            self._logger.fault("credential_failed", fault)
        self.start()

    async def _serve(self, sock: socket.socket, address: bytes) -> None:
        with sock:
            whole = False
            peer: Session | None = None

            def send(secret: memoryview) -> None:
                nonlocal whole
                # At once: an empty socket has room for far more (net.core.wmem_default). So nothing of the secret is
                # kept while somebody waits.
                with contextlib.suppress(OSError):  # it went away
                    whole = sock.send(secret) == len(secret)

            try:
                peer = await self._peer_of(sock)
                if peer is not None:
                    await self._delivery.deliver(peer, address, send)
            except KmsError as error:
                self._logger.warning("credential_refused", code=error.code, reason=error.message)
            finally:  # also when the daemon stops meanwhile
                if not whole and (peer is None or peer.caller.uid == 0):
                    await self._spoil(sock)

    async def _peer_of(self, sock: socket.socket) -> Session | None:
        try:
            return await self._session_of(sock)
        except KmsError as error:
            self._logger.warning("peer_refused", code=error.code, reason=error.message)
        except OSError as error:  # mostly, it is gone already
            self._logger.warning("peer_refused", reason=str(error))
        return None

    async def _spoil(self, sock: socket.socket) -> None:
        """Send more than a credential may have, behind whatever was sent."""
        with contextlib.suppress(OSError, TimeoutError):  # whoever does not read it has no credential either
            async with asyncio.timeout(_SEND_SECONDS):
                for _ in range(_FILLINGS):
                    await self._loop.sock_sendall(sock, _FILLING)

    async def stop(self, grace_seconds: float) -> None:
        """Accept nothing more, and let those who were accepted have their answer for at most `grace_seconds`."""
        self._pause()
        self._stopped = True
        self._socket.close()
        if self._peers:
            _, late = await asyncio.wait(self._peers, timeout=grace_seconds)
            for peer in late:
                peer.cancel()
            if late:
                await asyncio.wait(late, timeout=_SEND_SECONDS)
