"""What may take some time before keys are taken away or the daemon stops, which nothing may hold up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Give up what is awaited inside after so many seconds, and go on behind it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield
