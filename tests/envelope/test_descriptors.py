"""A worker writes with the daemon's identity, so it takes no descriptor through which that could be lent."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import FileAccessError
from kmsd.envelope.descriptors import Sink, Source


@pytest.fixture
def listener(short_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(short_path / "named"))
        server.listen()
        yield server


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_message_sockets_are_refused(kind: socket.SocketKind) -> None:
    """Their receivers may take the sender's credentials for the caller's."""
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near, far:
        with pytest.raises(FileAccessError, match="no stream"):
            Sink(near.fileno()).check()
        with pytest.raises(FileAccessError, match="no stream"):
            Source(near.fileno()).check()


def test_a_stream_to_a_named_socket_is_refused(listener: socket.socket) -> None:
    """Who listens under a name may look at who writes, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(listener.getsockname())

        with pytest.raises(FileAccessError, match="named"):
            Sink(client.fileno()).check()


def test_a_socketpair_and_a_pipe_are_taken() -> None:
    """Both ends are the caller's own."""
    near, far = socket.socketpair()
    reader, writer = os.pipe()
    with near, far:
        Sink(near.fileno()).check()
        Source(far.fileno()).check()
        Sink(writer).check()
        Source(reader).check()
        Sink(near.fileno()).write(memoryview(b"still open"))

        assert far.recv(32) == b"still open"
    os.close(reader)
    os.close(writer)


def test_files_of_proc_are_refused() -> None:
    """There a write is judged by who writes, not by who opened."""
    with Path("/proc/self/oom_score_adj").open("r+") as file:
        with pytest.raises(FileAccessError, match="/proc"):
            Sink(file.fileno()).check()
        with pytest.raises(FileAccessError, match="/proc"):
            Source(file.fileno()).check()
