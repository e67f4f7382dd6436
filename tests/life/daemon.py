"""The process under test: a service on the files of a host, whose clocks, kills and requests come over a pipe.

Run as a program with `faulty_disk.c` preloaded, it imports everything once, has no threads, and forks a child for each
start of the service, so that a start takes some 50 ms and a kill may fall upon any disk call. See `Host` for the other
end.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import socket
import sys
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from kmsd.api.errors import KmsError
from kmsd.config import Audit, Limits
from kmsd.envelope.pool import FileJob, FileOutcome, WorkerPool
from tests.life.clock import Times
from tests.life.model import MOST_KEYS
from tests.support.assembled import FOLDERS, Assembled, KeptRoot
from tests.support.embedded import answers_in
from tests.support.faulty_disk import Act, FaultyDisk

STATUS_BYTES = 4

# A record has some 700 bytes: a new file of the trail every 300, and a signature every 100.
_AUDIT = Audit(sync="always", rotate_bytes=200_000, checkpoint_records=100)
_LIMITS = Limits(keys_per_uid=MOST_KEYS, audit_bytes_per_second_per_uid=1 << 40, audit_burst_bytes_per_uid=1 << 40)

NEVER = Times(0, 0, "")
# Who sleeps in an unsealed service when there is nothing to do: housekeeping, and who has the token remember.
_SLEEPERS = 2


class Kill(NamedTuple):
    """A kill at the disk call of this number from now on, 0 for none."""

    at: int
    act: Act


class Sleeps:
    """Stands for `asyncio.sleep`: all who sleep are woken when the test says so."""

    def __init__(self) -> None:
        self._sleepers: list[asyncio.Future[None]] = []
        self._more = asyncio.Event()

    async def __call__(self, _seconds: float) -> None:
        sleeper = asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        self._more.set()
        await sleeper

    def wake(self) -> None:
        for one in self._sleepers:
            if not one.done():
                one.set_result(None)

    async def asleep(self, number: int) -> None:
        """Wait until so many sleep."""
        while sum(not one.done() for one in self._sleepers) < number:
            self._more.clear()
            await self._more.wait()


class Stream:
    """A file that is over as soon as it has begun."""

    def __init__(self) -> None:
        self.client_descriptor = os.open(os.devnull, os.O_RDONLY)

    async def outcome(self) -> FileOutcome:
        return FileOutcome(0, 0, None)

    async def acknowledge(self, error: KmsError | None = None) -> None:
        assert error is None


class Pool:
    """Stands for the file workers: notes the message key that each would be given."""

    def __init__(self) -> None:
        self.message_key = b""

    async def start(self, job: FileJob, *, uid: int) -> Stream:  # noqa: ARG002 - the pool's interface
        self.message_key = bytes(job.message_key)
        return Stream()

    async def close(self) -> None:
        return


class Child:
    """The service, and what of it the host may ask for: each method but `run` is a message of that name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._disk = FaultyDisk()
        self._sleeps = Sleeps()
        self._pool = Pool()
        self._times = NEVER
        # What nobody foresaw.
        self._failures: list[str] = []

    async def run(self, connection: Connection[Any, Any]) -> None:
        """Do what comes over the pipe until the service is stopped; all of it is answered."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: self._failures.append(f"{context['message']}: {context.get('exception')!r}")
        )
        threading.excepthook = lambda told: self._failures.append(f"a thread failed: {told.exc_value!r}")
        readable = asyncio.Event()
        loop.add_reader(connection.fileno(), readable.set)
        going = True
        while going:
            await readable.wait()
            name, kill, *parts = connection.recv()
            readable.clear()
            if kill is not None:
                self._disk.plan(at=kill.at, act=kill.act)
            answer = await getattr(self, name)(*parts)
            going = name != "stop"
            connection.send((self._failures, answer))

    async def start(self, times: Times) -> None:
        self._times = times
        self._disk.watch(self._directory)
        self._service = await Assembled.open(
            self._directory,
            audit=_AUDIT,
            root=KeptRoot(self._directory / "token", lambda _name, _sequence: None),
            log=cast("TextIO", self),
            limits=_LIMITS,
            clock=lambda: self._times.wall / 1000,
            uptime=lambda: self._times.uptime / 1000,
            boot_id=times.boot,
            sleep=self._sleeps,
            pool=cast("WorkerPool", self._pool),
        )
        await self._sleeps.asleep(_SLEEPERS)

    async def ask(self, frames: list[bytes]) -> list[tuple[str, bytes, bytes]]:
        """Have requests served one after the other; return for each the code of the error, the result, and the key.

        The key is a file's message key, which a worker was given.
        """
        answers = []
        for frame in frames:
            self._pool.message_key = b""
            batch = await self._service.serve(frame)
            [answer] = answers_in(batch.out)
            code = answer.error.code if answer.error else ""
            answers.append((code, answer.result or b"", self._pool.message_key))
            batch.discard()
        return answers

    async def pass_time(self, times: Times) -> None:
        """Have the clocks tell this, and what kmsd does by itself be done."""
        self._times = times
        if not self._service.sealed:
            self._sleeps.wake()
            await self._sleeps.asleep(_SLEEPERS)

    async def unseal(self) -> None:
        await self._service.unseal()
        await self._sleeps.asleep(_SLEEPERS)

    async def stop(self) -> None:
        await self._service.close()

    def write(self, text: str) -> int:
        """Take a line of the service log: an error is what nobody foresaw."""
        if '"level": "error"' in text:
            self._failures.append(text)
        return len(text)

    def flush(self) -> None:
        return


def _be_child(connection: Connection[Any, Any], directory: Path) -> None:
    status = 1
    try:
        faulthandler.enable()
        asyncio.run(Child(directory).run(connection))
        status = 0
    except BaseException:  # noqa: BLE001 - for the test to raise
        connection.send(([traceback.format_exc()], None))
    finally:
        os._exit(status)


def _warm_up() -> None:
    """Import what the first start imports, so that no other has to."""

    async def start_and_stop() -> None:
        await child.start(NEVER)
        await child.stop()

    with tempfile.TemporaryDirectory(prefix="kmsd-") as folder:
        for one in FOLDERS:
            Path(folder, one).mkdir()
        child = Child(Path(folder))
        asyncio.run(start_and_stop())
    assert threading.active_count() == 1, "a fork of this process would lack a thread"


def main() -> None:
    """Fork a child for each pipe that comes; answer with its process id, and with how it ended."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _warm_up()
        gc.freeze()
        while True:
            directory, pipes, _, _ = socket.recv_fds(control, 4096, 1)
            if not pipes:
                return
            child = os.fork()
            if child == 0:
                control.close()
                _be_child(Connection(pipes[0]), Path(os.fsdecode(directory)))
            os.close(pipes[0])
            control.sendall(child.to_bytes(STATUS_BYTES, "big"))
            _, status = os.waitpid(child, 0)
            control.sendall(status.to_bytes(STATUS_BYTES, "big"))


if __name__ == "__main__":
    main()
