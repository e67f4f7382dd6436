"""Signs of life are given only while every part gives one."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import AuditUnavailableError
from kmsd.logs import StructuredLogger
from kmsd.server.watchdog import Watchdog
from tests.support.manager import Manager

# Twice in each period there is a look.
PERIOD_USEC = "40000"


class Part:
    """Something that gives signs of life, unless a test prevents it."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()
        self.fault: Exception | None = None

    async def ping(self) -> None:
        await self.answers.wait()
        if self.fault is not None:
            raise self.fault


class Watched:
    """A watchdog over two parts."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.zygote, self.store = Part(), Part()
        self.state = "unsealed"
        self.log = io.StringIO()
        self.watchdog = Watchdog(
            manager.notifier(WATCHDOG_USEC=PERIOD_USEC),
            {"zygote": self.zygote.ping, "store": self.store.ping},
            status=lambda: self.state,
            logger=StructuredLogger(self.log),
        )
        self.watchdog.start()

    async def heard(self) -> str:
        return (await self.manager.heard_soon())[0]

    async def until(self, message: str) -> list[str]:
        """All messages up to this one."""
        heard = [await self.heard()]
        while heard[-1] != message:
            heard.append(await self.heard())
        return heard


@pytest.fixture
def manager(short_path: Path) -> Iterator[Manager]:
    manager = Manager(str(short_path / "notify"))
    yield manager
    manager.close()


async def test_it_is_fed_while_all_parts_answer(manager: Manager) -> None:
    """Again and again; the status is told when it changes, and only then."""
    watched = Watched(manager)
    assert [await watched.heard() for _ in range(4)] == ["WATCHDOG=1", "STATUS=unsealed", "WATCHDOG=1", "WATCHDOG=1"]
    watched.state = "sealed"
    assert set(await watched.until("STATUS=sealed")) == {"WATCHDOG=1", "STATUS=sealed"}
    watched.watchdog.stop()


async def test_a_part_that_hangs_is_named_and_the_watchdog_is_not_fed(manager: Manager) -> None:
    """Although the other goes on; when both do again, it is fed again."""
    watched = Watched(manager)
    watched.store.answers.clear()
    await watched.until("STATUS=not well: no answer from store")
    await asyncio.sleep(5 * int(PERIOD_USEC) / 1_000_000)
    assert manager.waiting() == []
    assert '"no_answer_from": ["store"]' in watched.log.getvalue()

    watched.zygote.answers.clear()
    assert await watched.heard() == "STATUS=not well: no answer from zygote, store"
    watched.zygote.answers.set()
    watched.store.answers.set()
    heard = await watched.until("STATUS=unsealed")
    assert heard[-2:] == ["WATCHDOG=1", "STATUS=unsealed"]
    watched.watchdog.stop()


async def test_a_refusal_is_no_sign_of_life(manager: Manager) -> None:
    """What says that it has failed for good needs a new start as well."""
    watched = Watched(manager)
    watched.store.fault = AuditUnavailableError("gone")
    await watched.until("STATUS=not well: no answer from store")
    await asyncio.sleep(3 * int(PERIOD_USEC) / 1_000_000)
    assert manager.waiting() == []
    watched.watchdog.stop()


async def test_a_loop_that_does_not_turn_feeds_nothing(manager: Manager) -> None:
    """Nothing but the loop does it."""
    watched = Watched(manager)
    await watched.until("WATCHDOG=1")
    manager.waiting()
    assert manager.heard_while_blocked(3 * int(PERIOD_USEC) / 1_000_000) == []
    assert await watched.until("WATCHDOG=1")
    watched.watchdog.stop()


async def test_after_the_stop_nothing_is_fed(manager: Manager) -> None:
    """Also when parts have not answered; and one that never began may be stopped."""
    watched = Watched(manager)
    watched.zygote.answers.clear()
    await watched.until("STATUS=not well: no answer from zygote")
    watched.watchdog.stop()
    manager.waiting()
    await asyncio.sleep(3 * int(PERIOD_USEC) / 1_000_000)
    assert manager.waiting() == []


async def test_without_a_wish_for_it_nobody_is_asked(manager: Manager) -> None:
    """A manager may have no watchdog."""
    part = Part()
    part.fault = AuditUnavailableError("nobody asks")
    log = io.StringIO()
    watchdog = Watchdog(manager.notifier(), {"part": part.ping}, status=str, logger=StructuredLogger(log))
    watchdog.start()
    await asyncio.sleep(3 * int(PERIOD_USEC) / 1_000_000)
    watchdog.stop()
    assert manager.waiting() == []
    assert log.getvalue() == ""
