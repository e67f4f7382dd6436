"""Jobs that crash, hang, babble or lose their zygote."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from kmsd.hsm.conversation import Done
from kmsd.hsm.pkcs11 import FilePin, Pkcs11Root, TokenConfig, run_job
from kmsd.hsm.root import (
    TokenCrashedError,
    TokenFailedError,
    TokenTimeoutError,
    WrappedDomainKey,
)
from kmsd.processes.zygote import Entry, Zygote

ZygoteWith = Callable[[Entry], Zygote]


async def make(root: Pkcs11Root, domain_key_id: str = "key-1", generation: int = 1) -> tuple[WrappedDomainKey, bytes]:
    key = bytearray(32)
    record = await root.make_domain_key(domain_key_id, generation, memoryview(key))
    return record, bytes(key)


def crash(descriptors: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(descriptors: list[int]) -> None:
    raise ZeroDivisionError


def hang(descriptors: list[int]) -> None:
    time.sleep(60)


def hang_afterwards(descriptors: list[int]) -> None:
    run_job(descriptors)
    time.sleep(60)


def write_slowly(folder: Path, descriptors: list[int]) -> None:
    with socket.socket(fileno=descriptors[0]) as channel:
        channel.recv(1 << 16)
        (folder / "begun").touch()
        time.sleep(0.2)
        (folder / "written").touch()
        channel.send(msgspec.json.encode(Done()))


def babble(descriptors: list[int]) -> None:
    with socket.socket(fileno=descriptors[0]) as channel:
        channel.recv(1 << 16)
        channel.send(b"\x00nonsense")


def answer_something_else(descriptors: list[int]) -> None:
    with socket.socket(fileno=descriptors[0]) as channel:
        channel.recv(1 << 16)
        channel.send(msgspec.json.encode(Done()))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (crash, "ended by signal 11 .*update the module"),
        (fail, "ended with code 1"),
        (babble, "no valid answer"),
        (answer_something_else, "answered Done instead of Wrapped"),
    ],
)
async def test_a_crash_is_one_error_and_no_more(
    zygote_with: ZygoteWith, root: Pkcs11Root, config: TokenConfig, pin: FilePin, entry: Entry, reason: str
) -> None:
    """Whatever happens in the job's process stays there, and the next job works."""
    with pytest.raises(TokenCrashedError, match=reason):
        await make(Pkcs11Root(zygote_with(entry), config, pin))

    await make(root)


async def test_a_job_that_hangs_is_killed(zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin) -> None:
    """The deadline holds, and leaves no process behind."""
    zygote = zygote_with(hang)

    with pytest.raises(TokenTimeoutError, match=r"within 0.1 s.*killed"):
        await make(Pkcs11Root(zygote, config, pin, deadline_seconds=0.1))
    await until(lambda: not children(zygote))


async def test_a_module_that_hangs_is_killed(zygote: Zygote, root: Pkcs11Root, directory: Path) -> None:
    """The same inside the vendor's library: SoftHSM waits for its settings, which are a FIFO."""
    conf = directory / "softhsm2.conf"
    conf.unlink()
    os.mkfifo(conf)
    root._jobs._deadline_seconds = 0.3

    with pytest.raises(TokenTimeoutError):
        await make(root)
    await until(lambda: not children(zygote))


async def test_a_module_that_hangs_at_its_end_does_not_matter(
    zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin
) -> None:
    """The work is done when the reply is there."""
    zygote = zygote_with(hang_afterwards)
    root = Pkcs11Root(zygote, config, pin, deadline_seconds=10)
    _, key = await make(root)

    assert key != bytes(32)
    await until(lambda: not children(zygote))


async def test_a_cancelled_call_leaves_no_process(zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin) -> None:
    """An administrator who gives up waiting does not leave a login behind, also where the module hangs."""
    zygote = zygote_with(hang)
    root = Pkcs11Root(zygote, config, pin)
    root._jobs._unawaited_seconds = 0.1
    call = asyncio.create_task(make(root))
    await until(lambda: bool(children(zygote)))
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: not children(zygote))


async def test_a_cancelled_call_is_not_killed_in_the_midst_of_its_work(
    zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin, tmp_path: Path
) -> None:
    """A module may be writing to its token: SoftHSM empties the token's file at each login before it writes it anew."""
    zygote = zygote_with(partial(write_slowly, tmp_path))
    call = asyncio.create_task(make(Pkcs11Root(zygote, config, pin)))
    await until((tmp_path / "begun").exists)
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert (tmp_path / "written").exists()
    await until(lambda: not children(zygote))


async def test_without_its_zygote_the_token_is_out_of_reach(root: Pkcs11Root, zygote: Zygote) -> None:
    """The error is one of the root's own, and tells what to do."""
    await zygote.close()

    with pytest.raises(TokenFailedError, match="restart kmsd"):
        await make(root)


async def test_a_zygote_that_ends_during_a_job_is_noticed(
    zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin
) -> None:
    """The job dies with it."""
    zygote = zygote_with(hang)
    call = asyncio.create_task(make(Pkcs11Root(zygote, config, pin)))
    await until(lambda: bool(children(zygote)))
    os.kill(zygote.pid, signal.SIGKILL)

    with pytest.raises(TokenFailedError, match="restart kmsd"):
        await call


def children(zygote: Zygote) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text().split()]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.01)


async def test_only_the_module_that_was_chosen_at_the_start_is_loaded(
    zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin, tmp_path: Path
) -> None:
    """A daemon that was taken over cannot have a library of its own loaded beside the PIN."""
    other = tmp_path / "other.so"
    other.write_bytes(b"anything")
    zygote = zygote_with(partial(run_job, module=config.module))

    with pytest.raises(TokenFailedError, match="not the one that kmsd was started with"):
        await Pkcs11Root(zygote, replace(config, module=str(other)), pin).look()
    assert (await Pkcs11Root(zygote, config, pin).look()).label == config.token_label
