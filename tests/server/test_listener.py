"""The listening socket: who is let in, who is turned away, and how it stops."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.errors import AccessDeniedError
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest
from kmsd.config import Limits
from kmsd.identity.callers import Callers
from kmsd.identity.peer import Peer
from kmsd.identity.principals import Administrators, Caller
from kmsd.identity.process import Process
from kmsd.logs import StructuredLogger
from kmsd.server import listener as module
from kmsd.server.limits import Shares
from kmsd.server.listener import Listener, SocketInUseError, bind
from tests.support.at_once import Processes, directory_of
from tests.support.embedded import Answer, Embedded, answers_in, request_frame


class HangingCallers(Callers):
    """Those who are looked up while `opened` is not set wait for it; all others are known at once."""

    def __init__(self) -> None:
        super().__init__(directory_of(), Processes(), Administrators(uids=frozenset({os.getuid()})))
        self.opened = asyncio.Event()
        self.opened.set()
        self.waiting = 0
        self._waits = asyncio.Condition()

    async def caller_of(self, peer: Peer, process: Process | None) -> Caller:
        if not self.opened.is_set():
            opened = self.opened
            async with self._waits:
                self.waiting += 1
                self._waits.notify_all()
            await opened.wait()
        return await super().caller_of(peer, process)

    async def hang(self, count: int) -> None:
        """Wait until so many wait."""
        async with self._waits:
            await asyncio.wait_for(self._waits.wait_for(lambda: self.waiting >= count), 10)


class Served:
    """A listener on a socket of the test's own."""

    def __init__(self, service: Embedded, path: Path, limits: Limits, admit: Callable[[Peer], None]) -> None:
        self.path = path
        self.callers = HangingCallers()
        self.log = io.StringIO()
        self.shares = Shares(limits, time.monotonic)
        self.socket = bind(path, 0o600)
        self.listener = Listener(
            asyncio.get_running_loop(),
            self.socket,
            pipeline=service.pipeline,
            shares=self.shares,
            callers=self.callers,
            admit=admit,
            connections_per_uid=limits.connections_per_uid,
            max_body=1 << 20,
            logger=StructuredLogger(self.log),
        )
        self.listener.start()
        self._clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self._clients.append(client)
        client.connect(str(self.path))
        client.setblocking(False)
        return client

    async def close(self) -> None:
        if self.socket.fileno() >= 0:
            await self.listener.stop(0)
        for client in self._clients:
            client.close()


async def read_all(client: socket.socket) -> list[Answer]:
    """All answers until the daemon closes."""
    loop, data = asyncio.get_running_loop(), b""
    while more := await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 5):
        data += more
    return answers_in(data)


async def ask(client: socket.socket) -> Answer:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, request_frame(STATUS, StatusRequest()))
    [answer] = answers_in(await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 5))
    return answer


@pytest.fixture
async def serve(service: Embedded, short_path: Path) -> AsyncIterator[Callable[..., Served]]:
    served: list[Served] = []

    def start(limits: Limits | None = None, admit: Callable[[Peer], None] = lambda _: None) -> Served:
        served.append(Served(service, short_path / "s", limits or Limits(), admit))
        return served[-1]

    yield start
    for one in served:
        await one.close()


async def test_a_peer_is_who_the_kernel_says(serve: Callable[..., Served], service: Embedded) -> None:
    """The record names this process."""
    client = serve().connect()

    assert (await ask(client)).error is None

    who = service.newest()["userIdentity"]
    assert (who["uid"], who["gid"], who["pid"]) == (os.getuid(), os.getgid(), os.getpid())


async def test_many_connections_are_accepted(serve: Callable[..., Served]) -> None:
    """More than are accepted in one turn."""
    served = serve()
    clients = [served.connect() for _ in range(40)]

    assert [(await ask(client)).error for client in clients] == [None] * 40

    assert served.shares.connections == 40


