"""A file worker's inner half: stages, and the pipeline between two descriptors, run in this process."""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd.api.errors import FileAccessError, InvalidCiphertextError, KmsError, MessageFormatError
from kmsd.envelope.descriptors import Sink, Source
from kmsd.envelope.frames import MAX_FRAME_LENGTH, body_length
from kmsd.envelope.header import UNFRAMED, EncryptedDataKey, MessageHeader, make_header
from kmsd.envelope.pipeline import Pipeline
from kmsd.envelope.stages import EncryptingStage, decrypting_stage

KEY = memoryview(bytearray(32))
SMALL = 4096
BATCH = 1024 * 1024


def header_of(frame_length: int) -> MessageHeader:
    wrapped = EncryptedDataKey("aws-kms", b"arn", b"wrapped")
    return make_header(
        memoryview(bytearray(range(32))),
        message_id=bytes(32),
        encryption_context={},
        encrypted_data_keys=(wrapped,),
        frame_length=frame_length,
        into=KEY,
    )


def run(source_fd: int, sink_fd: int, header: MessageHeader, *, encrypt: bool) -> KmsError | None:
    """Run to the end in threads that are gone when this returns, provided the source ends."""
    pipeline = Pipeline()
    source, sink = Source(source_fd), Sink(sink_fd)
    stage = (
        EncryptingStage(header, header.serialize(), KEY, source) if encrypt else decrypting_stage(header, KEY, source)
    )
    pipeline.start(stage, source, sink)
    return pipeline.result()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Other tests fork, which wants a process of one thread; the kernel may see a thread that Python saw the end of."""
    yield
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - tasks, not paths
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def file_of(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("test")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    yield fd
    os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def encrypted(plaintext: bytes, header: MessageHeader) -> bytes:
    with file_of(plaintext) as source, file_of(b"") as sink:
        assert run(source, sink, header, encrypt=True) is None
        return content(sink)


def decrypted(body: bytes, header: MessageHeader) -> tuple[bytes, KmsError | None]:
    with file_of(body) as source, file_of(b"") as sink:
        error = run(source, sink, header, encrypt=False)
        return content(sink), error


sizes = st.builds(
    lambda frames, frame_length, extra: (max(0, frames * frame_length + extra), frame_length),
    st.integers(0, 5),
    st.sampled_from([1, 100, SMALL]),
    st.integers(-1, 1),
) | st.tuples(st.sampled_from([BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 2 * BATCH + 5]), st.sampled_from([70000, BATCH]))


@given(sizes)
@settings(max_examples=40)
def test_every_size_comes_back(case: tuple[int, int]) -> None:
    """Sizes around frames and batches encrypt to the length foretold and decrypt to themselves."""
    size, frame_length = case
    header = header_of(frame_length)
    start = len(header.serialize())
    plaintext = os.urandom(size)

    message = encrypted(plaintext, header)

    assert message[:start] == header.serialize()
    assert len(message) - start == body_length(size, frame_length)
    assert decrypted(message[start:], header) == (plaintext, None)


@given(st.integers(0, 20), st.integers(1, 300), st.data())
@settings(max_examples=40)
def test_what_is_changed_is_never_written(frames: int, frame_length: int, data: st.DataObject) -> None:
    """After any change to a body, what was written is the beginning of what is authentic."""
    header = header_of(frame_length)
    plaintext = os.urandom(frames * frame_length)
    body = bytearray(encrypted(plaintext, header)[len(header.serialize()) :])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))

    written, error = decrypted(bytes(body), header)

    assert isinstance(error, (MessageFormatError, InvalidCiphertextError))
    assert plaintext.startswith(written)


def test_frames_before_a_changed_one_are_written() -> None:
    """With frames as long as a batch, exactly those before the fault are released."""
    header = header_of(BATCH)
    plaintext = os.urandom(3 * BATCH + 10)
    body = bytearray(encrypted(plaintext, header)[len(header.serialize()) :])
    body[2 * (BATCH + 32) + 500] ^= 1

    written, error = decrypted(bytes(body), header)

    assert isinstance(error, InvalidCiphertextError)
    assert written == plaintext[: 2 * BATCH]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda body: body[:-1], "truncated"),
        (lambda body: body[: 2 * (SMALL + 32)], "truncated"),
        (lambda body: body[:0], "truncated"),
        (lambda body: body + b"\0", "something follows"),
        (lambda body: body + body, "something follows"),
        (lambda body: body[SMALL + 32 :], "frame 2 stands where frame 1 belongs"),
        (lambda body: body[: SMALL + 32] + body, "frame 1 stands where frame 2 belongs"),
    ],
)
def test_bodies_that_are_not_one_whole_message_are_named(change: Callable[[bytes], bytes], says: str) -> None:
    """A cut, an addition and a shuffle are told apart in words."""
    header = header_of(SMALL)
    body = encrypted(bytes(4 * SMALL + 7), header)[len(header.serialize()) :]

    _, error = decrypted(change(body), header)

    assert isinstance(error, MessageFormatError)
    assert says in error.message


def test_frames_that_would_take_too_much_memory_are_refused() -> None:
    """A reader has to hold a whole frame, so its length is bounded."""
    with pytest.raises(MessageFormatError, match="frames above 16777216 bytes"):
        decrypting_stage(header_of(MAX_FRAME_LENGTH + 1), KEY, Source(0))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "truncated"),
        (bytes(12) + (5).to_bytes(8, "big") + bytes(20), "truncated"),
        (bytes(12) + (2**40).to_bytes(8, "big") + bytes(20), "unframed messages above"),
        (bytes(12) + (5).to_bytes(8, "big") + bytes(21), "changed"),
    ],
)
def test_an_unframed_body_is_checked_before_it_is_used(body: bytes, says: str) -> None:
    """Length and tag of an unframed message are verified, and nothing of it is written before."""
    header = MessageHeader(bytes(32), {}, (), UNFRAMED, 0, b"", b"")

    written, error = decrypted(body, header)

    assert error is not None
    assert says in error.message
    assert written == b""


def test_bytes_behind_an_unframed_message_are_refused() -> None:
    """As with frames, a message is all there is."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    aad = bytes(32) + b"AWSKMSEncryptionClient Single Block" + (1).to_bytes(4, "big") + (3).to_bytes(8, "big")
    body = bytes(12) + (3).to_bytes(8, "big") + AESGCM(KEY).encrypt(bytes(12), b"abc", aad)
    header = MessageHeader(bytes(32), {}, (), UNFRAMED, 0, b"", b"")

    assert decrypted(body, header) == (b"abc", None)
    assert isinstance(decrypted(body + b"x", header)[1], MessageFormatError)


