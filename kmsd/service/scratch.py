"""Secret memory for what one synchronous request needs and the next must not see."""

from __future__ import annotations

from kmsd.memory.arena import Arena
from kmsd.memory.mapping import fill_random

# The largest secret one request can need at once: the bytes of GenerateRandom.
SCRATCH_BYTES = 32 * 1024


class Scratch:
    """One slot that requests of cost CRYPTOGRAPHY use one after the other, wiped between them."""

    def __init__(self, arena: Arena) -> None:
        self._view = arena.lease(SCRATCH_BYTES).view
        self._used = 0

    def take(self, size: int) -> memoryview:
        """Return `size` bytes that are the request's until its reply is encoded; for one piece a request."""
        self._used = max(self._used, size)
        return self._view[:size]

    def random(self, size: int) -> memoryview:
        """Take `size` bytes that come from getrandom(2) and went nowhere else."""
        view = self.take(size)
        fill_random(view)
        return view

    def wipe(self) -> None:
        """Zero what was taken."""
        if self._used:
            self._view[: self._used] = bytes(self._used)
            self._used = 0
