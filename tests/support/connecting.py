"""Peers that are real processes: children that change who they are and then connect."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What a child runs: `become` changes who it is before it connects.
Become = Callable[[], None]


def nothing() -> None:
    pass


@contextmanager
def connection_from(listener: socket.socket, become: Become) -> Iterator[tuple[socket.socket, int]]:
    """Yield the accepted connection of a child process, and the child's pid; the child lives until the end."""
    address = listener.getsockname()
    pid = os.fork()
    if pid == 0:
        try:
            become()
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address)
                sock.recv(1)
        finally:
            os._exit(0)
    listener.settimeout(10)
    sock, _ = listener.accept()
    with sock:
        yield sock, pid
    os.waitpid(pid, 0)


def ids(uid: int, gid: int, groups: list[int]) -> Become:
    def become() -> None:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)

    return become
