"""Using what may not be in memory, where there is time to wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kmsd.material.versions import NotLoadedError

_ResultT = TypeVar("_ResultT")


async def loaded(use: Callable[[], _ResultT]) -> _ResultT:
    """Call `use`, loading what it misses."""
    while True:
        try:
            return use()
        except NotLoadedError as missing:
            await missing.load()
