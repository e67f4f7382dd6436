"""Encrypting and decrypting whole files: the client's side.

1. Open source and destination; for decryption read the message's header, exactly.
2. Ask the daemon; it answers with a descriptor that leads to a file worker.
3. Send the worker both descriptors and wait until it says done, which it does only when the daemon has recorded it.
4. Only then give the destination its name.

This process never sees a key. Whatever fails, and an interruption too, leaves nothing at the destination; only what
was a pipe, a device or a descriptor from the start may have received a part, all of it authenticated.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from kmsd.api.errors import ConnectionLostError, FileAccessError
from kmsd.api.files import DECRYPT_FILE, ENCRYPT_FILE, DecryptFileRequest, EncryptFileRequest
from kmsd.api.operation import Operation, RequestT, ResponseT
from kmsd.envelope import conversation
from kmsd.envelope.conversation import Done, Start
from kmsd.envelope.frames import UNFRAMED_OVERHEAD, body_length, plaintext_length
from kmsd.envelope.header import FRAMED, MessageHeader, header_steps
from kmsd_client.destination import Destination, attempt, open_destination

Place = str | os.PathLike[str] | int
# Called with how many bytes of the source were taken, and how many it has if that is known.
ProgressFunction = Callable[[int, int | None], None]
# Frames of this size then go through a pipe at once; the most an unprivileged process may ask for (pipe(7)).
_PIPE_BYTES = 1024 * 1024
_WORKER_GONE = "the file worker went away before the file was complete"


class Caller(Protocol):
    """What of a client this needs: `kmsd_client.Client` has it."""

    def call_with_descriptors(
        self, operation: Operation[RequestT, ResponseT], request: RequestT, /
    ) -> tuple[ResponseT, list[int]]:
        """Return the daemon's answer and the descriptors that came with it, which the caller closes."""


@dataclass(frozen=True)
class FileResult:
    """What was done: under which key (ARN), with which encryption context; lengths in bytes."""

    key_id: str
    encryption_context: Mapping[str, str]
    plaintext_bytes: int
    message_bytes: int


def encrypt_file(
    client: Caller,
    source: Place,
    destination: Place,
    *,
    key_id: str,
    encryption_context: Mapping[str, str] | None = None,
    force: bool = False,
    progress: ProgressFunction | None = None,
    sync: bool = True,
) -> FileResult:
    """Encrypt `source` under `key_id` into `destination`, each a path or an open descriptor.

    A destination path must not exist unless `force` is given, and appears only when it is complete, with the source's
    mode (less what the umask takes) and time of modification. `sync=False` does not wait for the disk. `progress` is
    called about ten times a second. Raises `KmsError`s: those of the operation EncryptFile, AlreadyExistsError,
    FileAccessError, and ConnectionLostError when the worker is gone.
    """
    context = dict(encryption_context or {})
    with _opened(source) as fd:
        status = attempt(source, os.fstat, fd)
        with open_destination(destination, source=status, force=force) as target:
            request = EncryptFileRequest(key_id=key_id, encryption_context=context)
            response, descriptors = client.call_with_descriptors(ENCRYPT_FILE, request)
            size = _remaining(fd, status)
            with _worker(descriptors) as worker:
                if size is not None:
                    target.reserve(len(response.header) + body_length(size, request.frame_length))
                done = _transfer(worker, fd, target, size, progress)
            target.finish(done.message_bytes, status, sync=sync)
    return FileResult(response.key_id, context, done.plaintext_bytes, done.message_bytes)


