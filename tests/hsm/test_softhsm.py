"""The development token: made whole or not at all, and never made twice."""

import asyncio
import fcntl
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kmsd.hsm import softhsm
from kmsd.hsm.pkcs11 import JOB_ENTRY, FilePin, Pkcs11Root, TokenConfig, run_job
from kmsd.hsm.root import TokenCrashedError, TokenFailedError
from kmsd.hsm.softhsm import MODULE_VARIABLE, PIN_NAME, find_module, make_token
from kmsd.processes.zygote import Entry, Zygote


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


def names(directory: Path) -> frozenset[str]:
    return frozenset(path.name for path in directory.iterdir())


async def assert_works(zygote: Zygote, config: TokenConfig, directory: Path) -> None:
    root = Pkcs11Root(zygote, config, FilePin(directory / PIN_NAME))
    await root.make_domain_key("key-1", 1, memoryview(bytearray(32)))  # the job unwraps it, too


async def test_a_fresh_token_works(zygote: Zygote, tmp_path: Path) -> None:
    """One call makes everything that is needed, for nobody else to read."""
    directory = tmp_path / "hsm"
    config = await make_token(zygote, directory, label="fresh")

    assert names(directory) == {"pin", "softhsm2.conf", "tokens"}
    assert mode(directory) == mode(directory / "tokens") == "drwx------"
    assert mode(directory / "pin") == "-rw-------"
    assert re.fullmatch(r"[0-9]{32}", (directory / "pin").read_text())
    await assert_works(zygote, config, directory)


async def test_a_second_call_changes_nothing(zygote: Zygote, tmp_path: Path) -> None:
    """The root key is never made anew."""
    config = await make_token(zygote, tmp_path / "hsm", label="once")
    before = {path: path.read_bytes() for path in (tmp_path / "hsm").rglob("*") if path.is_file()}

    assert await make_token(zygote, tmp_path / "hsm", label="once") == config
    assert {path: path.read_bytes() for path in (tmp_path / "hsm").rglob("*") if path.is_file()} == before


async def test_the_directory_may_be_moved(zygote: Zygote, tmp_path: Path) -> None:
    """Its settings name its place, and are written anew."""
    await make_token(zygote, tmp_path / "here", label="moved")
    (tmp_path / "here").rename(tmp_path / "with blanks")

    config = await make_token(zygote, tmp_path / "with blanks", label="moved")
    await assert_works(zygote, config, tmp_path / "with blanks")


async def test_the_pin_comes_from_the_given_randomness(zygote: Zygote, tmp_path: Path) -> None:
    """Each digit is drawn by itself."""
    digits = iter("31415926535897932384626433832795")
    config = await make_token(zygote, tmp_path / "hsm", label="pi", random_below=lambda _: int(next(digits)))

    assert (tmp_path / "hsm" / PIN_NAME).read_text() == "31415926535897932384626433832795"
    await assert_works(zygote, config, tmp_path / "hsm")


async def test_a_lost_token_is_not_replaced(zygote: Zygote, directory: Path, config: TokenConfig) -> None:
    """A tokens folder without a token is somebody's accident, and a new root key would not mend it."""
    for token in (directory / "tokens").iterdir():
        shutil.rmtree(token)

    await make_token(zygote, directory, label=config.token_label)
    assert names(directory / "tokens") == set()


