"""Putting protections on, and telling what is there."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from kmsd.processes import Zygote, harden_process
from kmsd.processes import confinement as module
from kmsd.processes.capabilities import drop_capabilities, held_capabilities
from kmsd.processes.confinement import Confinement, ConfinementError, Finding, Protection, State
from kmsd.processes.landlock import LandlockUnavailableError, Reach
from kmsd.processes.profiles import daemon_calls
from kmsd.processes.seccomp import SeccompUnavailableError
from kmsd.processes.selfcheck import check_entry, inspect_children, reporting
from kmsd.processes.swap import SwapPossibleError
from tests.processes.test_sandbox import in_child


def confinement(*, required: bool = False, reach: Callable[[], Reach] | None = Reach) -> Confinement:
    # The calls of one that opens files: without openat(2) it would not matter which.
    return Confinement("worker", daemon_calls, reach=reach, required=required, descriptors=32)


def report_of(work: Callable[[], Confinement]) -> dict[Protection, Finding]:
    """What a child finds after `work`."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def child() -> bool:
            theirs.send(msgspec.json.encode(work().report()))
            return True

        assert in_child(child)
        found = msgspec.json.decode(ours.recv(1 << 16), type=tuple[Finding, ...])
    return {one.protection: one for one in found}


def entered() -> Confinement:
    harden_process()
    one = confinement()
    one.enter()
    return one


def test_a_confined_process_finds_every_protection() -> None:
    """The kernel says so, from inside."""
    found = report_of(entered)

    assert {one.process for one in found.values()} == {"worker"}
    assert [
        one for one in found.values() if one.state is not State.ON and one.protection is not Protection.NO_SWAP
    ] == []


def test_a_process_that_was_not_confined_finds_none() -> None:
    """What was not put on is not claimed."""
    found = report_of(confinement)

    expected = {Protection.NO_NEW_CODE, Protection.CALLS, Protection.FILES, Protection.NO_SWAP}
    assert {name for name, one in found.items() if one.state is State.OFF} >= expected


@pytest.mark.parametrize(
    ("name", "fault", "protection", "state"),
    [
        ("restrict_files", LandlockUnavailableError("no Landlock here"), Protection.FILES, State.UNAVAILABLE),
        ("restrict_calls", SeccompUnavailableError("no seccomp here"), Protection.CALLS, State.UNAVAILABLE),
        ("rule_out_swap", SwapPossibleError("there is swap"), Protection.NO_SWAP, State.OFF),
        ("drop_capabilities", PermissionError(1, "kept"), Protection.NO_CAPABILITIES, State.OFF),
        ("_refuse_new_code", OSError(22, "it needs Linux 6.3"), Protection.NO_NEW_CODE, State.UNAVAILABLE),
    ],
)
def test_what_cannot_be_had_is_told_or_required(
    name: str, fault: Exception, protection: Protection, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its reason; where it is required, the process does not go on."""

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(module, name, fail)

    def strict() -> bool:
        harden_process()
        try:
            confinement(required=True).enter()
        except ConfinementError as error:
            return str(error).startswith(f"worker: {protection}: ")
        return False

    if protection is not Protection.NO_CAPABILITIES or os.geteuid() == 0:
        found = report_of(entered)[protection]
        assert found.state is state
        assert str(fault) in found.reason
    assert in_child(strict)


@pytest.mark.root
def test_dropped_capabilities_do_not_come_back() -> None:
    """Root without them owns what is root's, and has no power over others."""

    def work() -> bool:
        harden_process()
        drop_capabilities()
        if held_capabilities():
            return False
        try:
            os.setresuid(12345, 12345, 12345)
        except PermissionError:
            return True
        return False

    assert held_capabilities()
    assert in_child(work)


@pytest.fixture
def limited() -> Callable[[list[int]], None]:
    """An entry that tells how many descriptors it may have."""

    def entry(descriptors: list[int]) -> None:
        confinement().restrict_process()
        opened = [os.dup(descriptors[0]) for _ in range(64)]
        os.write(descriptors[0], b"%d" % len(opened))

    return entry


def test_the_self_check_asks_a_child_of_each_kind(limited: Callable[[list[int]], None]) -> None:
    """A child that cannot tell counts as unprotected; one that goes over its descriptors ends."""
    good, bad = confinement(), confinement()

    def fail() -> None:
        sys.exit(3)

    zygote = Zygote.start(
        {
            check_entry("good"): reporting(good, good.enter),
            check_entry("bad"): reporting(bad, fail),
            "limited": limited,
        },
        partial(harden_process),
    )

    async def look() -> tuple[tuple[Finding, ...], int]:
        found = await inspect_children(zygote, ["good", "bad"])
        read, write = os.pipe()
        code = await (await zygote.spawn("limited", [write])).wait()
        os.close(read)
        os.close(write)
        await zygote.close()
        return found, code

    found, code = asyncio.run(look())

    assert {one.protection for one in found if one.process == "worker"} >= {Protection.CALLS, Protection.FILES}
    [unknown] = [one for one in found if one.process == "bad"]
    assert (unknown.protection, unknown.state) == (Protection.CALLS, State.OFF)
    assert "self-check" in unknown.reason
    assert code == 1


def test_swap_is_ruled_out_by_the_control_group_by_locking_or_by_its_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where none of these holds, the error tells what to change."""
    from kmsd.processes import swap

    own, groups = tmp_path / "cgroup", tmp_path / "fs"
    (groups / "system.slice" / "kmsd.service").mkdir(parents=True)
    limit = groups / "system.slice" / "kmsd.service" / "memory.swap.max"
    own.write_text("9:name=systemd:/\n0::/system.slice/kmsd.service\n")
    monkeypatch.setattr(swap, "_OWN_GROUP", own)
    monkeypatch.setattr(swap, "_GROUPS", groups)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr(swap, "_has_swap", lambda: False)
    limit.write_text("max\n")

    assert "no swap" in swap.rule_out_swap()

    monkeypatch.setattr(swap, "_has_swap", lambda: True)
    with pytest.raises(SwapPossibleError, match="MemorySwapMax=0"):
        swap.rule_out_swap()

    limit.write_text("0\n")
    assert "memory.swap.max" in swap.rule_out_swap()


def test_whether_the_host_has_swap_is_what_proc_says() -> None:
    """Where /proc/swaps can be read, it has a line for each area behind its heading."""
    from kmsd.processes import swap

    areas = Path("/proc/swaps").read_text().splitlines()[1:]

    assert swap._has_swap() == bool(areas)
