"""A process that connects as somebody, and hands its connection to the test."""

from __future__ import annotations

import ctypes
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.raw_peer import RawPeer

Become = Callable[[], None]
# linux/prctl.h
_PR_SET_DUMPABLE = 4


class PeerProcess:
    """A child that does each of `become` and connects to `path`; it lives until `end`.

    What is asked over `peer` is asked with the child's identity, and by the test.
    """

    def __init__(self, path: Path, *become: Become) -> None:
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._ours.close()
                _connect(path, theirs, become)
            except BaseException:  # noqa: BLE001 - told by the test's end of the socket pair
                theirs.send(traceback.format_exc().encode())
            finally:
                os._exit(0)
        theirs.close()
        said, descriptors, _, _ = socket.recv_fds(self._ours, 1 << 16, 1)
        if not descriptors:
            self._ours.close()
            os.waitpid(self.pid, 0)
            raise AssertionError(said.decode())
        self.peer = RawPeer(None, connected=socket.socket(fileno=descriptors[0]))

    def encrypt(self, key: str) -> str:
        """Return "ok", or the code of the error with which encrypting ends."""
        reply = self.peer.ask("Encrypt", {"KeyId": key, "Plaintext": b"x"})
        return str(reply["error"]["code"]) if "error" in reply else "ok"

    def end(self) -> None:
        """Let the process end; its connection stays open."""
        if self.pid:
            # Other children may hold this end as well, so that closing it would tell nothing.
            self._ours.send(b"x")
            self._ours.close()
            os.waitpid(self.pid, 0)
            self.pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        self.peer.socket.close()


def _connect(path: Path, test: socket.socket, become: tuple[Become, ...]) -> None:
    for step in become:
        step()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        socket.send_fds(test, [b"x"], [sock.fileno()])
    test.recv(1)


def show_program() -> None:
    """Become dumpable, so that others may see what one runs: tests of hardening leave the whole run undumpable."""
    assert ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0


def member(cgroup: Path) -> Become:
    """Become a process of a control group."""

    def become() -> None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    return become
