"""Names, programs and control groups, asked in processes of their own."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from kmsd.identity import lookups as module
from kmsd.identity.answering import Answer, Found, run_cgroups, run_names, run_programs
from kmsd.identity.callers import ProcessLookups
from kmsd.identity.lookups import Lookups, NoAnswerError
from kmsd.identity.principals import HostNames, NameServiceError
from kmsd.identity.process import program_of

OWN_CGROUPS = Path("/proc/self/cgroup").read_text().splitlines()
Entry = Callable[[list[int]], None]


class Children:
    """Forked children, each of which runs the entry that is set at the moment."""

    def __init__(self) -> None:
        self.entry: Entry = run_names
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

    assert (await lookups.ask("user_name", 0), await lookups.ask("uid_of", root)) == (root, 0)
    assert (await lookups.ask("group_name", 0), await lookups.ask("gid_of", "root")) == ("root", 0)
    assert await lookups.ask("groups_of", root) == os.getgrouplist(root, 0)
    assert await lookups.ask("user_name", 4_000_000_000) is None
    assert await lookups.ask("uid_of", "nobody has this name") is None
    assert await lookups.ask("groups_of", "nobody has this name") is None


async def test_a_program_is_that_of_the_process(children: Children, lookups: Lookups) -> None:
    """None for one that is not there."""
    children.entry = run_programs
    programs = Lookups(children.connect)
    await programs.start()
    asked = ProcessLookups(programs, lookups)

    assert await asked.program_of(os.getpid()) == program_of(os.getpid())
    assert await asked.program_of(2**30) is None
    programs.close()
    assert await asked.program_of(os.getpid()) is None


async def test_a_control_group_is_that_of_the_process(children: Children, lookups: Lookups) -> None:
    """For many who ask at a time; None for a process that is not there."""
    children.entry = run_cgroups
    cgroups = Lookups(children.connect)
    await cgroups.start()
    asked = ProcessLookups(lookups, cgroups)

    found = await asyncio.gather(*(asked.cgroup_of(os.getpid(), None) for _ in range(300)))

    assert len({*found}) == 1
    assert any(line.endswith(f":{found[0]}") for line in OWN_CGROUPS)
    assert await asked.cgroup_of(2**30, None) is None
    cgroups.close()
    assert await asked.cgroup_of(os.getpid(), None) is None


async def test_a_child_that_ended_is_replaced(children: Children, lookups: Lookups) -> None:
    """What is asked meanwhile is not known."""
    children.end()

    with pytest.raises(NameServiceError):
        await lookups.ask("user_name", 0)
    await started_anew(children)

    assert await lookups.ask("user_name", 0) == "root"


@pytest.mark.parametrize("kind", ["hangs", "babbles", "dies at each question"])
async def test_a_name_service_that_misbehaves_holds_nobody_up_for_ever(
    kind: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is bounded, and the next child is a new start."""
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(module, "_REST_SECONDS", 0.2)

    def misbehave(descriptors: list[int]) -> None:
        with socket.socket(fileno=descriptors[0]) as daemon:
            daemon.recv(1 << 16)
            if kind == "hangs":
                signal.pause()
            if kind == "babbles":
                daemon.send(b"\xc1nonsense")
                daemon.recv(1)

    children.entry = misbehave
    lookups = Lookups(children.connect)
    await lookups.start()
    children.entry = run_names
    failed = await asyncio.gather(*(lookups.ask("user_name", uid) for uid in range(4)), return_exceptions=True)
    assert {isinstance(one, NameServiceError) for one in failed} == {True}
    await started_anew(children)

    assert await lookups.ask("user_name", 0) == "root"
    lookups.close()


async def test_an_answer_to_another_question_is_nobodys(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a late one."""
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 0.2)

    def misbehave(descriptors: list[int]) -> None:
        with socket.socket(fileno=descriptors[0]) as daemon:
            daemon.recv(1 << 16)
            daemon.send(msgspec.msgpack.encode(Answer(77, "root")))
            daemon.recv(1)

    children.entry = misbehave
    lookups = Lookups(children.connect)
    await lookups.start()

    with pytest.raises(NoAnswerError):
        await lookups.ask("user_name", 0)
    lookups.close()


async def test_a_question_that_hangs_does_not_hold_up_the_others(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are answered meanwhile and afterwards, by the same child; also when nobody asks meanwhile."""
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 0.3)
    of_host = HostNames.user_name

    def hang(names: HostNames, uid: int) -> str | None:
        if uid in {7, 8}:
            time.sleep(600)
        return of_host(names, uid)

    monkeypatch.setattr(HostNames, "user_name", hang)
    lookups = Lookups(children.connect)
    await lookups.start()
    hanging = asyncio.create_task(lookups.ask("user_name", 7))
    await asyncio.sleep(0)
    others = await asyncio.gather(*(lookups.ask("user_name", 0) for _ in range(20)))

    assert others == ["root"] * 20
    assert not hanging.done()
    with pytest.raises(NoAnswerError):
        await hanging
    with pytest.raises(NoAnswerError):
        await lookups.ask("user_name", 8)
    assert await lookups.ask("user_name", 0) == "root"
    assert not children.another.is_set()
    lookups.close()


async def test_a_child_whose_name_service_hangs_ends_when_it_is_given_up(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs in other people's code, which does not see that nobody waits any more."""
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(HostNames, "user_name", lambda _names, _uid: time.sleep(600))
    lookups = Lookups(children.connect)
    await lookups.start()

    await asyncio.gather(*(lookups.ask("user_name", uid) for uid in range(4)), return_exceptions=True)

    assert children.last_end() == 0
    lookups.close()


async def test_who_waits_is_told_when_the_daemon_stops(children: Children) -> None:
    """And nothing is started anew."""
    children.entry = _silent
    lookups = Lookups(children.connect)
    await lookups.start()
    waiting: asyncio.Task[Found] = asyncio.create_task(lookups.ask("user_name", 0))
    await asyncio.sleep(0)

    lookups.close()

    with pytest.raises(NameServiceError):
        await waiting
    assert not children.another.is_set()


async def test_what_the_socket_has_no_room_for_waits(lookups: Lookups) -> None:
    """Somebody who has many names looked up at once does not make those of others unknown."""
    many = (lookups.ask("uid_of", f"nobody-{number}") for number in range(900))

    *others, root = await asyncio.gather(*many, lookups.ask("user_name", 0))

    assert others == [None] * 900
    assert root == "root"


async def test_questions_under_way_are_bounded(children: Children) -> None:
    """Beyond that they are refused, not queued."""
    children.entry = _silent
    lookups = Lookups(children.connect)
    await lookups.start()
    waiting = [asyncio.create_task(lookups.ask("user_name", uid)) for uid in range(2000)]
    await asyncio.sleep(0.01)

    refused = [task for task in waiting if task.done()]

    assert refused
    assert {str(task.exception()) for task in refused} == {"too much is being looked up"}
    lookups.close()
    await asyncio.gather(*waiting, return_exceptions=True)


def _silent(descriptors: list[int]) -> None:
    with socket.socket(fileno=descriptors[0]):
        signal.pause()
