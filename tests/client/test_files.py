"""Whole files through the client: `kmsd_client.files`, with real workers and a daemon of a few lines."""

# ruff: noqa: ASYNC240 - the loop of a test has nothing else to do while a path is looked at

import asyncio
import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ConnectionLostError,
    FileAccessError,
    InvalidCiphertextError,
    KmsError,
    MessageFormatError,
)
from kmsd.api.files import DecryptFileRequest, DecryptFileResponse, EncryptFileRequest, EncryptFileResponse
from kmsd.envelope.control import WORKER_ENTRY
from kmsd.envelope.header import EncryptedDataKey, make_header, open_header, parse_header
from kmsd.envelope.pool import Direction, FileJob, WorkerPool
from kmsd.envelope.worker import run_worker
from kmsd.processes.zygote import Zygote
from kmsd_client import destination as destinations
from kmsd_client.files import FileResult, decrypt_file, encrypt_file, read_header

ARN = "arn:aws:kms:local:111122223333:key/1"
CONTEXT = {"purpose": "test"}


class TinyDaemon:
    """What EncryptFile and DecryptFile do, with the data key in the clear inside its wrapping."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusal: KmsError | None = None
        self.at_end: KmsError | None = None
        self.before_answering: Callable[[], object] = lambda: None

    def call_with_descriptors(self, _operation: Any, request: Any, /) -> tuple[Any, list[int]]:
        """Called in another thread, as a program's client would."""
        if self.refusal is not None:
            raise self.refusal
        answer = asyncio.run_coroutine_threadsafe(self._serve(request), self._loop).result()
        self.before_answering()
        return answer

    async def _serve(self, request: EncryptFileRequest | DecryptFileRequest) -> tuple[Any, list[int]]:
        key = memoryview(bytearray(32))
        if isinstance(request, EncryptFileRequest):
            data_key = os.urandom(32)
            header = make_header(
                memoryview(bytearray(data_key)),
                message_id=os.urandom(32),
                encryption_context=request.encryption_context,
                encrypted_data_keys=(EncryptedDataKey("aws-kms", ARN.encode(), data_key),),
                frame_length=request.frame_length,
                into=key,
            ).serialize()
            job = FileJob(Direction.ENCRYPT, header, key)
            response: Any = EncryptFileResponse(key_id=ARN, header=header)
        else:
            parsed = parse_header(request.header).header
            open_header(parsed, memoryview(bytearray(parsed.encrypted_data_keys[0].ciphertext)), into=key)
            job = FileJob(Direction.DECRYPT, request.header, key)
            response = DecryptFileResponse(key_id=ARN, encryption_context=dict(parsed.encryption_context))
        stream = await self._pool.start(job, uid=0)
        self._tasks.add(asyncio.ensure_future(self._follow(stream)))
        return response, [stream.client_descriptor]

    async def _follow(self, stream: Any) -> None:
        await stream.outcome()
        await stream.acknowledge(self.at_end)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Zygotes want a process of one thread, and the kernel may see one for a moment after Python has joined it."""
    yield
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:  # noqa: PTH208 - tasks, not paths
        time.sleep(0.001)


@pytest.fixture
async def daemon() -> AsyncIterator[TinyDaemon]:
    zygote = Zygote.start({WORKER_ENTRY: run_worker})
    # A quarter of the places is this uid's: four, as a worker may end a moment after its client was told.
    pool = WorkerPool(zygote, size=16, per_uid=4, spare=0)
    yield TinyDaemon(pool)
    await pool.close()
    await zygote.close()


async def encrypt(daemon: TinyDaemon, source: Any, destination: Any, **options: Any) -> FileResult:
    arguments = {"key_id": "alias/x", "encryption_context": CONTEXT, **options}
    return await asyncio.to_thread(encrypt_file, daemon, source, destination, **arguments)


async def decrypt(daemon: TinyDaemon, source: Any, destination: Any, **options: Any) -> FileResult:
    return await asyncio.to_thread(decrypt_file, daemon, source, destination, **options)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(os.urandom(3_000_001))
    path.chmod(0o640)
    os.utime(path, ns=(1_600_000_000_123456789, 1_500_000_000_987654321))
    return path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def without_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no such flag here")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)


@pytest.fixture(params=["unnamed", "hidden"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making a file that is not there yet."""
    if request.param == "hidden":
        without_unnamed_files(monkeypatch)
    return str(request.param)


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 2_500_000])
async def test_a_file_goes_there_and_back(daemon: TinyDaemon, tmp_path: Path, size: int, way: str) -> None:
    """Content, lengths and context come back, and nothing else is left in the folder."""
    plaintext = os.urandom(size)
    (tmp_path / "plain").write_bytes(plaintext)

    first = await encrypt(daemon, tmp_path / "plain", tmp_path / "message")
    second = await decrypt(daemon, str(tmp_path / "message"), str(tmp_path / "back"))

    assert (tmp_path / "back").read_bytes() == plaintext
    assert first == second == FileResult(ARN, CONTEXT, size, (tmp_path / "message").stat().st_size)
    assert names(tmp_path) == {"plain", "message", "back"}


