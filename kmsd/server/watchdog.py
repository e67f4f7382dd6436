"""Signs of life for the service manager, given only while every part of the daemon answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from kmsd.logs import Logger
from kmsd.server.notify import Notifier


class Watchdog:
    """Feeds the manager's watchdog twice in each of its periods, from `start` to `stop`.

    Each of `parts` is asked for a sign of life, and has to have given one when the next half of a period is over. As
    long as one has not, it is named in the log and in the status, and the watchdog is not fed: the manager then starts
    the daemon anew. That the event loop turns is shown by its doing this. `status` tells how the service is otherwise;
    the manager hears of it when it has changed.
    """

    def __init__(
        self,
        notifier: Notifier,
        parts: Mapping[str, Callable[[], Coroutine[Any, Any, None]]],
        *,
        status: Callable[[], str],
        logger: Logger,
    ) -> None:
        self._notifier = notifier
        self._parts = parts
        self._status = status
        self._logger = logger
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._told: str | None = None
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, if the manager wants it."""
        if self._notifier.watchdog_seconds is not None:
            self._ask(self._parts)

    def stop(self) -> None:
        """Feed it no more: how long a stop may take is another matter."""
        if self._next is not None:
            self._next.cancel()
        for task in self._asked.values():
            task.cancel()

    def _ask(self, names: Mapping[str, Any] | list[str]) -> None:
        loop = asyncio.get_running_loop()
        for name in names:
            self._asked[name] = loop.create_task(self._parts[name]())
        self._next = loop.call_later((self._notifier.watchdog_seconds or 0) / 2, self._look)

    def _look(self) -> None:
        answered = [name for name, task in self._asked.items() if task.done()]
        # A refusal is no sign of life: a zygote that ended, a store that has failed. Both need a new start.
        silent = [name for name, task in self._asked.items() if not task.done() or task.exception() is not None]
        if silent:
            self._logger.warning("watchdog_not_fed", no_answer_from=silent)
            status = f"not well: no answer from {', '.join(silent)}"
        else:
            self._notifier.alive()
            status = self._status()
        if status != self._told:
            self._notifier.status(status)
            self._told = status
        self._ask(answered)
