"""A host with one service: its disk, its clocks, and the process that is killed, stopped and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kmsd.api.operation import Operation
from kmsd.wire.codec import ParamsDecoder
from tests.life.clock import Times
from tests.life.daemon import STATUS_BYTES, Kill
from tests.support.assembled import FOLDERS
from tests.support.embedded import request_frame
from tests.support.faulty_disk import Act

ROOT = Path(__file__).parent.parent.parent
# A kill says nothing of what a disk keeps, so the files may lie in memory, where a sync takes no time.
MEMORY = Path("/dev/shm")

NO_KILL = Kill(0, Act.KILL_BEFORE)


class KilledError(Exception):
    """The service was killed, as it was planned, before it had answered."""


class Answer(NamedTuple):
    """The code of the error, or the response; and the key with which a file was begun."""

    error: str
    response: Any
    message_key: bytes


class Asked(NamedTuple):
    """A request."""

    operation: Operation[Any, Any]
    request: msgspec.Struct


class Forge:
    """The process that forks a child for each start of a service; `shim` is the library of `faulty_disk.c`."""

    def __init__(self, shim: Path) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.life.daemon", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "LD_PRELOAD": str(shim)},
                pass_fds=[theirs.fileno()],
            )

    def fork(self, directory: Path) -> tuple[Connection[Any, Any], int]:
        """Return the pipe to a new child, and its process id."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [os.fsencode(directory)], [theirs.fileno()])
        return Connection(ours.detach()), self._read()

    def wait(self) -> int:
        """Return how the child ended, as waitpid tells it."""
        return self._read()

    def _read(self) -> int:
        data = self._control.recv(STATUS_BYTES)
        assert len(data) == STATUS_BYTES, "the process that forks is gone"
        return int.from_bytes(data, "big")

    def close(self) -> None:
        self._control.close()
        self._process.wait()


class Host:
    """A host on which the service runs from `start` on; a kill that is planned counts from what is done next."""

    def __init__(self, forge: Forge, times: Times) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kmsd-", dir=MEMORY if MEMORY.is_dir() else None))
        self.times = times
        self.planned: Kill | None = None
        self._is_doomed = False
        self.starts = 0
        self._forge = forge
        for folder in FOLDERS:
            (self.directory / folder).mkdir()
        self._connection: Connection[Any, Any] | None = None
        self._pid = 0

    def start(self) -> None:
        """Start the service and unseal it; raises KilledError, as all do but `kill`."""
        self._is_doomed = False
        self.starts += 1
        self._connection, self._pid = self._forge.fork(self.directory)
        self._do("start", self.times)

    def ask(self, operation: Operation[Any, Any], request: msgspec.Struct) -> Answer:
        """Ask for one thing."""
        return self.ask_all([Asked(operation, request)])[0]

    def ask_all(self, asked: Sequence[Asked]) -> list[Answer]:
        """Ask for one thing after the other."""
        answers = self._do("ask", [bytes(request_frame(*one)) for one in asked])
        return [
            Answer(error, None if error else ParamsDecoder(one.operation.response).decode(memoryview(result)), key)
            for one, (error, result, key) in zip(asked, answers, strict=True)
        ]

    def pass_time(self, times: Times) -> None:
        """Have the clocks tell this."""
        self.times = times
        self._do("pass_time", times)

    def unseal(self) -> None:
        """Bring the keys back, as an administrator does."""
        self._do("unseal")

    def stop(self) -> None:
        """Have the service end well, as on SIGTERM."""
        self._do("stop")
        assert self._ended() == 0

    def kill(self) -> None:
        """Kill it at once."""
        with contextlib.suppress(ProcessLookupError):  # it fell a moment before, behind its last answer
            os.kill(self._pid, signal.SIGKILL)
        assert self._ended() == signal.SIGKILL

    def close(self) -> None:
        """Leave nothing."""
        if self._connection is not None:
            self.kill()
        shutil.rmtree(self.directory)

    def _do(self, name: str, *parts: Any) -> Any:
        assert self._connection is not None
        kill, self.planned = self.planned, None
        # What was planned before may come until it knows of the new plan: a file's end is synced behind the answer.
        was_doomed = self._is_doomed
        self._is_doomed = was_doomed if kill is None else kill.at > 0
        try:
            self._connection.send((name, kill, *parts))
            failures, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            status = self._ended()
            assert status == (signal.SIGKILL if was_doomed or self._is_doomed else None), (
                f"it ended by itself, with status {status}"
            )
            raise KilledError from None
        assert not failures, "\n".join(failures)
        return answer

    def _ended(self) -> int:
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        return self._forge.wait()