async def test_the_umask_takes_permissions(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """A message may come with any mode, from anywhere; who may read the plaintext is for its owner's umask to say."""
    await encrypt(daemon, plain, tmp_path / "message")
    (tmp_path / "message").chmod(0o664)
    before = os.umask(0o077)
    try:
        await decrypt(daemon, tmp_path / "message", tmp_path / "back")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o600


async def test_mode_and_time_are_kept(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """Both directions give the result the permissions and the time of modification of the source."""
    plain.chmod(0o4640)
    await encrypt(daemon, plain, tmp_path / "message")
    await decrypt(daemon, tmp_path / "message", tmp_path / "back")

    for path in (tmp_path / "message", tmp_path / "back"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert path.stat().st_mtime_ns == plain.stat().st_mtime_ns


async def test_what_exists_is_not_touched(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """Without force an existing destination is refused, before the daemon is asked."""
    (tmp_path / "message").write_bytes(b"precious")
    daemon.refusal = AccessDeniedError("was asked")

    with pytest.raises(AlreadyExistsError, match="message exists"):
        await encrypt(daemon, plain, tmp_path / "message")
    assert (tmp_path / "message").read_bytes() == b"precious"


async def test_what_appears_meanwhile_is_not_touched(daemon: TinyDaemon, plain: Path, tmp_path: Path, way: str) -> None:
    """A file that somebody else makes while ours is written stays theirs."""
    daemon.before_answering = lambda: (tmp_path / "message").write_bytes(b"theirs")

    with pytest.raises(AlreadyExistsError):
        await encrypt(daemon, plain, tmp_path / "message")
    assert (tmp_path / "message").read_bytes() == b"theirs"
    assert names(tmp_path) == {"plain", "message"}


async def test_force_replaces_at_once_and_whole(daemon: TinyDaemon, plain: Path, tmp_path: Path, way: str) -> None:
    """The old file stays until the new one takes its name; its other links keep the old content."""
    message, link = tmp_path / "message", tmp_path / "link"
    message.write_bytes(b"old")
    link.hardlink_to(message)

    await encrypt(daemon, plain, message, force=True)
    await decrypt(daemon, message, tmp_path / "back")

    assert link.read_bytes() == b"old"
    assert (tmp_path / "back").read_bytes() == plain.read_bytes()
    assert names(tmp_path) == {"plain", "message", "link", "back"}


async def damaged(daemon: TinyDaemon, plain: Path, where: int) -> Path:
    message = plain.with_name("message")
    await encrypt(daemon, plain, message)
    data = bytearray(message.read_bytes())
    data[where] ^= 1
    message.write_bytes(data)
    return message


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("where", [60, 5000, 2_500_000, -1])
async def test_a_changed_message_leaves_nothing(
    daemon: TinyDaemon, plain: Path, tmp_path: Path, where: int, force: bool, way: str
) -> None:
    """Whatever was changed, no part of the plaintext appears, and an old file stays."""
    message = await damaged(daemon, plain, where)
    if force:
        (tmp_path / "back").write_bytes(b"old")

    with pytest.raises((InvalidCiphertextError, MessageFormatError)):
        await decrypt(daemon, message, tmp_path / "back", force=force)

    assert names(tmp_path) == {"plain", "message"} | ({"back"} if force else set())
    if force:
        assert (tmp_path / "back").read_bytes() == b"old"


async def test_a_refusal_leaves_nothing(daemon: TinyDaemon, plain: Path, tmp_path: Path, way: str) -> None:
    """The daemon's error is the error, and there is no file."""
    daemon.refusal = AccessDeniedError("no")

    with pytest.raises(AccessDeniedError, match="no"):
        await encrypt(daemon, plain, tmp_path / "message")
    assert names(tmp_path) == {"plain"}


async def test_without_its_audit_record_there_is_no_file(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """The file is complete, but the daemon could not record it."""
    daemon.at_end = AccessDeniedError("not recorded")

    with pytest.raises(AccessDeniedError, match="not recorded"):
        await encrypt(daemon, plain, tmp_path / "message")
    assert names(tmp_path) == {"plain"}


async def test_an_interruption_leaves_nothing(daemon: TinyDaemon, plain: Path, tmp_path: Path, way: str) -> None:
    """SIGINT in the middle (here from the progress display) removes what there was, and the worker ends."""
    reading, feeding = os.pipe()
    os.write(feeding, b"some")

    def interrupt(_done: int, _total: int | None) -> None:
        raise KeyboardInterrupt

    def run() -> bool:
        try:
            encrypt_file(daemon, reading, tmp_path / "message", key_id="x", progress=interrupt)
        except KeyboardInterrupt:
            return True
        return False

    assert await asyncio.to_thread(run)
    assert names(tmp_path) == {"plain"}
    async with asyncio.timeout(5):
        while daemon._pool.busy:  # noqa: ASYNC110 - what is waited for is a process's end
            await asyncio.sleep(0.005)
    os.close(feeding)
    os.close(reading)


async def test_a_worker_that_dies_leaves_nothing(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """The client hears the socket close."""
    reading, feeding = os.pipe()
    task = asyncio.ensure_future(encrypt(daemon, reading, tmp_path / "message"))
    async with asyncio.timeout(5):
        while not daemon._pool._streams:  # noqa: ASYNC110 - what is waited for is the other thread
            await asyncio.sleep(0.005)
    (stream,) = daemon._pool._streams
    os.kill(stream.worker.child.pid, 9)

    with pytest.raises(ConnectionLostError, match="worker went away"):
        await task
    assert names(tmp_path) == {"plain"}
    os.close(feeding)
    os.close(reading)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"hello", "not an encrypted message"), (b"\x02\x04\x78" + bytes(20), "truncated")],
)
async def test_what_is_no_message_is_named(daemon: TinyDaemon, tmp_path: Path, content: bytes, says: str) -> None:
    """The daemon need not be asked to see that a file is no message."""
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(MessageFormatError, match=says):
        await decrypt(daemon, tmp_path / "file", tmp_path / "out")
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "out: is a directory"),
        (lambda path: path.symlink_to("plain"), "same file"),
        (lambda path: path.symlink_to("other"), "out: is a symbolic link; name the file"),
        (lambda path: path.symlink_to("nowhere"), "out: is a symbolic link to nothing"),
        (lambda path: path.hardlink_to(path.with_name("plain")), "same file"),
        (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), "out: is not a file"),
    ],
)
async def test_destinations_that_are_none_are_named(
    daemon: TinyDaemon, plain: Path, tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    """Even force replaces nothing but a regular file that was named itself."""
    (tmp_path / "other").write_bytes(b"other")
    make(tmp_path / "out")

    with pytest.raises(FileAccessError, match=says):
        await encrypt(daemon, plain, tmp_path / "out", force=True)
    assert (tmp_path / "other").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        ("missing", "out", "missing: no such file or directory"),
        (".", "out", "is a directory"),
        ("plain", "plain", "same file"),
        ("plain", "missing/out", "missing/out: no such file or directory"),
        ("plain", "plain/out", "plain/out: not a directory"),
        ("plain", "./", "is a directory"),
        ("plain", "..", "is a directory"),
        ("plain", "n" * 300, "file name too long"),
    ],
)
async def test_paths_that_cannot_be_are_named(
    daemon: TinyDaemon, plain: Path, tmp_path: Path, source: str, destination: str, says: str
) -> None:
    """Errors name the path and the system's reason."""
    with pytest.raises(FileAccessError, match=says):
        await encrypt(daemon, tmp_path / source, f"{tmp_path}/{destination}")
    assert names(tmp_path) == {"plain"}


