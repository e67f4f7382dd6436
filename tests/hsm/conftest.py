"""A real SoftHSM token for each test, and zygotes whose jobs may go wrong."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kmsd.hsm.pkcs11 import JOB_ENTRY, FilePin, Pkcs11Root, TokenConfig, run_job
from kmsd.hsm.softhsm import PIN_NAME, make_token
from kmsd.processes.zygote import Entry, Zygote

LABEL = "kmsd test"


@pytest.fixture
async def zygote_with() -> AsyncIterator[Callable[[Entry], Zygote]]:
    """Starts zygotes whose token jobs run the given entry."""
    started: list[Zygote] = []

    def start(entry: Entry) -> Zygote:
        started.append(Zygote.start({JOB_ENTRY: entry}))
        return started[-1]

    yield start
    for zygote in started:
        await zygote.close()


@pytest.fixture
def zygote(zygote_with: Callable[[Entry], Zygote]) -> Zygote:
    return zygote_with(run_job)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token that was made once; copies of it are as good as new ones."""
    directory = tmp_path_factory.mktemp("hsm") / "token"
    zygote = Zygote.start({JOB_ENTRY: run_job})

    async def make() -> None:
        await make_token(zygote, directory, label=LABEL)
        await zygote.close()

    with asyncio.Runner() as runner:
        runner.run(make())
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    """The directory of a token that this test alone uses."""
    return shutil.copytree(template, tmp_path / "token")


@pytest.fixture
async def config(zygote: Zygote, directory: Path) -> TokenConfig:
    return await make_token(zygote, directory, label=LABEL)


@pytest.fixture
def pin(directory: Path) -> FilePin:
    return FilePin(directory / PIN_NAME)


@pytest.fixture
def root(zygote: Zygote, config: TokenConfig, pin: FilePin) -> Pkcs11Root:
    return Pkcs11Root(zygote, config, pin)
