"""Worker processes, real ones from a real zygote: `kmsd.envelope.pool` and `kmsd.envelope.worker`."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kmsd.api.errors import (
    AuditUnavailableError,
    FileAccessError,
    KMSInternalError,
    ProtocolError,
    ShuttingDownError,
    ThrottlingError,
)
from kmsd.api.failure import Failure
from kmsd.envelope import control, conversation, pool
from kmsd.envelope.control import WORKER_ENTRY
from kmsd.envelope.conversation import Done, Report, Start
from kmsd.envelope.header import EncryptedDataKey, make_header
from kmsd.envelope.pool import Direction, FileJob, FileStream, WorkerPool
from kmsd.envelope.worker import run_worker
from kmsd.memory.page import Page
from kmsd.processes.zygote import Entry, Zygote

UID = 1000
KEY = memoryview(bytearray(32))
HEADER = make_header(
    memoryview(bytearray(range(32))),
    message_id=bytes(32),
    encryption_context={},
    encrypted_data_keys=(EncryptedDataKey("aws-kms", b"arn", b"wrapped"),),
    frame_length=4096,
    into=KEY,
).serialize()
ENCRYPT = FileJob(Direction.ENCRYPT, HEADER, KEY)
DECRYPT = FileJob(Direction.DECRYPT, HEADER, KEY)

MakePool = Callable[..., Awaitable[WorkerPool]]
Connect = Callable[[FileStream], "Peer"]


@pytest.fixture
async def make_pool() -> AsyncIterator[MakePool]:
    made: list[tuple[WorkerPool, Zygote]] = []

    async def make(*, size: int = 8, spare: int = 1, entry: Entry = run_worker) -> WorkerPool:
        zygote = Zygote.start({WORKER_ENTRY: entry})
        workers = WorkerPool(zygote, size=size, per_uid=4, spare=spare)
        made.append((workers, zygote))
        await workers.fill()
        return workers

    yield make
    for workers, zygote in made:
        await workers.close()
        await zygote.close()


class Peer:
    """The client's side of the conversation, in the test's own hands."""

    def __init__(self, stream: FileStream) -> None:
        self.socket = socket.socket(fileno=stream.client_descriptor)
        self.socket.setblocking(False)

    def start(self, source: int, sink: int, message: bytes = conversation.encode(Start())) -> None:
        socket.send_fds(self.socket, [message], [source, sink])

    async def report(self) -> Report | None:
        data = await asyncio.get_running_loop().sock_recv(self.socket, conversation.MAX_DATAGRAM_BYTES)
        return conversation.decode_report(data) if data else None


@pytest.fixture
def connect() -> Iterator[Connect]:
    peers: list[Peer] = []

    def make(stream: FileStream) -> Peer:
        peers.append(Peer(stream))
        return peers[-1]

    yield make
    for peer in peers:
        peer.socket.close()


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is the state of a process
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def files(tmp_path: Path, content: bytes) -> Iterator[tuple[int, int]]:
    (tmp_path / "source").write_bytes(content)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "sink").open("wb") as sink:
        yield source.fileno(), sink.fileno()


async def test_a_file_goes_there_and_back(make_pool: MakePool, connect: Connect, tmp_path: Path) -> None:
    """Two workers, one after the other, encrypt and decrypt; both sides hear the same lengths."""
    workers = await make_pool()
    plaintext = os.urandom(100_000)
    with files(tmp_path, plaintext) as (source, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        peer.start(source, sink)
        outcome = await stream.outcome()
        await stream.acknowledge()
        report = await peer.report()
    message = (tmp_path / "sink").read_bytes()

    assert outcome == pool.FileOutcome(len(plaintext), len(message), None)
    assert report == Report(done=Done(len(plaintext), len(message)))

    await settled(lambda: workers.busy == 0)
    with files(tmp_path, message) as (source, sink):
        os.lseek(source, len(HEADER), os.SEEK_SET)
        stream = await workers.start(DECRYPT, uid=UID)
        peer = connect(stream)
        peer.start(source, sink)

        assert await stream.outcome() == pool.FileOutcome(len(plaintext), len(message), None)
    assert (tmp_path / "sink").read_bytes() == plaintext


async def test_the_client_hears_nothing_before_the_outcome_is_recorded(
    make_pool: MakePool, connect: Connect, tmp_path: Path
) -> None:
    """Done comes only after the acknowledgement."""
    workers = await make_pool()
    with files(tmp_path, b"abc") as (source, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        peer.start(source, sink)
        await stream.outcome()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.report(), 0.1)
        await stream.acknowledge()
        report = await peer.report()

    assert report is not None
    assert report.done is not None


async def test_an_outcome_that_cannot_be_recorded_is_an_error_to_the_client(
    make_pool: MakePool, connect: Connect, tmp_path: Path
) -> None:
    """The daemon's own error takes the place of the worker's done."""
    workers = await make_pool()
    with files(tmp_path, b"abc") as (source, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        peer.start(source, sink)
        await stream.outcome()
        await stream.acknowledge(AuditUnavailableError("the audit trail is full"))
        report = await peer.report()

    assert report is not None
    assert report.error is not None
    assert isinstance(report.error.error(), AuditUnavailableError)
    assert report.error.error().retryable


async def test_progress_is_reported_when_asked_for(make_pool: MakePool, connect: Connect, tmp_path: Path) -> None:
    """A client that asks hears how much was taken, with the total it named."""
    workers = await make_pool()
    reading, feeding = os.pipe()
    with files(tmp_path, b"") as (_, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        peer.start(reading, sink, conversation.encode(Start(progress=True, size=10)))
        reports = []
        for _ in range(2):
            os.write(feeding, b"12345")
            reports.append(await peer.report())

    os.close(feeding)
    os.close(reading)
    assert reports == [Report(progress=conversation.Progress(done, 10)) for done in (5, 10)]


@pytest.mark.parametrize("begun", [True, False], ids=["after its start", "before its start"])
async def test_a_client_that_goes_away_ends_its_file(
    make_pool: MakePool, connect: Connect, tmp_path: Path, begun: bool
) -> None:
    """A worker waiting for input notices the hang-up, reports it, and frees its place."""
    workers = await make_pool()
    reading, feeding = os.pipe()
    with files(tmp_path, b"") as (_, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        if begun:
            peer.start(reading, sink)
            os.write(feeding, b"some")
        peer.socket.close()
        outcome = await stream.outcome()
        await stream.acknowledge()
        await settled(lambda: workers.busy == 0)

    os.close(feeding)
    os.close(reading)
    assert isinstance(outcome.error, FileAccessError)
    assert "client went away" in outcome.error.message
    assert (tmp_path / "sink").read_bytes() == b""


@pytest.mark.parametrize(
    ("datagram", "descriptors"),
    [
        (b"\x81\xa2op\xa4stop", 2),
        (b"\x82\xa2op\xa5start\xa5other\x01", 2),
        (b"nonsense", 2),
        (bytes(5000), 2),
        (conversation.encode(Start()), 0),
        (conversation.encode(Start()), 1),
        (conversation.encode(Start()), 3),
    ],
)
async def test_a_client_that_says_something_else_is_refused(
    make_pool: MakePool, connect: Connect, datagram: bytes, descriptors: int
) -> None:
    """Only a start with exactly two descriptors begins a file."""
    workers = await make_pool()
    stream = await workers.start(ENCRYPT, uid=UID)
    peer = connect(stream)
    null = os.open(os.devnull, os.O_RDWR)
    socket.send_fds(peer.socket, [datagram], [null] * descriptors)
    os.close(null)

    outcome = await stream.outcome()
    await stream.acknowledge()
    report = await peer.report()

    assert isinstance(outcome.error, ProtocolError)
    assert report is not None
    assert report.error is not None
    assert report.error.code == "ProtocolException"


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("stuck", ["source", "destination"])
async def test_a_file_that_stands_still_is_given_up(
    make_pool: MakePool, connect: Connect, tmp_path: Path, stuck: str, progress: bool
) -> None:
    """A pipe that nobody feeds or empties holds no worker for ever."""
    workers = await make_pool(entry=partial(run_worker, idle_seconds=0.2))
    reading, writing = os.pipe()
    with files(tmp_path, bytes(2_000_000)) as (source, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        ends = (reading, sink) if stuck == "source" else (source, writing)
        peer.start(*ends, conversation.encode(Start(progress=progress)))
        outcome = await stream.outcome()
        await stream.acknowledge()
        while (report := await peer.report()) is not None and report.error is None:
            assert report.progress is not None
        await settled(lambda: workers.busy == 0)

    os.close(reading)
    os.close(writing)
    assert isinstance(outcome.error, FileAccessError)
    assert "for 0.2 s" in outcome.error.message
    assert report is not None


async def test_a_file_that_moves_slowly_is_not_given_up(make_pool: MakePool, connect: Connect, tmp_path: Path) -> None:
    """Every byte is progress, however long the whole takes."""
    workers = await make_pool(entry=partial(run_worker, idle_seconds=0.4))
    reading, writing = os.pipe()
    with files(tmp_path, b"") as (_, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        connect(stream).start(reading, sink)
        for _ in range(6):
            os.write(writing, b".")
            await asyncio.sleep(0.1)
        os.close(writing)
        outcome = await stream.outcome()

    os.close(reading)
    assert outcome.error is None
    assert outcome.plaintext_bytes == 6


async def test_nothing_may_follow_the_start(make_pool: MakePool, connect: Connect, tmp_path: Path) -> None:
    """A second datagram ends the file."""
    workers = await make_pool()
    reading, feeding = os.pipe()
    with files(tmp_path, b"") as (_, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        peer.start(reading, sink)
        peer.socket.send(b"more")
        outcome = await stream.outcome()

    os.close(feeding)
    os.close(reading)
    assert isinstance(outcome.error, ProtocolError)


async def test_a_worker_that_dies_is_an_outcome(make_pool: MakePool, connect: Connect, tmp_path: Path) -> None:
    """SIGKILL from outside ends the file with an error, and its place is free again."""
    workers = await make_pool()
    stream = await workers.start(ENCRYPT, uid=UID)
    peer = connect(stream)
    os.kill(stream.worker.child.pid, signal.SIGKILL)

    outcome = await stream.outcome()
    await stream.acknowledge()

    assert isinstance(outcome.error, KMSInternalError)
    assert (outcome.plaintext_bytes, outcome.message_bytes) == (None, None)
    assert await peer.report() is None
    await settled(lambda: workers.busy == 0)


async def test_a_file_goes_on_when_its_worker_is_asked_to_stop(
    make_pool: MakePool, connect: Connect, tmp_path: Path
) -> None:
    """SIGTERM to all processes of the service is for the daemon, which lets files under way end."""
    workers = await make_pool()
    reading, writing = os.pipe()
    with files(tmp_path, b"") as (_, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        peer = connect(stream)
        peer.start(reading, sink, conversation.encode(Start(progress=True)))
        os.write(writing, b"some")
        assert await peer.report() is not None
        os.kill(stream.worker.child.pid, signal.SIGTERM)
        os.write(writing, b"more")
        os.close(writing)
        outcome = await stream.outcome()

    os.close(reading)
    assert (outcome.error, outcome.plaintext_bytes) == (None, 8)


async def test_a_spare_worker_that_died_is_passed_over(make_pool: MakePool, connect: Connect, tmp_path: Path) -> None:
    """The next file gets a living one."""
    workers = await make_pool(spare=2)
    for idle in workers._idle:
        os.kill(idle.child.pid, signal.SIGKILL)
        await idle.child.wait()

    with files(tmp_path, b"abc") as (source, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        connect(stream).start(source, sink)

        assert (await stream.outcome()).error is None


def sleep_forever(_descriptors: list[int]) -> None:
    signal.pause()


async def test_a_worker_that_hangs_before_its_start_is_killed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon does not wait for it longer than for a silent client."""
    monkeypatch.setattr(pool, "_START_SECONDS", 0.05)
    workers = await make_pool(entry=sleep_forever)
    stream = await workers.start(ENCRYPT, uid=UID)
    os.close(stream.client_descriptor)

    outcome = await stream.outcome()

    assert isinstance(outcome.error, KMSInternalError)
    await settled(lambda: workers.busy == 0)
    assert await stream.worker.child.wait() == -signal.SIGKILL