async def test_a_peer_whose_names_hang_holds_up_nobody_else(serve: Callable[..., Served]) -> None:
    """It is served once they are known, and what it sent is answered then."""
    served = serve()
    served.callers.opened.clear()
    slow = served.connect()
    await asyncio.get_running_loop().sock_sendall(slow, request_frame(STATUS, StatusRequest()))
    await served.callers.hang(1)
    opened, served.callers.opened = served.callers.opened, asyncio.Event()
    served.callers.opened.set()

    assert (await ask(served.connect())).error is None
    assert served.shares.connections == 1
    opened.set()

    [answer] = answers_in(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(slow, 1 << 16), 5))
    assert answer.error is None


async def test_so_many_of_a_uid_may_wait_for_their_names(serve: Callable[..., Served]) -> None:
    """More are turned away; a uid whose names hang takes no more than its share."""
    served = serve(Limits(connections_per_uid=2))
    served.callers.opened.clear()
    waiting = [served.connect(), served.connect()]
    await served.callers.hang(2)

    [refusal] = await read_all(served.connect())

    assert refusal.error is not None
    assert refusal.error.code == "LimitExceededException"
    served.callers.opened.set()
    assert [(await ask(client)).error for client in waiting] == [None, None]


async def test_beyond_so_many_in_all_the_others_wait_in_the_kernel(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are accepted when there is room again."""
    monkeypatch.setattr(module, "_ARRIVING", 3)
    served = serve()
    served.callers.opened.clear()
    clients = [served.connect() for _ in range(5)]
    await served.callers.hang(3)
    await asyncio.sleep(0.01)
    assert served.callers.waiting == 3
    served.callers.opened.set()

    assert [(await ask(client)).error for client in clients] == [None] * 5


async def test_who_waits_for_names_when_it_stops_is_answered_or_let_go(serve: Callable[..., Served]) -> None:
    """Within the grace it is like the others; after it, its connection is closed."""
    served = serve()
    served.callers.opened.clear()
    client = served.connect()
    await served.callers.hang(1)

    await served.listener.stop(0.05)

    assert await read_all(client) == []
    assert served.shares.connections == 0


async def test_beyond_the_limit_peers_are_turned_away(serve: Callable[..., Served]) -> None:
    """They are told why, and a place that is given back is another's."""
    served = serve(Limits(connections_per_uid=2))
    first, second = served.connect(), served.connect()
    await ask(first)
    await ask(second)

    [refusal] = await read_all(served.connect())

    assert refusal.id == 0
    assert refusal.error is not None
    assert refusal.error.code == "LimitExceededException"
    assert '"peer_refused"' in served.log.getvalue()
    first.close()
    await asyncio.sleep(0.005)
    assert (await ask(served.connect())).error is None
    assert served.shares.connections == 2


async def test_who_is_not_admitted_is_turned_away(serve: Callable[..., Served]) -> None:
    """Before a byte is read."""

    def refuse(peer: Peer) -> None:
        raise AccessDeniedError(f"not uid {peer.uid}")

    served = serve(admit=refuse)
    client = served.connect()

    [refusal] = await read_all(client)

    assert refusal.error is not None
    assert refusal.error.message == f"not uid {os.getuid()}"
    assert served.shares.connections == 0
    assert '"level": "warning"' in served.log.getvalue()


async def test_refused_peers_cannot_fill_the_log(serve: Callable[..., Served]) -> None:
    """The first is a line, and all others within a second are one line with their number."""

    def refuse(peer: Peer) -> None:
        raise AccessDeniedError(f"not uid {peer.uid}")

    served = serve(admit=refuse)
    for _ in range(20):
        await read_all(served.connect())

    assert served.log.getvalue().count("peer_refused") == 1

    for _ in range(200):
        if "more_peers_refused" in served.log.getvalue():
            break
        await asyncio.sleep(0.05)
    assert '"count": 19' in served.log.getvalue()


async def test_a_peer_that_is_gone_already_is_no_fault(serve: Callable[..., Served]) -> None:
    """Its connection ends, and others are served."""
    served = serve()
    served.connect().close()

    assert (await ask(served.connect())).error is None

    assert served.shares.connections == 1


async def test_without_descriptors_it_rests_and_goes_on(serve: Callable[..., Served]) -> None:
    """A process that has no descriptor left does not spin, and accepts again by itself."""
    served = serve()
    real = served.listener._socket
    failures = 0

    class Exhausted:
        def accept(self) -> Any:
            nonlocal failures
            failures += 1
            served.listener._socket = real
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return real.fileno()

    served.listener._socket = Exhausted()  # type: ignore[assignment] # as much of a socket as is asked
    client = served.connect()

    assert (await ask(client)).error is None

    assert failures == 1
    assert '"accept_failed"' in served.log.getvalue()


async def test_stopping_answers_what_was_asked(serve: Callable[..., Served], service: Embedded) -> None:
    """Idle connections are closed, nobody is accepted any more, and what is under way is answered first."""
    served = serve()
    idle, busy = served.connect(), served.connect()
    await ask(idle)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(busy, request_frame(STATUS, StatusRequest()))
    await asyncio.sleep(0.005)

    await served.listener.stop(5)

    assert await read_all(idle) == []
    [answer] = await read_all(busy)
    assert answer.error is None
    assert served.shares.connections == 0
    with pytest.raises(ConnectionRefusedError):
        served.connect()


async def test_stopping_waits_no_longer_than_the_grace(serve: Callable[..., Served]) -> None:
    """For a peer that does not read what it asked for."""
    served = serve()
    client = served.connect()
    loop = asyncio.get_running_loop()
    for _ in range(40):
        large = request_frame(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=32 * 1024))
        await loop.sock_sendall(client, large)
    await asyncio.sleep(0.02)
    started = time.monotonic()

    await served.listener.stop(0.1)

    assert 0.05 < time.monotonic() - started < 3
    assert served.shares.connections == 0


