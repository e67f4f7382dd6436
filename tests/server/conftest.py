"""A service of each test's own, and peers connected to it by real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.embedded import Embedded

OpenService = Callable[..., Awaitable[Embedded]]


@pytest.fixture
async def open_service(tmp_path: Path) -> AsyncIterator[OpenService]:
    """Opens services with settings of the test's own, and closes them."""
    opened: list[Embedded] = []

    async def open_(**settings: object) -> Embedded:
        directory = tmp_path / str(len(opened))
        directory.mkdir()
        opened.append(await Embedded.open(directory, **settings))  # type: ignore[arg-type] # settings of any test
        return opened[-1]

    yield open_
    for service in opened:
        await service.close()


@pytest.fixture
async def service(open_service: OpenService) -> Embedded:
    """A service with ordinary settings."""
    return await open_service()
