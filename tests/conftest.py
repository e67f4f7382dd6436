"""What every test may rely on."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from kmsd_client import Client
from tests.support.dev_daemon import DevDaemon

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


@pytest.fixture(scope="module")
def module_path() -> Iterator[Path]:
    """The same for all tests of a module; others may enter it, as far as what is inside lets them."""
    path = Path(tempfile.mkdtemp(prefix="kmsd-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def prepared() -> Iterator[Path]:
    """A directory that a daemon made and left: a copy of it starts sooner, as making a token takes half a second."""
    path = Path(tempfile.mkdtemp(prefix="kmsd-"))
    daemon = DevDaemon(path / "d")
    try:
        daemon.start()
        daemon.stop()
        yield daemon.directory
    finally:
        daemon.end()
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def dev(module_path: Path, prepared: Path) -> Iterator[DevDaemon]:
    """A running `kmsd dev` that all tests of a module share; in the end it stops well and has no fault to report."""
    daemon = DevDaemon(shutil.copytree(prepared, module_path / "d"))
    try:
        daemon.start()
        yield daemon
        daemon.stop()
    finally:
        daemon.end()


@pytest.fixture
def client(dev: DevDaemon) -> Iterator[Client]:
    """A client of the module's daemon."""
    with dev.client() as connected:
        yield connected


@pytest.fixture
def key(client: Client) -> str:
    """The ARN of a fresh key."""
    return client.create_key().key_metadata.arn