async def test_stopping_lets_a_slow_peer_read_its_replies(serve: Callable[..., Served]) -> None:
    """As long as the grace lasts."""
    served = serve()
    client = served.connect()
    loop = asyncio.get_running_loop()
    for _ in range(20):
        large = request_frame(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=32 * 1024))
        await loop.sock_sendall(client, large)
    await asyncio.sleep(0.05)
    stopping = asyncio.ensure_future(served.listener.stop(10))
    await asyncio.sleep(0.02)
    assert not stopping.done()

    assert len(await read_all(client)) == 20
    await stopping


def test_the_socket_has_its_mode_from_the_first_moment(short_path: Path) -> None:
    """Whatever the umask is, which stays as it was."""
    before = os.umask(0o022)
    try:
        for mode in (0o600, 0o666):
            with bind(short_path / f"{mode:o}", mode) as sock:
                assert stat.S_IMODE((short_path / f"{mode:o}").stat().st_mode) == mode
                assert not sock.getblocking()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_socket_nobody_listens_on_is_replaced(short_path: Path) -> None:
    """After a crash the file is still there."""
    bind(short_path / "s", 0o600).close()
    with bind(short_path / "s", 0o600):
        pass


def test_another_daemon_s_socket_is_left_alone(short_path: Path) -> None:
    """It goes on being served."""
    with bind(short_path / "s", 0o600) as first:
        with pytest.raises(SocketInUseError, match="another process serves"):
            bind(short_path / "s", 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(short_path / "s"))
            first.accept()[0].close()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_socket_is_left_alone(short_path: Path, kind: str) -> None:
    """A name that means something else is the administrator's to clear."""
    path = short_path / "s"
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to("elsewhere")
    else:
        path.mkdir()

    with pytest.raises(SocketInUseError, match="no socket"):
        bind(path, 0o600)

    assert path.is_symlink() or path.exists()
