"""The zygote makes children, tells how they end, and nothing outlives the daemon."""

import asyncio
import ctypes
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from kmsd.memory import Arena, Page
from kmsd.memory.arena import CHUNK_BYTES
from kmsd.processes import SpawnError, Zygote, ZygoteGoneError
from kmsd.processes.messages import MAX_DESCRIPTORS

PR_GET_DUMPABLE = 3  # linux/prctl.h

Run = Callable[[Coroutine[Any, Any, None]], None]


def finish(_descriptors: list[int]) -> None:
    return


def fail(_descriptors: list[int]) -> None:
    raise ValueError("secret data")


def leave(_descriptors: list[int]) -> None:
    sys.exit(7)


def wait_for_signal(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.write(descriptor, b"running")
    signal.pause()


def echo_each(descriptors: list[int]) -> None:
    for position, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % position)


def describe(descriptors: list[int]) -> None:
    """Write what this process looks like from inside."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    pid, group = os.getpid(), os.getpgid(0)
    opened = {int(path.name): str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    fields = {line.partition(":")[0]: line.partition(":")[2].strip() for line in status.splitlines()}
    report = {
        "pid": pid,
        "group": group,
        "parent": os.getppid(),
        "descriptors": [number for number in opened if number > 2 and number not in descriptors],
        "standard": [opened[number] for number in (0, 1, 2)],
        "inheritable": [number for number in descriptors if os.get_inheritable(number)],
        "environment": dict(os.environ),
        "name": fields["Name"],
        "no_new_privs": fields["NoNewPrivs"],
        "threads": fields["Threads"],
        "blocked": fields["SigBlk"],
        "dumpable": ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "signals": {
            name: str(signal.getsignal(getattr(signal, name))) for name in ("SIGINT", "SIGTERM", "SIGCHLD", "SIGUSR1")
        },
    }
    os.write(descriptors[0], json.dumps(report).encode())


def draw_random(descriptors: list[int]) -> None:
    """Write what Python's, the kernel's and OpenSSL's generators give in a fresh child."""
    key = generate_private_key(SECP256R1())
    numbers = [random.random(), os.urandom(8).hex(), key.private_numbers().private_value]
    os.write(descriptors[0], json.dumps(numbers).encode())


def answer_in_page(descriptors: list[int]) -> None:
    with Page.from_descriptor(descriptors[0]) as page:
        page.close_descriptor()
        os.write(descriptors[1], page.view[:3])
        page.view[:3] = b"bye"
        os.write(descriptors[1], b"answered")
        os.read(descriptors[1], 1)


def count_secret_mappings(descriptors: list[int]) -> None:
    os.write(descriptors[0], b"%d" % Path("/proc/self/maps").read_text(encoding="ascii").count("/secretmem"))


ENTRIES = {
    entry.__name__: entry
    for entry in (
        finish,
        fail,
        leave,
        wait_for_signal,
        echo_each,
        describe,
        draw_random,
        answer_in_page,
        count_secret_mappings,
    )
}


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


@pytest.fixture
def zygote(run: Run) -> Iterator[Zygote]:
    zygote = Zygote.start(ENTRIES)
    yield zygote
    run(zygote.close())


def state_of(pid: int) -> str | None:
    """The letter of /proc/PID/stat, or None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def wait_until_gone(pid: int) -> None:
    """Wait until a process has ended; an orphan that init has yet to reap counts."""
    deadline = time.monotonic() + 10
    while state_of(pid) not in {None, "Z", "X"}:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def descriptors_of(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def read(descriptor: int) -> bytes:
    return await asyncio.to_thread(os.read, descriptor, 65536)


@pytest.mark.parametrize(("entry", "code"), [("finish", 0), ("fail", 1), ("leave", 1)])
def test_a_child_reports_its_exit_code(
    run: Run, zygote: Zygote, entry: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """An entry that returns is 0, one that raises is 1, and nothing of the exception is printed."""

    async def scenario() -> None:
        child = await zygote.spawn(entry, [])
        assert await child.wait() == code
        assert await child.wait() == code

    run(scenario())
    assert capfd.readouterr().err == ""


def test_a_killed_child_reports_the_signal(run: Run, zygote: Zygote) -> None:
    """Killing is exact and repeatable, and touches no other child."""

    async def scenario() -> None:
        read_end, write_end = os.pipe()
        first = await zygote.spawn("wait_for_signal", [])
        second = await zygote.spawn("wait_for_signal", [write_end])
        await zygote.kill(first)
        assert await first.wait() == -signal.SIGKILL
        await zygote.kill(first)
        await read(read_end)  # from now on the child has its own way with signals
        os.kill(second.pid, signal.SIGTERM)
        assert await second.wait() == -signal.SIGTERM
        os.close(read_end)
        os.close(write_end)

    run(scenario())


def test_descriptors_arrive_in_order_and_stay_the_callers(run: Run, zygote: Zygote) -> None:
    """Each descriptor is duplicated into the child at its place in the list; the caller's own stay open."""

    async def scenario() -> None:
        pipes = [os.pipe() for _ in range(MAX_DESCRIPTORS)]
        child = await zygote.spawn("echo_each", [write for _, write in pipes])
        assert await child.wait() == 0
        for position, (read_end, write_end) in enumerate(pipes):
            assert os.read(read_end, 16) == b"%d" % position
            os.close(write_end)
            assert os.read(read_end, 16) == b""
            os.close(read_end)

    run(scenario())


