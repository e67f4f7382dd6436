"""A kmsd of the benchmark's own, under a folder of its own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kmsd.api.administration import STATUS, SealState, StatusRequest, StatusResponse
from kmsd.api.errors import KmsError
from kmsd.api.keys import CREATE_KEY, CreateKeyRequest
from kmsd_client import Client

# Where the console scripts of this environment are.
SCRIPTS = Path(sys.executable).parent

# Above what one uid may ask for by default (DESIGN 13), as the benchmark is one uid.
RAISED_LIMITS = {
    "requests_per_second_per_uid": 10_000_000,
    "requests_in_flight_per_uid": 4096,
    "file_streams_per_uid": 16,
    "file_workers": 8,
    "audit_bytes_per_second_per_uid": 1 << 40,
    "audit_burst_bytes_per_uid": 1 << 50,
}

# A start that takes longer than this has failed (DESIGN 14 allows 0.8 s, making a token a few seconds more).
START_DEADLINE_SECONDS = 60


class Daemon:
    """A running `kmsd dev FOLDER`, with raised limits and `settings` (TOML); what it says goes to FOLDER.log."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.socket = folder / "kmsd.sock"
        self._log = folder.with_suffix(".log")
        self._folder = folder
        self._config = folder.with_suffix(".toml")
        limits = "".join(f"{name} = {value}\n" for name, value in RAISED_LIMITS.items())
        self._config.write_text(f"{settings}\n[limits]\n{limits}")
        self.seconds_to_ready = self._start()
        with Client(str(self.socket)) as client:
            self.key = client.call(CREATE_KEY, CreateKeyRequest()).key_metadata.arn

    def _start(self) -> float:
        began = time.perf_counter()
        with self._log.open("ab") as log:
            command = [str(SCRIPTS / "kmsd"), "dev", "--config", str(self._config), str(self._folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while time.perf_counter() - began < START_DEADLINE_SECONDS:
            with contextlib.suppress(OSError, KmsError):
                if self.status().state is SealState.UNSEALED:
                    return time.perf_counter() - began
            if self._process.poll() is not None:
                break
            time.sleep(0.002)
        raise SystemExit(f"bench: error: kmsd did not start:\n{self._log.read_text()}")

    def restart(self) -> float:
        """Stop it, start it again with what it has stored, and return the seconds until it served."""
        self.close()
        return self._start()

    def status(self) -> StatusResponse:
        """Ask how it is."""
        with Client(str(self.socket)) as client:
            return client.call(STATUS, StatusRequest())

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of commands that are to find this daemon.

        They may keep their compiled modules, as an installed command has them.
        """
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "KMSD_SOCKET": str(self.socket)}

    def pin(self, cores: set[int]) -> None:
        """Bind every thread of the daemon itself to `cores`; its children stay where they are."""
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)

    def resident_mebibytes(self) -> float:
        """PSS of the daemon and its descendants; raises PermissionError for others than root (it is not dumpable)."""
        kibibytes = 0
        waiting = [self._process.pid]
        while waiting:
            process = Path(f"/proc/{waiting.pop()}")
            rollup = (process / "smaps_rollup").read_text()
            kibibytes += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            for children in process.glob("task/*/children"):
                waiting += [int(pid) for pid in children.read_text().split()]
        return kibibytes / 1024

    def close(self) -> None:
        """Stop it and wait for its end."""
        self._process.terminate()
        self._process.wait(START_DEADLINE_SECONDS)


@contextlib.contextmanager
def running_daemon(folder: Path, settings: str = "") -> Iterator[Daemon]:
    """Run a daemon as long as the block lasts."""
    daemon = Daemon(folder, settings)
    try:
        yield daemon
    finally:
        daemon.close()


@contextlib.contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Bind this thread to `cores` as long as the block lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
