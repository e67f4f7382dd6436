"""How long something may take before the daemon goes on."""

from __future__ import annotations

import asyncio

import pytest

from kmsd.service.grace import within


async def test_what_comes_in_time_is_finished() -> None:
    """And not waited for any longer."""
    done = False
    async with within(60):
        await asyncio.sleep(0)
        done = True
    assert done


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_what_takes_longer_is_given_up(seconds: float) -> None:
    """Whoever waited goes on."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    async with within(seconds):
        await task
    assert task.cancelled()


async def test_a_fault_is_no_end_of_the_time() -> None:
    """It passes."""
    with pytest.raises(ValueError, match="a fault"):
        async with within(60):
            raise ValueError("a fault")


async def test_who_is_cancelled_does_not_go_on() -> None:
    """The time is that of what is awaited, not of who waits."""

    async def wait() -> None:
        async with within(60):
            await asyncio.sleep(60)

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
