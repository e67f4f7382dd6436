"""A real `kmsd dev` of a test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kmsd.audit.checkpoint import CHECKPOINT
from kmsd_client import Client

# Where the console scripts of this environment are.
SCRIPTS = Path(sys.executable).parent
# A start takes about half a second, making a token one more; the rest is for a busy machine.
START_SECONDS = 60
STOP_SECONDS = 30
# What the daemon must never say: a traceback, or a fault that nobody foresaw.
_ALARMS = ("Traceback", '"level": "error"')


class DevDaemon:
    """A daemon on `directory`, from `start` to `stop`; what it says goes to DIRECTORY.err.

    `within` is a command that executes the rest of its own command line.
    """

    def __init__(
        self, directory: Path, *, shared: bool = False, settings: str = "", within: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.socket = directory / "kmsd.sock"
        self.audit_log = directory / "audit.log"
        self._errors = directory.with_name(directory.name + ".err")
        self._command = [*within, str(SCRIPTS / "kmsd"), "dev"]
        if shared:
            self._command.append("--share")
        if settings:
            config = directory.with_name(directory.name + ".toml")
            config.write_text(settings)
            self._command += ["--config", str(config)]
        self._command.append(str(directory))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find the daemon and `kms`."""
        path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "KMSD_SOCKET": str(self.socket), "LANG": "C.UTF-8", "TZ": "UTC"}

    def launch(self) -> None:
        """Start the process without waiting for it."""
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)

    def start(self) -> None:
        """Start, and wait until the socket accepts."""
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while "kmsd: ready:" not in self.said():
            assert self.process.poll() is None, f"kmsd ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, f"kmsd does not become ready:\n{self.said()}"
            time.sleep(0.005)

    def said(self) -> str:
        """What the process wrote so far."""
        return self._errors.read_text()

    def stop(self) -> None:
        """Stop by SIGTERM; whatever was done to it, it ends well and has no fault to report."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_SECONDS) == 0, self.said()
        self.check()

    def kill(self) -> None:
        """End it at once, without a chance to do anything."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.check()

    def check(self) -> None:
        """Raise AssertionError when it reported a fault that nobody foresaw."""
        said = self.said()
        assert not any(alarm in said for alarm in _ALARMS), said

    def end(self) -> None:
        """Make sure that nothing of it runs when a test is over, however that went."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def client(self) -> Client:
        return Client(self.socket)

    def processes(self) -> list[int]:
        """The daemon and all its descendants."""
        found: list[int] = []
        waiting = [self.pid]
        while waiting:
            found.append(waiting.pop())
            for children in Path(f"/proc/{found[-1]}").glob("task/*/children"):
                waiting += [int(pid) for pid in children.read_text().split()]
        return found

    def run(self, *command: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command, such as `kms`, that finds this daemon."""
        return subprocess.run(
            command, cwd=cwd, env=self.environment, input=stdin, capture_output=True, timeout=60, check=False
        )

    def records(self) -> list[dict[str, Any]]:
        """The audit trail as it stands on the disk, but for its signatures, which are written beside what is tested."""
        lines = map(msgspec.json.decode, self.audit_log.read_bytes().splitlines())
        return [line for line in lines if line["eventName"] != CHECKPOINT]
