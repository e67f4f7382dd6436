"""A coroutine in a forked child, which tells its parent what it did before it is killed or ends.

The parent imports everything once and has no threads, so that a child starts within milliseconds.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import selectors
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

Say = Callable[[dict[str, Any]], None]

# A child takes a tenth of a second or two; this is for one that hangs.
HANGS_SECONDS = 60.0


class Ran(NamedTuple):
    """What a child said, and which signal ended it, 0 for none."""

    said: list[dict[str, Any]]
    signal: int

    def of(self, member: str) -> list[Any]:
        """All that was said under one name."""
        return [one[member] for one in self.said if member in one]


def run(main: Callable[[Say], Awaitable[None]], *, kill_after: float | None = None) -> Ran:
    """Run `main` in a child until it ends or is killed, after so many seconds or by itself.

    Raises AssertionError with what the child said of it when something failed that nobody foresaw, or when it hung.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(main, writing)
    os.close(writing)
    try:
        data, hung = _read(reading, child, kill_after)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    lines = data.split(b"\n")
    lines.pop()  # what was not said to its end
    ran = Ran([json.loads(line) for line in lines], os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
    assert not hung, f"hung for {HANGS_SECONDS:.0f} s; said {ran.said[-3:]}"
    for failure in ran.of("failure"):
        raise AssertionError(failure)
    assert ran.signal in {0, signal.SIGKILL}, f"ended by signal {ran.signal}"
    return ran


def _read(reading: int, child: int, kill_after: float | None) -> tuple[bytearray, bool]:
    data = bytearray()
    started = time.monotonic()
    ends = started + (HANGS_SECONDS if kill_after is None else kill_after)
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, ends - time.monotonic())):
                os.kill(child, signal.SIGABRT if kill_after is None else signal.SIGKILL)
                while more := os.read(reading, 1 << 16):
                    data += more
                return data, kill_after is None
            more = os.read(reading, 1 << 16)
            if not more:
                return data, False
            data += more


def _be_child(main: Callable[[Say], Awaitable[None]], writing: int) -> None:
    status = 1
    gc.freeze()
    faulthandler.enable()

    def say(what: dict[str, Any]) -> None:
        line = json.dumps(what).encode() + b"\n"
        while line:
            line = line[os.write(writing, line) :]

    def fail(reason: str, fault: BaseException | None) -> None:
        text = "".join(traceback.format_exception(fault)) if fault is not None else ""
        say({"failure": f"{reason}\n{text}"})

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: fail(context["message"], context.get("exception"))
        )
        await main(say)

    try:
        threading.excepthook = lambda told: fail("a thread failed", told.exc_value)
        asyncio.run(guarded())
        status = 0
    except BaseException as fault:  # noqa: BLE001 - for the parent to raise
        fail("the child failed", fault)
    finally:
        os._exit(status)
