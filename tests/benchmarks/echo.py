"""A bare echo over a Unix socket: what the kernel and the scheduler cost alone, in the same run."""

import os
import socket
import time
from pathlib import Path


def measure_echo(path: Path, *, size: int, count: int, server_cores: set[int]) -> list[float]:
    """Return the seconds of `count` round trips of `size` bytes to an echoing process bound to `server_cores`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        child = os.fork()
        if child == 0:
            os.sched_setaffinity(0, server_cores)
            _echo(listener)
            os._exit(0)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            return _round_trips(client, bytes(size), count)
    finally:
        os.waitpid(child, 0)
        path.unlink()


def _echo(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    while data := peer.recv(65536):
        peer.sendall(data)


def _round_trips(client: socket.socket, data: bytes, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        client.sendall(data)
        received = 0
        while received < len(data):
            received += len(client.recv(65536))
        seconds.append(time.perf_counter() - began)
    return seconds