def feed(fd: int, data: bytes, step: int) -> None:
    """Write in small pieces to a descriptor that may be non-blocking, then close it."""
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        while piece:
            try:
                piece = piece[os.write(fd, piece) :]
            except BlockingIOError:
                select.select([], [fd], [])
    os.close(fd)


def drain(fd: int, into: bytearray) -> None:
    while True:
        try:
            piece = os.read(fd, 7001)
        except BlockingIOError:
            select.select([fd], [], [])
            continue
        if not piece:
            break
        into += piece
    os.close(fd)


def pair(kind: str) -> tuple[int, int]:
    """Return descriptors to read from and to write to."""
    if kind == "socket":
        first, second = socket.socketpair()
        return first.detach(), second.detach()
    return os.pipe2(os.O_NONBLOCK if kind == "non-blocking pipe" else 0)


@pytest.mark.parametrize("encrypt", [True, False], ids=["encrypt", "decrypt"])
@pytest.mark.parametrize("kind", ["pipe", "non-blocking pipe", "socket"])
def test_pipes_and_sockets_work_with_short_reads_and_writes(kind: str, encrypt: bool) -> None:
    """What trickles in and is taken in odd pieces comes out the same as through files."""
    header = header_of(SMALL)
    plaintext = os.urandom(300_001)
    message = encrypted(plaintext, header)
    body = message[len(header.serialize()) :]
    given_in, expected = (plaintext, message) if encrypt else (body, plaintext)
    (source, feeding), (draining, sink) = pair(kind), pair(kind)
    out = bytearray()
    threads = [
        threading.Thread(target=feed, args=(feeding, given_in, 999)),
        threading.Thread(target=drain, args=(draining, out)),
    ]
    for thread in threads:
        thread.start()

    error = run(source, sink, header, encrypt=encrypt)
    os.close(sink)
    for thread in threads:
        thread.join(5)
    os.close(source)

    assert error is None
    assert bytes(out) == expected


