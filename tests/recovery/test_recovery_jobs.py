"""Shares are put together in a process that opens nothing, lives for one request and may go wrong."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from kmsd.api.errors import DependencyTimeoutError, RecoverySharesError, RecoveryUnavailableError
from kmsd.memory.page import PAGE_BYTES
from kmsd.processes.confinement import Confinement
from kmsd.processes.landlock import Reach
from kmsd.processes.profiles import recovery_calls
from kmsd.processes.sandbox import harden_process
from kmsd.processes.zygote import Entry, Zygote
from kmsd.recovery.job import RECOVERY_ENTRY, run_recovery_job
from kmsd.recovery.jobs import RecoveryJobs, shares_page
from kmsd.recovery.shares import split

KEY = bytes(range(32))
SHARES = split(KEY, threshold=2, count=3)
ZygoteWith = Callable[[Entry], Zygote]


def confine() -> None:
    harden_process()
    Confinement("recovery-job", recovery_calls, reach=Reach, required=False, descriptors=16).enter()


@pytest.fixture
async def zygote_with() -> AsyncIterator[ZygoteWith]:
    """Starts zygotes whose recovery jobs run the given entry."""
    started: list[Zygote] = []

    def start(entry: Entry) -> Zygote:
        started.append(Zygote.start({RECOVERY_ENTRY: entry}))
        return started[-1]

    yield start
    for zygote in started:
        await zygote.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def combined(zygote: Zygote, text: bytes, deadline_seconds: float = 60.0) -> bytes:
    """The key that `text` gives; nothing stays open whatever comes of it."""
    before = open_descriptors()
    jobs = RecoveryJobs(zygote, deadline_seconds=deadline_seconds)
    try:
        with shares_page(memoryview(text)) as page, await jobs.combine(page) as key:
            assert page.fd == key.fd == -1
            return bytes(key.view[:32])
    finally:
        assert open_descriptors() <= before


async def test_a_confined_job_makes_the_key_of_shares(zygote_with: ZygoteWith) -> None:
    """It opens no file once it is confined, and one zygote makes as many as are wanted."""
    zygote = zygote_with(partial(run_recovery_job, ready=confine))

    assert await combined(zygote, "\n".join(SHARES[1:]).encode()) == KEY
    assert await combined(zygote, "\n".join(SHARES).upper().encode()) == KEY


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "there is no share"),
        (b"\n \n", "there is no share"),
        (SHARES[0].encode(), "2 shares are needed, and there are 1: bring 1 more"),
        (b"\xff\xfe" * 100, "the shares are not text"),
        (b"\x00" * 4094, "share 1 has 1 words"),
        (b"academic " * 400, "share 1 has more words"),
    ],
    ids=["empty", "blank", "too few", "no text", "zeros", "no lines"],
)
async def test_what_is_wrong_with_shares_crosses_back(zygote_with: ZygoteWith, text: bytes, words: str) -> None:
    """In the job's own words."""
    with pytest.raises(RecoverySharesError) as refused:
        await combined(zygote_with(partial(run_recovery_job, ready=confine)), text)

    assert words in refused.value.message


def test_more_than_a_page_is_refused_before_a_job_is_made() -> None:
    with pytest.raises(RecoverySharesError, match="at most 4094 bytes"):
        shares_page(memoryview(bytes(PAGE_BYTES - 1)))


def crash(descriptors: list[int]) -> None:
    os.kill(os.getpid(), 11)


def fail(descriptors: list[int]) -> None:
    raise ZeroDivisionError


def hang(descriptors: list[int]) -> None:
    time.sleep(60)


def babble(descriptors: list[int]) -> None:
    with socket.socket(fileno=descriptors[0]) as channel:
        channel.send(b"\xff" * 100)


@pytest.mark.parametrize(
    ("entry", "error"),
    [(crash, RecoveryUnavailableError), (fail, RecoveryUnavailableError), (babble, RecoverySharesError)],
)
async def test_a_job_that_ends_otherwise_gives_no_key(
    zygote_with: ZygoteWith, entry: Entry, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await combined(zygote_with(entry), SHARES[0].encode())


async def test_a_job_that_hangs_is_ended(zygote_with: ZygoteWith) -> None:
    """Its process too."""
    zygote = zygote_with(hang)

    with pytest.raises(DependencyTimeoutError, match=r"within 0\.05 s"):
        await combined(zygote, SHARES[0].encode(), deadline_seconds=0.05)

    while zygote._running:
        await zygote.ping()


async def test_without_a_zygote_there_is_no_job(zygote_with: ZygoteWith) -> None:
    zygote = zygote_with(run_recovery_job)
    await zygote.close()

    with pytest.raises(RecoveryUnavailableError, match="restart kmsd"):
        await combined(zygote, SHARES[0].encode())