async def test_two_at_once_do_not_meet(zygote: Zygote, tmp_path: Path) -> None:
    """Who comes second is told so."""
    (tmp_path / "hsm").mkdir()
    descriptor = os.open(tmp_path / "hsm", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    with pytest.raises(TokenFailedError, match="another process"):
        await make_token(zygote, tmp_path / "hsm", label="busy")
    os.close(descriptor)
    await make_token(zygote, tmp_path / "hsm", label="busy")


async def test_a_path_softhsm_cannot_read_is_refused(zygote: Zygote, tmp_path: Path) -> None:
    """SoftHSM would take what follows a # for a comment, and put the token elsewhere."""
    with pytest.raises(TokenFailedError, match="without '#'"):
        await make_token(zygote, tmp_path / "a#b", label="x")
    assert names(tmp_path) == set()


async def test_a_label_too_long_for_a_token_is_refused(zygote: Zygote, tmp_path: Path) -> None:
    """PKCS#11 has room for 32 bytes; what was tried leaves no token."""
    with pytest.raises(TokenFailedError, match="at most 32 bytes"):
        await make_token(zygote, tmp_path / "hsm", label="x" * 33)
    assert "tokens" not in names(tmp_path / "hsm")


def killed_at(nth: int, function: Callable[..., object], *arguments: object, file: str) -> None:
    """Run the function and die, as by `kill -9`, before the nth line of the source file is run for the first time."""
    seen: set[int] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if Path(frame.f_code.co_filename).name != file:
            return None
        if event == "line" and frame.f_lineno not in seen:
            seen.add(frame.f_lineno)
            if len(seen) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    function(*arguments)
    sys.settrace(None)


def start_and_make(directory: Path) -> TokenConfig:
    async def make() -> TokenConfig:
        zygote = Zygote.start({JOB_ENTRY: run_job})
        config = await make_token(zygote, directory, label="killed")
        await assert_works(zygote, config, directory)
        await zygote.close()
        return config

    with asyncio.Runner() as runner:
        return runner.run(make())


# For the sake of time not each of the 57 lines that a first call runs, but every one around the last renames.
@pytest.mark.parametrize("nth", [1, 16, 22, 42, *range(51, 57)])
def test_killing_the_maker_at_any_line_is_repaired_by_the_next_call(tmp_path: Path, nth: int) -> None:
    """Whatever was there, the next call ends with a token that works and no rest of the first."""
    directory = tmp_path / "hsm"
    pid = os.fork()
    if pid == 0:
        try:
            killed_at(nth, start_and_make, directory, file=Path(softhsm.__file__).name)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    before = names(directory / "tokens") if (directory / "tokens").is_dir() else None

    start_and_make(directory)
    assert status == -signal.SIGKILL
    assert names(directory) == {"pin", "softhsm2.conf", "tokens"}
    assert before in {None, names(directory / "tokens")}, "a token that was there is still there"


# Some of the 27 lines of the job that makes the token.
@pytest.mark.parametrize("nth", [1, 14, 20, 24])
async def test_killing_the_job_at_any_line_is_repaired_by_the_next_call(
    zygote_with: Callable[[Entry], Zygote], zygote: Zygote, tmp_path: Path, nth: int
) -> None:
    """A token with a label, with a PIN, or with a root key nobody has used yet is dropped."""

    def entry(descriptors: list[int]) -> None:
        killed_at(nth, run_job, descriptors, file="initialization.py")

    with pytest.raises(TokenCrashedError, match="signal 9"):
        await make_token(zygote_with(entry), tmp_path / "hsm", label="killed")
    assert "tokens" not in names(tmp_path / "hsm")

    config = await make_token(zygote, tmp_path / "hsm", label="killed")
    assert names(tmp_path / "hsm") == {"pin", "softhsm2.conf", "tokens"}
    await assert_works(zygote, config, tmp_path / "hsm")


def test_the_module_is_found_here() -> None:
    """`make setup` has seen to it."""
    assert find_module().name == "libsofthsm2.so"


def test_the_environment_names_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who has SoftHSM elsewhere says where."""
    (tmp_path / "module.so").touch()
    monkeypatch.setenv(MODULE_VARIABLE, str(tmp_path / "module.so"))

    assert find_module() == tmp_path / "module.so"


def test_a_wrong_name_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable that names nothing is an error, and no reason to take another module."""
    monkeypatch.setenv(MODULE_VARIABLE, str(tmp_path / "none"))

    with pytest.raises(FileNotFoundError, match=MODULE_VARIABLE):
        find_module()


def test_a_module_unpacked_beside_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make setup` unpacks Debian's package there for users who are not root."""
    monkeypatch.delenv(MODULE_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    module = tmp_path / "softhsm2/usr/lib/softhsm/libsofthsm2.so"
    module.parent.mkdir(parents=True)
    module.touch()

    assert find_module() == module