def error_of(source: int, sink: int) -> str:
    error = run(source, sink, header_of(SMALL), encrypt=True)
    assert isinstance(error, FileAccessError)
    return error.message


def test_a_full_disk_is_named() -> None:
    """ENOSPC is reported as what it is."""
    sink = os.open("/dev/full", os.O_WRONLY)
    with file_of(bytes(3 * BATCH)) as source:
        assert error_of(source, sink) == "writing the destination failed: No space left on device"
    os.close(sink)


def test_a_reader_that_goes_away_is_named() -> None:
    """EPIPE is no death by signal, but an error that says what happened."""
    reading, sink = os.pipe()
    os.close(reading)
    with file_of(bytes(3 * BATCH)) as source:
        assert error_of(source, sink) == "writing the destination failed: its reader went away"
    os.close(sink)


@pytest.mark.parametrize(
    ("flags", "role", "says"),
    [
        (os.O_WRONLY, "source", "the source is not open for reading"),
        (os.O_PATH, "source", "the source is not open for reading"),
        (os.O_RDONLY, "sink", "the destination is not open for writing"),
    ],
)
def test_descriptors_of_the_wrong_kind_are_named(tmp_path: Path, flags: int, role: str, says: str) -> None:
    """A descriptor that cannot be used so is refused before anything is read or written."""
    (tmp_path / "file").write_bytes(b"x")
    wrong = os.open(tmp_path / "file", flags)
    with file_of(b"x") as right:
        assert error_of(*((wrong, right) if role == "source" else (right, wrong))) == says
    os.close(wrong)


def test_a_directory_is_no_source(tmp_path: Path) -> None:
    """A directory opens for reading, but is none to read."""
    directory = os.open(tmp_path, os.O_RDONLY)
    with file_of(b"") as sink:
        assert error_of(directory, sink) == "the source is a directory"
    os.close(directory)


def test_positions_of_descriptors_are_respected() -> None:
    """Reading begins where the source stands and writing where the destination stands."""
    header = header_of(SMALL)
    message = encrypted(b"body", header)
    with file_of(message + b"") as source, file_of(b"already here: ") as sink:
        os.lseek(source, len(header.serialize()), os.SEEK_SET)
        os.lseek(sink, 0, os.SEEK_END)

        assert run(source, sink, header, encrypt=False) is None
        assert content(sink) == b"already here: body"


def test_nothing_is_written_after_a_stop() -> None:
    """A stopped pipeline begins no further write, whatever it still reads."""
    source, feeding = os.pipe()
    pipeline = Pipeline()
    header = header_of(SMALL)
    reading, writing = Source(source), None
    with file_of(b"") as sink:
        writing = Sink(sink)
        pipeline.start(EncryptingStage(header, header.serialize(), KEY, reading), reading, writing)

        pipeline.stop()
        feed(feeding, b"late", 4)

        assert isinstance(pipeline.result(), KmsError)
        assert content(sink) == b""
    os.close(source)
