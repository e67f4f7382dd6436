"""Requests in a row, and many at once."""

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.wire.codec import ReplyDecoder, append_request
from kmsd.wire.framing import FrameBuffer
from kmsd_client import Client
from tests.benchmarks.daemon import SCRIPTS, Daemon, pinned
from tests.benchmarks.echo import measure_echo
from tests.benchmarks.report import Better, Row, median

# DESIGN 14.
PLAINTEXT = bytes(64)
DEPTH_ONE_PER_SECOND = 15_000
DEPTH_ONE_MICROSECONDS = 65
ECHO_ALLOWANCE_MICROSECONDS = 80
CONNECTIONS = 8
PIPELINED = 16
PIPELINED_PER_SECOND = 35_000
PIPELINED_BESIDE_FILES_PER_SECOND = 25_000

# About the length of an Encrypt request's frame: what the echo sends to and fro.
ECHO_BYTES = 200
WARM_UP = 500


def depth_one(daemon: Daemon, *, count: int, client_core: int) -> tuple[list[float], list[float]]:
    """Return the seconds of `count` Encrypts and as many Decrypts, one after the other, from the library's client."""
    encrypted, decrypted = [], []
    with pinned({client_core}), Client(str(daemon.socket)) as client:
        encrypt = EncryptRequest(key_id=daemon.key, plaintext=memoryview(PLAINTEXT))
        decrypt = DecryptRequest(ciphertext_blob=client.call(ENCRYPT, encrypt).ciphertext_blob)
        for turn in range(-WARM_UP, count):
            began = time.perf_counter()
            client.call(ENCRYPT, encrypt)
            between = time.perf_counter()
            client.call(DECRYPT, decrypt)
            ended = time.perf_counter()
            if turn >= 0:
                encrypted.append(between - began)
                decrypted.append(ended - between)
    return encrypted, decrypted


def depth_one_rows(daemon: Daemon, cores: list[int], *, count: int, folder: Path) -> list[Row]:
    """Measure depth 1 on one core, then across cores beside a bare echo."""
    rows = []
    daemon.pin({cores[0]})
    for name, seconds in zip(("Encrypt", "Decrypt"), depth_one(daemon, count=count, client_core=cores[0]), strict=True):
        what = f"{name}, depth 1, one core"
        rows += [
            Row(what, count / sum(seconds), "/s", DEPTH_ONE_PER_SECOND),
            Row(f"{what}, p50", median(seconds) * 1e6, "us", DEPTH_ONE_MICROSECONDS, Better.LOWER),
        ]
    if len(cores) > 1:
        with pinned({cores[1]}):
            echo = measure_echo(folder / "echo.sock", size=ECHO_BYTES, count=count, server_cores={cores[0]})
        across, _ = depth_one(daemon, count=count, client_core=cores[1])
        bare = median(echo) * 1e6
        rows += [
            Row("bare echo, across cores, p50", bare, "us"),
            Row("Encrypt, depth 1, across cores", count / sum(across), "/s"),
            Row(
                "Encrypt, depth 1, across cores, p50",
                median(across) * 1e6,
                "us",
                bare + ECHO_ALLOWANCE_MICROSECONDS,
                Better.LOWER,
            ),
        ]
    return rows


class _Connection:
    """One pipelining connection: each reply sends its request again."""

    def __init__(self, daemon: Daemon) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(daemon.socket))
        self._buffer = FrameBuffer(65536)
        self._decoder = ReplyDecoder()
        self._frames: dict[int, bytes] = {}
        request = EncryptRequest(key_id=daemon.key, plaintext=memoryview(PLAINTEXT))
        for identifier in range(1, PIPELINED + 1):
            frame = bytearray()
            append_request(frame, identifier, ENCRYPT.name, request)
            self._frames[identifier] = bytes(frame)

    def begin(self) -> None:
        """Fill the pipeline."""
        self.socket.sendall(b"".join(self._frames.values()))

    def turn(self) -> int:
        """Read what is there, send as many requests again, and return how many were answered."""
        self._buffer.received(self.socket.recv_into(self._buffer.space()))
        replies = [self._decoder.decode(frame) for frame in self._buffer.frames(PIPELINED)]
        for reply in replies:
            if reply.error is not None:
                raise reply.error
        self.socket.sendall(b"".join([self._frames[reply.id] for reply in replies]))
        return len(replies)


def pipelined(daemon: Daemon, *, seconds: float, client_core: int) -> float:
    """Return the Encrypts a second of CONNECTIONS connections that each keep PIPELINED requests under way."""
    with contextlib.ExitStack() as stack, select.epoll() as epoll:
        stack.enter_context(pinned({client_core}))
        connections = {}
        for _ in range(CONNECTIONS):
            connection = _Connection(daemon)
            stack.enter_context(connection.socket)
            connections[connection.socket.fileno()] = connection
            epoll.register(connection.socket, select.EPOLLIN)
            connection.begin()
        answered = 0
        warm = time.perf_counter() + seconds / 5
        while time.perf_counter() < warm:
            for descriptor, _ in epoll.poll():
                connections[descriptor].turn()
        began = now = time.perf_counter()
        while now < began + seconds:
            for descriptor, _ in epoll.poll():
                answered += connections[descriptor].turn()
            now = time.perf_counter()
        return answered / (now - began)


@contextlib.contextmanager
def file_streams(daemon: Daemon, source: Path, count: int) -> Iterator[None]:
    """Keep `count` file workers busy, encrypting `source` to nowhere again and again."""
    command = f'while {SCRIPTS}/kms encrypt -k {daemon.key} -o - "$1" >/dev/null; do :; done'
    loop = ["sh", "-c", command, "sh", str(source)]
    running = [subprocess.Popen(loop, env=daemon.environment, process_group=0) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
        for process in running:
            if process.poll() is not None:
                raise SystemExit("bench: error: a file stream ended early")
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait()


def pipelined_rows(daemon: Daemon, cores: list[int], *, seconds: float, source: Path, streams: int) -> list[Row]:
    """Measure pipelining with the daemon on one core, alone and beside busy file workers."""
    daemon.pin({cores[0]})
    what = f"Encrypt, {CONNECTIONS} connections x {PIPELINED}"
    alone = pipelined(daemon, seconds=seconds, client_core=cores[-1])
    rows = [Row(what, alone, "/s", PIPELINED_PER_SECOND)]
    if streams:
        with file_streams(daemon, source, streams):
            beside = pipelined(daemon, seconds=seconds, client_core=cores[-1])
        rows.append(Row(f"{what}, beside {streams} file streams", beside, "/s", PIPELINED_BESIDE_FILES_PER_SECOND))
    return rows
