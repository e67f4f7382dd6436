"""The process behind a connection: real children that connect, end, and have their pids used again."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from kmsd.identity.callers import Callers
from kmsd.identity.peer import peer_of
from kmsd.identity.principals import Administrators, Caller
from kmsd.identity.process import process_of, program_of
from tests.support.at_once import Processes, directory_of
from tests.support.connecting import connection_from, nothing

OF_THE_PROCESS = {"unit", "user_unit", "exe"}


OWN_PROGRAM = str(Path("/proc/self/exe").readlink())


def end(sock: socket.socket, pid: int) -> None:
    """Let the peer end, and stay a zombie."""
    sock.send(b"x")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


class Meanwhile(Processes):
    """Reads about a process only when it is too late."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock = sock
        self._pid = pid

    async def program_of(self, pid: int) -> str | None:
        assert pid == self._pid
        end(self._sock, pid)
        return "/usr/bin/another"

    async def cgroup_of(self, pid: int, cgroup_id: int | None) -> str | None:  # noqa: ARG002 - the interface's
        return "/system.slice/another.service"


async def caller_at(sock: socket.socket, processes: Processes | None = None) -> Caller:
    callers = Callers(directory_of(), processes or Processes(), Administrators(frozenset()))
    peer = peer_of(sock)
    process = process_of(sock, peer.pid)
    if process is None:
        return await callers.caller_of(peer, None)
    with process:
        return await callers.caller_of(peer, process)


async def test_a_caller_runs_the_program_of_the_process(listener: socket.socket) -> None:
    """And is in a control group that was found, which may be of no unit."""
    with connection_from(listener, nothing) as (sock, _):
        caller = await caller_at(sock)

    assert caller.exe == OWN_PROGRAM
    assert "exe" not in caller.undetermined


def test_the_kernel_tells_the_control_group_of_a_process(listener: socket.socket) -> None:
    """By the inode of its folder; since Linux 6.13."""
    with connection_from(listener, nothing) as (sock, pid):
        process = process_of(sock, pid)
        assert process is not None
        with process:
            cgroup_id = process.cgroup_id
    if cgroup_id is None:
        pytest.skip("this kernel does not tell it")
    path = next(
        line.removeprefix("0::")
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    unified = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]

    found = [(root / path.removeprefix("/")).stat().st_ino for root in unified if (root / "cgroup.procs").exists()]
    if not found:
        pytest.skip("the unified hierarchy is not mounted here")
    assert cgroup_id in found


async def test_of_a_peer_that_has_ended_nothing_is_known(listener: socket.socket) -> None:
    """Its program and units are undetermined, not absent."""
    with connection_from(listener, nothing) as (sock, pid):
        end(sock, pid)
        caller = await caller_at(sock)

    assert caller.pid == pid
    assert (caller.exe, caller.unit, caller.user_unit) == (None, None, None)
    assert caller.undetermined == OF_THE_PROCESS


async def test_what_is_read_while_the_peer_ends_is_not_believed(listener: socket.socket) -> None:
    """A pid may name another process by then: the pidfd has to show that the peer still lives."""
    with connection_from(listener, nothing) as (sock, pid):
        caller = await caller_at(sock, Meanwhile(sock, pid))

    assert (caller.exe, caller.unit) == (None, None)
    assert caller.undetermined == OF_THE_PROCESS


async def test_a_peer_in_another_pid_namespace_has_no_process(listener: socket.socket) -> None:
    """Its pid is 0 here."""
    with connection_from(listener, nothing) as (sock, _):
        assert process_of(sock, 0) is None


class OldSocket(socket.socket):
    """As before Linux 6.5, without SO_PEERPIDFD."""

    def getsockopt(self, level: int, option: int, size: int = 0) -> object:  # type: ignore[override]
        if option == 77:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return super().getsockopt(level, option, size) if size else super().getsockopt(level, option)


async def test_older_kernels_pin_the_process_by_its_pid(listener: socket.socket) -> None:
    """It may be another one already, so its program is told, and no unit, which would let it in."""
    with connection_from(listener, nothing) as (sock, _), OldSocket(fileno=os.dup(sock.fileno())) as old:
        caller = await caller_at(old)

    assert caller.exe == OWN_PROGRAM
    assert caller.undetermined == {"unit", "user_unit"}


async def test_determining_a_caller_leaves_no_descriptor_open(listener: socket.socket) -> None:
    """The pidfd is kept only while things are looked up."""
    with connection_from(listener, nothing) as (sock, _):
        before = os.listdir("/proc/self/fd")  # noqa: PTH208 - the names
        await caller_at(sock)

        assert before == os.listdir("/proc/self/fd")  # noqa: PTH208 - the names


def test_a_program_path_that_is_not_utf8_can_be_logged(listener: socket.socket, short_path: Path) -> None:
    """Any bytes may be in a path; what comes out is text that encodes."""
    program = os.fsencode(short_path) + b"/cat-\xff"
    shutil.copy(os.fsencode(shutil.which("cat") or ""), program)

    def connect_and_become_another_program() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(listener.getsockname())
        os.dup2(sock.fileno(), 0)
        os.execv(program, [program])  # noqa: S606 - a program of this test

    with connection_from(listener, connect_and_become_another_program) as (_, pid):
        own = Path("/proc/self/exe").readlink()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}/exe").readlink() == own and time.monotonic() < deadline:
            time.sleep(0.01)
        exe = program_of(pid)

    assert exe == f"{short_path}/cat-\\xff"
    assert exe.encode()
