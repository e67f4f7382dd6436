"""Whether requests that need keys are served: the pipeline asks, sealing and unsealing decide."""

from __future__ import annotations

import asyncio
from typing import Any


class Gate:
    """Closed while the daemon is sealed."""

    __slots__ = ("_changing", "closed")

    def __init__(self) -> None:
        self.closed = True
        self._changing: set[asyncio.Task[Any]] = set()

    def pass_through(self, change: asyncio.Task[Any]) -> None:
        """Take note of a change that needs keys until it ends."""
        self._changing.add(change)
        change.add_done_callback(self._changing.discard)

    def open(self) -> None:
        """Serve what needs keys from now on."""
        self.closed = False

    async def close(self, grace_seconds: float) -> None:
        """Refuse what needs keys from now on, and let the changes under way end for at most so long."""
        self.closed = True
        if self._changing:
            await asyncio.wait(self._changing, timeout=grace_seconds)