def test_a_child_has_nothing_but_its_descriptors(run: Run, zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other descriptors, no environment, no privileges to gain, no core, ordinary signals, a name of its own."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = await zygote.spawn("describe", [theirs.fileno()])
            report = json.loads(await read(ours.fileno()))
            assert await child.wait() == 0
        assert report == {
            "pid": child.pid,
            "group": zygote.pid,
            "parent": zygote.pid,
            "descriptors": [],
            "standard": ["/dev/null"] * 3,
            "inheritable": [],
            "environment": {},
            "name": "describe",
            "no_new_privs": "1",
            "threads": "1",
            "blocked": "0000000000000000",
            "dumpable": 0,
            "core": [0, 0],
            "signals": {
                "SIGINT": str(signal.SIG_IGN),
                "SIGTERM": str(signal.SIG_DFL),
                "SIGCHLD": str(signal.SIG_DFL),
                "SIGUSR1": str(signal.SIG_DFL),
            },
        }

    run(scenario())


def test_children_draw_different_random_numbers(run: Run, zygote: Zygote) -> None:
    """No generator repeats in the next child what it gave in the last one."""

    async def scenario() -> None:
        read_end, write_end = os.pipe()
        drawn = []
        for _ in range(3):
            child = await zygote.spawn("draw_random", [write_end])
            drawn.append(json.loads(await read(read_end)))
            assert await child.wait() == 0
        for numbers in zip(*drawn, strict=True):
            assert len(set(numbers)) == len(drawn)
        os.close(read_end)
        os.close(write_end)

    run(scenario())


def test_a_key_reaches_a_child_in_a_page_alone(run: Run, zygote: Zygote) -> None:
    """The child maps the page, answers in it, and wipes it for both; the arena is not there in the child."""

    async def scenario() -> None:
        arena = Arena(CHUNK_BYTES)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, Page.create() as page, arena.random(32):
            page.view[:3] = b"key"
            child = await zygote.spawn("answer_in_page", [page.fd, theirs.fileno()])
            assert await read(ours.fileno()) == b"key"
            assert await read(ours.fileno()) == b"answered"
            assert bytes(page.view[:3]) == b"bye"
            ours.send(b"x")
            assert await child.wait() == 0
            assert page.view == bytes(4096)
            await (await zygote.spawn("count_secret_mappings", [theirs.fileno()])).wait()
            assert await read(ours.fileno()) == b"0"

    run(scenario())


AFTER_UVLOOP = """
import asyncio, os, uvloop
from kmsd.processes import Zygote
uvloop.new_event_loop().close()
def echo(descriptors):
    for position, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % position)
zygote = Zygote.start({"echo": echo})
async def main():
    pipes = [os.pipe() for _ in range(16)]
    child = await zygote.spawn("echo", [write_end for _, write_end in pipes])
    print(await child.wait(), [int(os.read(read_end, 16)) for read_end, _ in pipes] == list(range(16)))
    await zygote.close()
asyncio.run(main())
"""


def test_descriptors_survive_what_libraries_do_after_a_fork() -> None:
    """Once there was a uvloop, libuv closes two descriptors by their old numbers in every forked child."""
    result = subprocess.run(
        [sys.executable, "-c", AFTER_UVLOOP], capture_output=True, text=True, check=True, timeout=60
    )

    assert result.stdout == "0 True\n"


def test_unknown_entries_and_bad_descriptors_are_refused(run: Run, zygote: Zygote) -> None:
    """The error says what is wrong; the zygote goes on."""

    async def scenario() -> None:
        with pytest.raises(ValueError, match=r"knows no entry 'shell'; it was started with \['answer_in_page'"):
            await zygote.spawn("shell", [])
        with pytest.raises(ValueError, match="16 descriptors, not 17"):
            await zygote.spawn("finish", [0] * 17)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await zygote.spawn("finish", [1_000_000])
        assert await (await zygote.spawn("finish", [])).wait() == 0

    run(scenario())


@pytest.mark.root
def test_descriptors_that_do_not_fit_into_the_zygote_are_an_error(run: Run, zygote: Zygote) -> None:
    """At RLIMIT_NOFILE the kernel drops descriptors; the child is not made with some missing, and nothing leaks.

    Only root may count the descriptors of an undumpable process.
    """

    async def scenario() -> None:
        assert await (await zygote.spawn("finish", [0, 0, 0, 0])).wait() == 0
        opened = descriptors_of(zygote.pid)
        soft, hard = resource.prlimit(zygote.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(zygote.pid, resource.RLIMIT_NOFILE, (opened + 2, hard))
        for _ in range(5):
            with pytest.raises(SpawnError, match=r"only [0-3] of 4 descriptors arrived; .* RLIMIT_NOFILE"):
                await zygote.spawn("finish", [0, 0, 0, 0])
        resource.prlimit(zygote.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert await (await zygote.spawn("finish", [0, 0, 0, 0])).wait() == 0
        assert descriptors_of(zygote.pid) == opened

    run(scenario())


@pytest.mark.root
def test_a_fork_that_fails_is_an_error_of_that_request() -> None:
    """At RLIMIT_NPROC the request is refused with the reason, and the zygote lives on."""
    script = (
        "import asyncio, os, resource\n"
        "from kmsd.processes import SpawnError, Zygote\n"
        "os.setuid(54321)\n"
        "zygote = Zygote.start({'finish': lambda descriptors: None})\n"
        "async def main():\n"
        "    assert await (await zygote.spawn('finish', [])).wait() == 0\n"
        "    resource.prlimit(zygote.pid, resource.RLIMIT_NPROC, (1, 1))\n"
        "    try: await zygote.spawn('finish', [])\n"
        "    except SpawnError as error: print(error)\n"
        "    await zygote.close()\n"
        "asyncio.run(main())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert result.stdout == "fork failed: Resource temporarily unavailable\n"


def test_many_children_at_once_leave_no_zombies(run: Run, zygote: Zygote) -> None:
    """A burst of requests is answered one by one, each child's end is told to its own waiter, all are reaped."""

    async def scenario() -> None:
        entries = ["finish", "fail"] * 50
        children = await asyncio.gather(*(zygote.spawn(entry, []) for entry in entries))
        codes = await asyncio.gather(*(child.wait() for child in children))
        assert codes == [0, 1] * 50
        assert children_of(zygote.pid) == []

    run(scenario())


def test_a_cancelled_request_leaves_no_child(run: Run, zygote: Zygote) -> None:
    """Whether the cancellation comes before or after the child was made, nobody has to end it."""

    async def scenario() -> None:
        for delay in (0, 0.0005, 0.001, 0.002):
            task = asyncio.create_task(zygote.spawn("wait_for_signal", []))
            await asyncio.sleep(delay)
            if not task.cancel():
                await zygote.kill(await task)
        deadline = time.monotonic() + 10
        await (await zygote.spawn("finish", [])).wait()
        while children_of(zygote.pid):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    run(scenario())


def test_a_cancelled_wait_does_not_disturb_the_others(run: Run, zygote: Zygote) -> None:
    """The end of a child can be awaited with a deadline, and again after it."""

    async def scenario() -> None:
        child = await zygote.spawn("wait_for_signal", [])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child.wait(), 0.01)
        await zygote.kill(child)
        assert await child.wait() == -signal.SIGKILL

    run(scenario())


def test_closing_ends_the_zygote_and_tells_how_its_children_ended(run: Run) -> None:
    """After close neither zygote nor children exist, not even as zombies; a second close does nothing."""

    async def scenario() -> None:
        zygote = Zygote.start(ENTRIES)
        children = [await zygote.spawn("wait_for_signal", []) for _ in range(3)]
        await zygote.close()
        await zygote.close()
        assert [await child.wait() for child in children] == [-signal.SIGKILL] * 3
        assert [state_of(pid) for pid in (zygote.pid, *(child.pid for child in children))] == [None] * 4
        with pytest.raises(ZygoteGoneError):
            await zygote.spawn("finish", [])

    run(scenario())


def test_closing_does_not_wait_for_a_zygote_that_hangs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped zygote is killed after a deadline, and its children go with it."""
    monkeypatch.setattr("kmsd.processes.zygote._CLOSE_SECONDS", 0.05)

    async def scenario() -> None:
        zygote = Zygote.start(ENTRIES)
        child = await zygote.spawn("wait_for_signal", [])
        os.kill(zygote.pid, signal.SIGSTOP)
        await zygote.close()
        assert state_of(zygote.pid) is None
        wait_until_gone(child.pid)
        with pytest.raises(ZygoteGoneError):
            await child.wait()

    run(scenario())


def test_a_dead_zygote_takes_its_children_along_and_is_told(run: Run) -> None:
    """Whoever waits for a child or asks for one gets an error; no orphan works on; the zygote is no zombie."""

    async def scenario() -> None:
        zygote = Zygote.start(ENTRIES)
        child = await zygote.spawn("wait_for_signal", [])
        waiting = asyncio.create_task(child.wait())
        os.kill(zygote.pid, signal.SIGSTOP)
        asked = asyncio.create_task(zygote.spawn("finish", []))
        await asyncio.sleep(0)
        os.kill(zygote.pid, signal.SIGKILL)
        for task in (waiting, asked):
            with pytest.raises(ZygoteGoneError):
                await task
        wait_until_gone(child.pid)
        assert state_of(zygote.pid) is None
        for late in (zygote.spawn("finish", []), zygote.kill(child)):
            with pytest.raises(ZygoteGoneError):
                await late
        await zygote.close()

    run(scenario())


def test_a_zygote_that_died_unused_can_be_closed(run: Run) -> None:
    """Also when nobody ever asked it for anything, and so nobody noticed."""

    async def scenario() -> None:
        zygote = Zygote.start(ENTRIES)
        os.kill(zygote.pid, signal.SIGKILL)
        wait_until_gone(zygote.pid)
        with pytest.raises(ZygoteGoneError):
            await zygote.spawn("finish", [])
        await zygote.close()
        assert state_of(zygote.pid) is None

    run(scenario())


DAEMON = """
import asyncio, os, signal
from kmsd.processes import Zygote
zygote = Zygote.start({"pause": lambda descriptors: signal.pause()})
async def main():
    children = [await zygote.spawn("pause", []) for _ in range(2)]
    print(zygote.pid, *(child.pid for child in children), flush=True)
    await children[0].wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_daemon(number: int) -> None:
    """However the daemon ends, its zygote and all children end with it."""
    with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        assert daemon.stdout is not None
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        daemon.send_signal(number)
        daemon.wait()

        assert len(pids) == 3
        for pid in pids:
            wait_until_gone(pid)


def test_signals_for_the_daemon_do_not_end_the_zygote(run: Run, zygote: Zygote) -> None:
    """A terminal's interrupt and a service manager's SIGTERM reach the whole group; only the daemon acts on them."""

    async def scenario() -> None:
        os.kill(zygote.pid, signal.SIGINT)
        os.kill(zygote.pid, signal.SIGTERM)
        child = await zygote.spawn("wait_for_signal", [])
        os.kill(child.pid, signal.SIGINT)
        await zygote.kill(child)
        assert await child.wait() == -signal.SIGKILL

    run(scenario())


def test_a_zygote_can_serve_one_loop_after_another(zygote: Zygote) -> None:
    """It was started before any loop, and belongs to none."""

    async def scenario() -> None:
        assert await (await zygote.spawn("finish", [])).wait() == 0

    asyncio.run(scenario())
    uvloop.run(scenario())


def test_a_zygote_is_not_started_beside_threads() -> None:
    """A fork would copy the locks other threads hold at that moment."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with pytest.raises(RuntimeError, match="before any thread"):
        Zygote.start(ENTRIES)
    stop.set()
    thread.join()


def test_a_stopped_zygote_does_not_answer(run: Run) -> None:
    """What was asked meanwhile is answered when it goes on, in order, whoever has lost interest."""

    async def ask() -> None:
        zygote = Zygote.start({})
        await zygote.ping()
        os.kill(zygote.pid, signal.SIGSTOP)
        pings = [asyncio.ensure_future(zygote.ping()) for _ in range(3)]
        done, _ = await asyncio.wait(pings, timeout=0.05)
        assert done == set()
        pings[1].cancel()
        os.kill(zygote.pid, signal.SIGCONT)
        await asyncio.gather(pings[0], pings[2])
        await zygote.close()

    run(ask())


def test_a_zygote_that_ended_answers_no_ping(run: Run) -> None:
    """Those that wait are told, and those that ask later."""

    async def ask() -> None:
        zygote = Zygote.start({})
        os.kill(zygote.pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(zygote.ping())
        await asyncio.sleep(0)
        os.kill(zygote.pid, signal.SIGKILL)
        with pytest.raises(ZygoteGoneError):
            await waiting
        with pytest.raises(ZygoteGoneError):
            await zygote.ping()

    run(ask())
