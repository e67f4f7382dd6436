"""A worker writes with the daemon's identity, so it takes no descriptor through which that could be lent."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import FileAccessError
from kmsd.envelope import descriptors
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
        accepted, _ = listener.accept()
        with accepted, pytest.raises(FileAccessError, match="named"):
            Sink(accepted.fileno()).check()


def test_a_socket_without_a_peer_is_refused() -> None:
    """It says nothing yet of where it will lead."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as alone,
        pytest.raises(FileAccessError, match="the destination cannot be used: Transport endpoint is not connected"),
    ):
        Sink(alone.fileno()).check()


def test_a_tcp_connection_is_taken() -> None:
    """Its receiver learns nothing of the process that writes."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
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


def test_files_of_another_proc_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody with a namespace of their own has another file system of the kind, on another device."""
    monkeypatch.setattr(descriptors, "_proc_device", lambda: None)
    with Path("/proc/self/oom_score_adj").open("r+") as file, pytest.raises(FileAccessError, match="/proc"):
        Sink(file.fileno()).check()


def test_files_without_a_disk_are_taken() -> None:
    """Memory files count no blocks either, but are the caller's own."""
    memory = os.memfd_create("test")
    Sink(memory).check()
    os.close(memory)
