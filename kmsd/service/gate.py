"""Whether requests that need keys are served: the pipeline asks, sealing and unsealing decide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Gate:
    """Closed while the daemon is sealed."""

    __slots__ = ("_beginnings", "_changing", "_interrupts", "closed")

    def __init__(self) -> None:
        self.closed = True
        self._changing: set[asyncio.Task[Any]] = set()
        self._beginnings: list[Callable[[], None]] = []
        self._interrupts: list[Callable[[], None]] = []

    def pass_through(self, change: asyncio.Task[Any]) -> None:
        """Take note of a change that needs keys until it ends."""
        self._changing.add(change)
        change.add_done_callback(self._changing.discard)

    def on_open(self, begin: Callable[[], None]) -> None:
        """Have `begin` called whenever the gate opens: it begins what kmsd does by itself while it has keys."""
        self._beginnings.append(begin)

    def on_close(self, interrupt: Callable[[], None]) -> None:
        """Have `interrupt` called whenever the gate closes: it ends what holds a key and is no change yet."""
        self._interrupts.append(interrupt)

    def open(self) -> None:
        """Serve what needs keys from now on."""
        self.closed = False
        for begin in self._beginnings:
            begin()

    async def close(self, grace_seconds: float) -> None:
        """Refuse what needs keys from now on, and let the changes under way end for at most so long."""
        self.closed = True
        for interrupt in self._interrupts:
            interrupt()
        if self._changing:
            await asyncio.wait(self._changing, timeout=grace_seconds)
