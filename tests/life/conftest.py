"""What forks the services of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.life.host import Forge
from tests.support.faulty_disk import build


@pytest.fixture(scope="package")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """Forks a child for each start of a service."""
    forge = Forge(build(tmp_path_factory.mktemp("shim")))
    yield forge
    forge.close()
