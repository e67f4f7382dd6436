"""A service manager, as far as what it is told."""

from __future__ import annotations

import asyncio
import select
import socket
import time

from kmsd.server.notify import Notifier

PATIENCE_SECONDS = 10


class Manager:
    """A service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.environment = {"NOTIFY_SOCKET": address}
        self._notifiers: list[Notifier] = []

    def notifier(self, **variables: str) -> Notifier:
        """What a service makes of these variables and the manager's own."""
        self._notifiers.append(Notifier.from_environment(self.environment | variables))
        return self._notifiers[-1]

    def close(self) -> None:
        for notifier in self._notifiers:
            notifier.close()
        self.socket.close()

    def heard(self) -> list[str]:
        """The lines of the next message."""
        return self.socket.recv(1 << 16).decode().split("\n")

    async def heard_soon(self) -> list[str]:
        """The same, while the test's loop goes on."""
        while True:
            if (message := self.next()) is not None:
                return message
            await asyncio.sleep(0.001)

    def next(self) -> list[str] | None:
        """The same if there is a message now."""
        # A socket with a time limit waits in spite of MSG_DONTWAIT.
        return self.heard() if select.select([self.socket], [], [], 0)[0] else None

    def waiting(self) -> list[list[str]]:
        """All messages that are there now."""
        found = []
        while (message := self.next()) is not None:
            found.append(message)
        return found

    def heard_while_blocked(self, seconds: float) -> list[list[str]]:
        """What comes while nothing else happens in this thread."""
        time.sleep(seconds)
        return self.waiting()
