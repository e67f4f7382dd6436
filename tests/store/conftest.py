"""What the tests of the store share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmsd.store.sql import SqlStore
from tests.store.rows import opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store can be."""
    return tmp_path / "store.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    """An empty store, unsealed."""
    async with opened(path) as store:
        yield store