def talk_nonsense(descriptors: list[int]) -> None:
    with socket.socket(fileno=descriptors[0]) as daemon:
        daemon.recv(control.MAX_JOB_BYTES)
        report = control.encode(control.Outcome(1, 1, Failure("code", "?")))
        daemon.send(report.replace(b"?", b"\xff"))
        signal.pause()


async def test_a_report_that_is_no_text_is_a_worker_that_failed(make_pool: MakePool) -> None:
    """A worker that was taken over cannot upset the daemon with bytes that are no UTF-8."""
    workers = await make_pool(entry=talk_nonsense)
    stream = await workers.start(ENCRYPT, uid=UID)
    os.close(stream.client_descriptor)

    outcome = await stream.outcome()

    assert isinstance(outcome.error, KMSInternalError)
    await settled(lambda: workers.busy == 0)


def tell_the_key_at_the_end(descriptors: list[int]) -> None:
    """Once the daemon has closed the control socket, tell the client what the key page then holds."""
    with socket.socket(fileno=descriptors[0]) as daemon:
        _, (page, client), _, _ = socket.recv_fds(daemon, control.MAX_JOB_BYTES, control.JOB_DESCRIPTORS)
        view = Page.from_descriptor(page).view
        daemon.recv(1)
    time.sleep(0.1)  # the page's turn comes right after
    os.write(client, view[:32])


