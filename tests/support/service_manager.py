"""What systemd is to a service: it holds the listening socket, passes it on, and hears how the service is."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from kmsd.server.listener import bind
from tests.support.host_daemon import HostDaemon

_FIRST_PASSED = 3
_WAIT_SECONDS = 30


class ServiceManager:
    """Starts `daemon` again and again on one socket of its own."""

    def __init__(self, daemon: HostDaemon, folder: Path, *, watchdog_seconds: float | None = None) -> None:
        self.daemon = daemon
        self._listening = bind(daemon.socket, 0o666)
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.bind(str(folder / "notify"))
        self._notifications.settimeout(_WAIT_SECONDS)
        self._environment = {**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(folder / "notify")}
        if watchdog_seconds is not None:
            self._environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1_000_000))
        self.heard: list[dict[str, str]] = []

    def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        with self.daemon._errors.open("wb") as errors:
            self.daemon.process = subprocess.Popen(
                # The variable has to hold the process's own id, which exec keeps.
                ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *self.daemon._command],
                env=self._environment,
                pass_fds=(_FIRST_PASSED,),
                preexec_fn=lambda: os.dup2(self._listening.fileno(), _FIRST_PASSED),  # noqa: PLW1509 - it only dups
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        self.wait_for(lambda said: said.get("READY") == "1")

    def wait_for(self, condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return the next notification for which `condition` holds."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            try:
                data = self._notifications.recv(4096)
            except TimeoutError:
                break
            self.heard.append(dict(line.split("=", 1) for line in data.decode().splitlines()))
            if condition(self.heard[-1]):
                return self.heard[-1]
        raise AssertionError(f"not heard; the daemon said:\n{self.daemon.said()}\n{self.heard}")

    def restart(self) -> None:
        self.daemon.stop()
        self.start()

    def close(self) -> None:
        self.daemon.end()
        self._listening.close()
        self._notifications.close()
