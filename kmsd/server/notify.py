"""What a service manager is told (sd_notify(3)).

The socket is made and connected once, at the start: later the sandbox forbids it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

_SOCKET = "NOTIFY_SOCKET"
_WATCHDOG = ("WATCHDOG_PID", "WATCHDOG_USEC")
_USEC = 1_000_000
# USEC_INFINITY of systemd: never.
_NEVER_USEC = 2**64 - 1


class NotifyError(RuntimeError):
    """The service manager announced itself, and cannot be told anything."""


class Notifier:
    """Tells a service manager how the service is; without one it does nothing.

    `watchdog_seconds` is how often the manager wants to hear that all is well, None when it does not ask. What cannot
    be delivered is lost: a manager that does not listen must not stop the service.
    """

    def __init__(
        self,
        sock: socket.socket | None = None,
        *,
        watchdog_seconds: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket = sock
        self._monotonic = monotonic
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Connect to the manager that `environment` names, and remove its variables; raises NotifyError."""
        address = environment.pop(_SOCKET, "")
        pid, usec = (environment.pop(name, "") for name in _WATCHDOG)
        if not address:
            return cls()
        watchdog_seconds = _seconds(usec) if pid in {"", str(os.getpid())} else None
        return cls(_connected(address), watchdog_seconds=watchdog_seconds)

    def starting(self, seconds: float) -> None:
        """Ask for up to `seconds` for the start, if that is longer than what the manager allows anyway."""
        self._tell(f"EXTEND_TIMEOUT_USEC={seconds * _USEC:.0f}", "STATUS=starting")

    def ready(self, status: str) -> None:
        """Tell that the service accepts connections, after the start or after it read its settings anew."""
        self._tell("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Tell in a line how the service is."""
        self._tell(f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that the service reads its settings anew; `ready` has to follow."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._monotonic() * _USEC:.0f}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def stopping(self, seconds: float) -> None:
        """Tell that the service stops, for which it may need `seconds`."""
        self._tell("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={seconds * _USEC:.0f}")

    def close(self) -> None:
        """Tell nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *assignments: str) -> None:
        if self._socket is not None:
            # A value ends with its line.
            lines = [line.replace("\n", " ") for line in assignments]
            with contextlib.suppress(OSError):
                # A file's name in it may be no text.
                self._socket.send("\n".join(lines).encode(errors="backslashreplace"))


def _seconds(usec: str) -> float | None:
    """Return a number of microseconds that stands in a variable as seconds, None for never or nonsense."""
    if not usec.isdecimal() or len(usec) > len(str(_NEVER_USEC)) or not 0 < int(usec) < _NEVER_USEC:
        return None
    return int(usec) / _USEC


def _connected(address: str) -> socket.socket:
    # "@" stands for the zero byte of an abstract address (unix(7)).
    path = f"\0{address[1:]}" if address.startswith("@") else address
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise NotifyError(f"{_SOCKET} names {address}, which cannot be reached: {error.strerror or error}") from None
    return sock
