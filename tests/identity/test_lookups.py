"""Names and programs, asked in a process of their own."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest

from kmsd.identity import lookups as module
from kmsd.identity.lookups import Answer, Lookups, run_lookups
from kmsd.identity.peer import program_of
from kmsd.identity.principals import HostNames, NameServiceError, SystemNames

Entry = Callable[[list[int]], None]


class Children:
    """Forked children, each of which runs the entry that is set at the moment."""

    def __init__(self) -> None:
        self.entry: Entry = run_lookups
        self._running: list[int] = []
        self._made = 0
        self.another = asyncio.Event()

    async def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                self.entry([theirs.detach()])
            finally:
                os._exit(0)
        theirs.close()
        self._running.append(pid)
        self._made += 1
        if self._made > 1:
            self.another.set()
        return ours

    def last_end(self) -> int:
        """Wait for the end of the newest child, and return how it ended."""
        _, status = os.waitpid(self._running.pop(), 0)
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """End all that run."""
        while self._running:
            pid = self._running.pop()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.end()


@pytest.fixture
async def lookups(children: Children) -> AsyncIterator[Lookups]:
    made = Lookups(children.connect)
    await made.start()
    yield made
    made.close()


async def started_anew(children: Children) -> None:
    """Wait until there is another child, and the daemon's side knows it."""
    await asyncio.wait_for(children.another.wait(), 10)
    await asyncio.sleep(0)


async def test_names_are_those_of_the_host(lookups: Lookups) -> None:
    """As the C library tells them; what is unknown has no name."""
    root = pwd.getpwuid(0).pw_name

    assert (lookups.user_name(0), lookups.uid_of(root)) == (root, 0)
    assert (lookups.group_name(0), lookups.gid_of("root")) == ("root", 0)
    assert lookups.user_name(4_000_000_000) is None
    assert lookups.uid_of("nobody has this name") is None


async def test_a_program_is_that_of_the_process(lookups: Lookups) -> None:
    """None for one that is not there."""
    assert lookups.program_of(os.getpid()) == program_of(os.getpid())
    assert lookups.program_of(2**30) is None


async def test_a_child_that_ended_is_replaced(children: Children, lookups: Lookups) -> None:
    """What is asked meanwhile is not known, and that is not remembered as if it were an answer."""
    names = SystemNames(source=lookups)
    children.end()

    with pytest.raises(NameServiceError):
        lookups.user_name(0)
    assert names.user_name(0) is None
    assert lookups.program_of(os.getpid()) is None
    await started_anew(children)

    assert names.user_name(0) == "root"


@pytest.mark.parametrize("kind", ["hangs", "babbles", "answers another question", "dies at each question"])
async def test_a_name_service_that_misbehaves_holds_nobody_up_for_ever(
    kind: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is bounded, and the next child is a new start."""
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 1)
    monkeypatch.setattr(module, "_REST_SECONDS", 0.2)

    def misbehave(descriptors: list[int]) -> None:
        with socket.socket(fileno=descriptors[0]) as daemon:
            daemon.recv(1 << 16)
            if kind == "hangs":
                signal.pause()
            if kind == "babbles":
                daemon.send(b"\xc1nonsense")
            if kind == "answers another question":
                daemon.send(msgspec.msgpack.encode(Answer(77, "root")))
            if kind != "dies at each question":
                daemon.recv(1)

    children.entry = misbehave
    lookups = Lookups(children.connect)
    await lookups.start()
    with pytest.raises(NameServiceError):
        lookups.user_name(0)
    children.entry = run_lookups
    await started_anew(children)

    assert lookups.user_name(0) == "root"
    lookups.close()


async def test_a_child_whose_name_service_hangs_ends_by_itself(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs in other people's code and cannot see that nobody waits any more."""
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 1)
    monkeypatch.setattr(module, "_CHILD_SECONDS", 0.5)

    def hang(_names: object, _uid: int) -> None:
        signal.pause()

    monkeypatch.setattr(HostNames, "user_name", hang)
    lookups = Lookups(children.connect)
    await lookups.start()

    with pytest.raises(NameServiceError):
        lookups.user_name(0)

    assert children.last_end() == -signal.SIGALRM
    lookups.close()
