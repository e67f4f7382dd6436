"""What every test may rely on."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A slow machine is no failure; pytest's own timeout ends what hangs.
hypothesis.settings.register_profile("kmsd", deadline=None)
hypothesis.settings.load_profile("kmsd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what only root can do, and say so."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A fresh folder with a short name: a Unix socket's path has room for 108 bytes, which tmp_path's may not leave."""
    path = Path(tempfile.mkdtemp(prefix="kmsd-"))
    yield path
    shutil.rmtree(path)