def decrypt_file(
    client: Caller,
    source: Place,
    destination: Place,
    *,
    key_id: str | None = None,
    encryption_context: Mapping[str, str] | None = None,
    force: bool = False,
    progress: ProgressFunction | None = None,
    sync: bool = True,
) -> FileResult:
    """Decrypt the message in `source` into `destination`, each a path or an open descriptor.

    A given `key_id` must be the message's key, and every pair of `encryption_context` among the message's own. For the
    rest like `encrypt_file`; also raises MessageFormatError and InvalidCiphertextError, after which a destination that
    is a path does not exist, and a stream has received only what was authentic.
    """
    with _opened(source) as fd:
        status = attempt(source, os.fstat, fd)
        with open_destination(destination, source=status, force=force) as target:
            header, header_bytes = read_header(fd)
            request = DecryptFileRequest(
                header=header_bytes, key_id=key_id, encryption_context=dict(encryption_context or {})
            )
            response, descriptors = client.call_with_descriptors(DECRYPT_FILE, request)
            size = _remaining(fd, status)
            with _worker(descriptors) as worker:
                if size is not None:
                    target.reserve(_plaintext_length(header, size))
                done = _transfer(worker, fd, target, size, progress)
            target.finish(done.plaintext_bytes, status, sync=sync)
    return FileResult(response.key_id, response.encryption_context, done.plaintext_bytes, done.message_bytes)


def read_header(fd: int) -> tuple[MessageHeader, bytes]:
    """Read a message's header from `fd`, and not a byte more; return it parsed and as it is. Nothing is verified yet.

    Raises MessageFormatError and FileAccessError.
    """
    steps = header_steps()
    data = bytearray()
    wanted = next(steps)
    while True:
        piece = _read_exactly(fd, wanted)
        data += piece
        try:
            wanted = steps.send(piece)
        except StopIteration as parsed:
            return parsed.value, bytes(data)


def _read_exactly(fd: int, count: int) -> bytes:
    """Return `count` bytes, or fewer at the end of the input."""
    data = b""
    while len(data) < count:
        try:
            piece = os.read(fd, count - len(data))
        except BlockingIOError:
            select.select([fd], [], [])
            continue
        except OSError as error:
            raise FileAccessError(f"reading the source failed: {error.strerror}") from None
        if not piece:
            break
        data += piece
    return data


@contextlib.contextmanager
def _opened(source: Place) -> Iterator[int]:
    if isinstance(source, int):
        yield source
        return
    fd = attempt(source, os.open, source, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise FileAccessError(f"{os.fspath(source)}: is a directory")
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _worker(descriptors: list[int]) -> Iterator[socket.socket]:
    """Hold the one descriptor that came; leaving makes the worker stop."""
    if len(descriptors) != 1:
        for fd in descriptors:
            os.close(fd)
        raise ConnectionLostError(f"the daemon sent {len(descriptors)} descriptors instead of one")
    with socket.socket(fileno=descriptors[0]) as worker:
        yield worker


def _transfer(
    worker: socket.socket, source: int, target: Destination, size: int | None, progress: ProgressFunction | None
) -> Done:
    """Let the worker do its work; raises the error it reports."""
    for fd in (source, target.fd):
        _widen_pipe(fd)
    start = conversation.encode(Start(progress=progress is not None, size=size))
    with _worker_errors():
        socket.send_fds(worker, [start], [source, target.fd])
    while True:
        with _worker_errors():
            datagram = worker.recv(conversation.MAX_DATAGRAM_BYTES)
        if not datagram:
            raise ConnectionLostError(_WORKER_GONE)
        report = conversation.decode_report(datagram)
        if report.done is not None:
            return report.done
        if report.error is not None:
            raise report.error.error()
        if report.progress is not None and progress is not None:
            progress(report.progress.done, report.progress.total)


@contextlib.contextmanager
def _worker_errors() -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        raise ConnectionLostError(_WORKER_GONE) from None


def _remaining(fd: int, status: os.stat_result) -> int | None:
    """Return how many bytes a regular file has from its position on; None for what has no known length."""
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(fd, 0, os.SEEK_CUR))


def _plaintext_length(header: MessageHeader, body_bytes: int) -> int:
    if header.content_type == FRAMED:
        return plaintext_length(body_bytes, header.frame_length)
    return max(0, body_bytes - UNFRAMED_OVERHEAD)


def _widen_pipe(fd: int) -> None:
    """Make a pipe hold a frame; refused beyond a user's limit, and then it is only slower."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