@pytest.mark.parametrize("closing", [True, False], ids=["when the pool closes", "when it hangs"])
async def test_no_key_is_wiped_under_a_worker_that_may_go_on(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, connect: Connect, closing: bool
) -> None:
    """One that could not be killed still has its key and not zeros, while the daemon has no more part in it."""
    monkeypatch.setattr(pool, "_START_SECONDS", 5 if closing else 0.05)
    monkeypatch.setattr(pool, "_KILL_SECONDS", 0.05)
    workers = await make_pool(entry=tell_the_key_at_the_end)
    monkeypatch.setattr(workers, "_kill", lambda _worker: asyncio.sleep(0))
    stream = await workers.start(ENCRYPT, uid=UID)
    peer = connect(stream)
    if closing:
        await workers.close()

    told = await asyncio.get_running_loop().sock_recv(peer.socket, 100)

    assert told == KEY
    with pytest.raises(ValueError, match="released"):
        bytes(stream.page.view)


async def test_the_key_of_a_worker_that_was_killed_is_wiped(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is closed and its process is gone before."""
    workers = await make_pool(entry=sleep_forever)
    stream = await workers.start(ENCRYPT, uid=UID)
    os.close(stream.client_descriptor)
    seen: list[tuple[int, bool]] = []
    wipe = stream.page.close

    def look_and_wipe() -> None:
        seen.append((stream.worker.socket.fileno(), Path(f"/proc/{stream.worker.child.pid}").exists()))
        wipe()

    monkeypatch.setattr(stream.page, "close", look_and_wipe)
    await workers.close()

    assert seen == [(-1, False)]


async def test_a_worker_that_cannot_be_killed_stays_charged(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It no longer takes a place of the pool, but its uid's until it is gone."""
    monkeypatch.setattr(pool, "_START_SECONDS", 0.05)
    monkeypatch.setattr(pool, "_KILL_SECONDS", 0.05)
    workers = await make_pool(size=4, entry=sleep_forever)
    monkeypatch.setattr(workers, "_kill", lambda _worker: asyncio.sleep(0))
    stream = await workers.start(ENCRYPT, uid=UID)
    os.close(stream.client_descriptor)
    await stream.outcome()
    await settled(lambda: workers.busy == 0)

    with pytest.raises(ThrottlingError, match="user id 1000 has 1 files"):
        await workers.start(ENCRYPT, uid=UID)

    os.kill(stream.worker.child.pid, signal.SIGKILL)
    await settled(lambda: UID not in workers._charged)


async def test_one_uid_has_a_quarter_and_all_have_no_more_than_there_is(make_pool: MakePool, connect: Connect) -> None:
    """Shares and the whole are both limits, and one that leaves makes room."""
    workers = await make_pool(size=8, spare=0)
    peers = [connect(await workers.start(ENCRYPT, uid=uid)) for uid in (1, 1, 2, 2, 3, 3, 4)]

    with pytest.raises(ThrottlingError, match="user id 1 has 2 files under way, of at most 2"):
        await workers.start(ENCRYPT, uid=1)
    last = await workers.start(ENCRYPT, uid=4)
    with pytest.raises(ThrottlingError, match="all 8 file workers are busy"):
        await workers.start(ENCRYPT, uid=5)

    connect(last).socket.close()
    await last.outcome()
    await last.acknowledge()
    await settled(lambda: workers.busy == 7)
    peers.append(connect(await workers.start(ENCRYPT, uid=5)))
    for peer in peers:
        peer.socket.close()


async def test_a_small_pool_still_gives_everyone_one(make_pool: MakePool, connect: Connect) -> None:
    """A quarter of two is at least one."""
    workers = await make_pool(size=2, spare=0)

    for uid in (1, 2):
        connect(await workers.start(ENCRYPT, uid=uid))
    with pytest.raises(ThrottlingError):
        await workers.start(ENCRYPT, uid=1)


async def test_closing_fails_what_is_under_way(make_pool: MakePool, connect: Connect) -> None:
    """Files end with an error that says why, their workers end, and no new file is taken."""
    workers = await make_pool()
    stream = await workers.start(ENCRYPT, uid=UID)
    peer = connect(stream)

    await workers.close()

    outcome = await stream.outcome()
    assert isinstance(outcome.error, ShuttingDownError)
    assert (outcome.plaintext_bytes, outcome.message_bytes) == (None, None)
    assert await peer.report() is None
    with pytest.raises(ShuttingDownError):
        await workers.start(ENCRYPT, uid=UID)


async def test_the_key_page_is_wiped_when_the_worker_has_reported(
    make_pool: MakePool, connect: Connect, tmp_path: Path
) -> None:
    """From its outcome on a file's key is nowhere."""
    workers = await make_pool()
    with files(tmp_path, b"abc") as (source, sink):
        stream = await workers.start(ENCRYPT, uid=UID)
        before = bytes(stream.page.view[:32])
        connect(stream).start(source, sink)
        await stream.outcome()
        await asyncio.sleep(0.01)

    assert before == KEY
    assert stream.page.fd == -1
    with pytest.raises(ValueError, match="released"):
        bytes(stream.page.view)


async def test_without_a_zygote_there_are_no_files(make_pool: MakePool) -> None:
    """That no process can be made is told, and charged to nobody."""
    workers = await make_pool(spare=0)
    await workers._zygote.close()

    for _ in range(10):
        with pytest.raises(KMSInternalError, match="no file worker can be made"):
            await workers.start(ENCRYPT, uid=UID)
    assert workers.busy == 0