async def test_pipes_go_through_and_are_read_to_the_header_only(daemon: TinyDaemon, plain: Path) -> None:
    """File to pipe, pipe to pipe, pipe to program: no byte is lost between header and worker."""
    plaintext = plain.read_bytes()
    (middle_out, middle_in), (last_out, last_in) = os.pipe(), os.pipe()
    received = bytearray()

    def collect() -> None:
        with open(last_out, "rb") as pipe:  # noqa: PTH123 - a descriptor has no path
            received.extend(pipe.read())

    collector = threading.Thread(target=collect)
    collector.start()

    async def first() -> None:
        await encrypt(daemon, plain, middle_in)
        os.close(middle_in)

    async def second() -> None:
        await decrypt(daemon, middle_out, last_in)
        os.close(last_in)

    await asyncio.gather(first(), second())
    collector.join(5)
    os.close(middle_out)

    assert bytes(received) == plaintext


async def test_named_pipes_and_devices_are_written_to(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """They exist, but there is nothing in them to overwrite."""
    os.mkfifo(tmp_path / "fifo")

    await asyncio.gather(
        encrypt(daemon, plain, tmp_path / "fifo"), decrypt(daemon, tmp_path / "fifo", tmp_path / "back")
    )
    await encrypt(daemon, plain, "/dev/null")

    assert (tmp_path / "back").read_bytes() == plain.read_bytes()
    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o600
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize(
    ("put", "content"),
    [
        (lambda path: path.write_bytes(b"precious"), b"precious"),
        (os.mkfifo, b""),
        (lambda path: path.symlink_to("/dev/null"), b""),
    ],
    ids=["a file", "another pipe", "a link to a device"],
)
async def test_what_takes_a_pipes_place_is_refused_and_not_touched(
    daemon: TinyDaemon,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    put: Callable[[Path], object],
    content: bytes,
) -> None:
    """Between looking at a pipe and opening it, somebody can put something else under its name."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    real, readers = os.open, []

    def exchange_and_open(name: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if name == path:
            path.rename(tmp_path / "old")
            put(path)
            readers.append(real(path, os.O_RDONLY | os.O_NONBLOCK))
        return real(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", exchange_and_open)
    with pytest.raises(FileAccessError, match="was exchanged while it was opened"):
        await encrypt(daemon, plain, path)
    monkeypatch.undo()

    assert os.read(readers[0], 100) == content
    os.close(readers[0])


async def test_a_full_device_is_named(daemon: TinyDaemon, plain: Path) -> None:
    """The worker's error reaches the caller."""
    with pytest.raises(FileAccessError, match="No space left on device"):
        await encrypt(daemon, plain, "/dev/full")


async def test_a_full_disk_is_told_before_the_work(
    daemon: TinyDaemon, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space is reserved first, so a disk that is too small is known at once."""

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(FileAccessError, match="message: no space left on device"):
        await encrypt(daemon, plain, tmp_path / "message")
    assert names(tmp_path) == {"plain"}


async def test_file_systems_without_reservation_work(
    daemon: TinyDaemon, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reserving is only a help."""

    def unsupported(*_args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "unsupported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)

    await encrypt(daemon, plain, tmp_path / "message")
    await decrypt(daemon, tmp_path / "message", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == plain.read_bytes()


async def test_descriptors_are_used_from_where_they_stand(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """As with a shell's redirections; the descriptors stay the caller's."""
    with plain.open("rb") as source, (tmp_path / "message").open("wb") as sink:
        os.lseek(source.fileno(), 1000, os.SEEK_SET)
        await encrypt(daemon, source.fileno(), sink.fileno())
    with (tmp_path / "message").open("rb") as source, pytest.raises(FileAccessError, match="same file"):
        await encrypt(daemon, source.fileno(), source.fileno())
    await decrypt(daemon, tmp_path / "message", tmp_path / "back")

    assert (tmp_path / "back").read_bytes() == plain.read_bytes()[1000:]


async def test_a_file_that_shrinks_or_grows_is_still_a_whole_message(
    daemon: TinyDaemon, plain: Path, tmp_path: Path
) -> None:
    """What was reserved for the old length is given back."""
    daemon.before_answering = lambda: os.truncate(plain, 100)

    await encrypt(daemon, plain, tmp_path / "message")
    daemon.before_answering = lambda: None
    result = await decrypt(daemon, tmp_path / "message", tmp_path / "back")

    assert result.plaintext_bytes == 100
    assert (tmp_path / "message").stat().st_size == result.message_bytes
    assert (tmp_path / "back").read_bytes() == plain.read_bytes()


async def test_a_header_can_be_read_by_itself(daemon: TinyDaemon, plain: Path, tmp_path: Path) -> None:
    """Inspection needs no daemon."""
    await encrypt(daemon, plain, tmp_path / "message")
    with (tmp_path / "message").open("rb", buffering=0) as message:
        header, data = read_header(message.fileno())
        position = message.tell()

    assert header.encryption_context == CONTEXT
    assert header.serialize() == data
    assert position == len(data)


def test_an_answer_without_its_descriptor_is_refused(plain: Path, tmp_path: Path) -> None:
    """A daemon that answers nonsense is told apart from a worker that fails."""

    class Broken:
        def call_with_descriptors(self, _operation: Any, _request: Any, /) -> tuple[Any, list[int]]:
            return EncryptFileResponse(key_id=ARN, header=b""), [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConnectionLostError, match="2 descriptors instead of one"):
        encrypt_file(Broken(), plain, tmp_path / "message", key_id="x")

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_unfinished_file_has_no_name(tmp_path: Path) -> None:
    """While it is written there is nothing to see, so a killed process leaves nothing."""
    path = tmp_path / "file"
    with destinations.NewFile(path, force=False) as new:
        os.write(new.fd, b"part")
        assert names(tmp_path) == set()
    assert names(tmp_path) == set()
    with contextlib.suppress(OSError):
        os.fstat(new.fd)
        pytest.fail("its descriptor is still open")
