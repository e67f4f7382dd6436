"""Tasks that go on to their end, also when who waits for them is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class UnderWay:
    """The changes that have begun, each of which has its outcome in the trail when it ends."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, change: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Begin a change; who waits for the task that is returned has to shield it from being cancelled with him."""
        task = asyncio.ensure_future(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(look_at)
        return task

    async def drain(self) -> None:
        """Wait until there are none."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def look_at(task: asyncio.Task[Any]) -> None:
    """Look at how a task has ended, which is told to who waits for it, if anybody does still.

    Or else asyncio has the log tell that nobody did.
    """
    if not task.cancelled():
        task.exception()
