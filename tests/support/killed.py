"""A service that was killed: what only its memory had is gone, and the next one begins with what is on the disk."""

from __future__ import annotations

from kmsd.service.seal import CONFIGURED
from kmsd.service.settling import Settling
from tests.support.embedded import Embedded


async def open_again(service: Embedded) -> Embedded:
    """The next service after `service`, which is ended without a chance to store anything; unsealed."""
    for task in tuple(service.files._streams):
        task.cancel()
    await service.close()
    again = await Embedded.open(service.directory, initialize=False, host_time=service.time)
    await again.seal.unseal(_nobody, CONFIGURED)
    await Settling(again.store, again.trail).settle()
    await again.timekeeping.begin()
    again.gate.open()
    return again


async def _nobody(_: list[str]) -> None:
    raise AssertionError("the records are not as they were left")
