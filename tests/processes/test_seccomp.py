"""Filters of system calls: what the kernel is told, and that it does so."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.processes import harden_process
from kmsd.processes.profiles import (
    cgroup_calls,
    daemon_calls,
    job_calls,
    lookup_calls,
    program_calls,
    recovery_calls,
    worker_calls,
    zygote_calls,
)
from kmsd.processes.seccomp import MACHINES, Calls, Check, Machine, compile_absence, compile_filter, restrict_calls
from kmsd.processes.syscalls import NEWEST, SYSCALLS
from tests.processes.test_sandbox import in_child

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
PROFILES: dict[str, Callable[[], Calls]] = {
    "daemon": daemon_calls,
    "worker": worker_calls,
    "job": lambda: job_calls(local=False, network=False),
    "job on a network": lambda: job_calls(local=True, network=True),
    "lookups": lookup_calls,
    "programs": program_calls,
    "cgroups": cgroup_calls,
    "recovery job": recovery_calls,
    "zygote": lambda: zygote_calls(network=True),
}
# What nobody may ever do, whatever it is for.
NOBODYS = ("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "pidfd_send_signal")


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), machine: Machine = MACHINES["x86_64"]) -> int:
    """What a filter answers: the few instructions it is made of, as linux/filter.h describes them."""
    data = struct.pack("<IIQ6Q", number, machine.audit_name, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    instructions = list(struct.iter_unpack("HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        match code:
            case 0x20:
                [accumulator] = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"instruction {code:#x}")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_call_of_a_profile_has_a_number(profile: Callable[[], Calls], machine: Machine) -> None:
    """And each call without conditions passes."""
    calls = profile()
    program = compile_filter(calls, machine)

    for name, checks in calls.items():
        number = SYSCALLS[name][machine.column]
        if number is not None and not checks:
            assert run(program, number, machine=machine) == ALLOW, name


def test_the_table_has_no_call_that_nobody_makes() -> None:
    """A number that is not used would never be seen to be wrong."""
    used = {name for profile in PROFILES.values() for name in profile()}

    assert SYSCALLS.keys() - used == {"clone3", "openat2", "faccessat2", "io_uring_setup"}


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_the_kernels(column: int, header: str) -> None:
    """As far as this machine has the kernel's headers."""
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    # __NR3264_ are those that have other names on 32-bit machines.
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", Path(header).read_text()))
    names = {"newfstatat": "fstatat"} if column else {}

    for name, numbers in SYSCALLS.items():
        told = found.get(names.get(name, name))
        assert told is None or int(told) == numbers[column], name


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_nobody_may_execute_or_reach_into_another_process(profile: Callable[[], Calls]) -> None:
    """Not even the zygote."""
    assert not set(NOBODYS) & profile().keys()


@pytest.mark.parametrize("name", sorted(PROFILES.keys() - {"zygote"}))
def test_only_the_zygote_forks(name: str) -> None:
    """The others make threads at the most."""
    program = compile_filter(PROFILES[name](), MACHINES["x86_64"])
    clone, fork, vfork = 56, 57, 58

    assert run(program, clone, (17,)) == run(program, fork) == run(program, vfork) == EPERM  # SIGCHLD: a fork
    assert run(program, clone, (0x3D0F00,)) == (
        EPERM if name in {"worker", "programs", "cgroups", "recovery job"} else ALLOW
    )  # as pthread_create(3) does


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_nobody_makes_namespaces(profile: Callable[[], Calls]) -> None:
    """By clone(2), which some need; unshare(2) and setns(2) are nobody's."""
    program = compile_filter(profile(), MACHINES["x86_64"])

    assert run(program, 56, (0x10000000 | 17,)) == EPERM


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("daemon", set()),
        ("worker", set()),
        ("programs", set()),
        ("cgroups", set()),
        ("recovery job", set()),
        ("job", set()),
        ("lookups", {socket.AF_UNIX}),
        ("job on a network", {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}),
    ],
)
def test_sockets_are_made_only_of_the_families_that_are_needed(name: str, families: set[int]) -> None:
    """socket(2) is 41; 45 families exist."""
    program = compile_filter(PROFILES[name](), MACHINES["x86_64"])

    assert {family for family in range(46) if run(program, 41, (family,)) == ALLOW} == families


@pytest.mark.parametrize("name", sorted(PROFILES.keys() - {"zygote"}))
def test_nobody_has_signals_sent_to_others(name: str) -> None:
    """Not by fcntl(2) (72) with F_SETOWN or F_SETSIG, nor by ioctl(2) (16) with FIOSETOWN, FIOASYNC or SIOCSPGRP."""
    program = compile_filter(PROFILES[name](), MACHINES["x86_64"])

    assert {run(program, 72, (3, command)) for command in (8, 10, 15)} == {EPERM}
    assert {run(program, 72, (3, command)) for command in (1, 2, 3, 4, 6, 1030)} == {ALLOW}
    assert {run(program, 16, (3, request)) for request in (0x8901, 0x8902, 0x5452)} == {EPERM}


def test_a_job_speaks_to_devices_but_not_for_a_terminal() -> None:
    """Any request of ioctl(2), less those that put words into a terminal's mouth."""
    program = compile_filter(PROFILES["job"](), MACHINES["x86_64"])

    assert run(program, 16, (3, 0xC0185500)) == ALLOW  # a request of USB devices
    assert {run(program, 16, (3, request)) for request in (0x5412, 0x541C, 0x540E)} == {EPERM}


@pytest.mark.parametrize("name", ["daemon", "job"])
def test_pairs_of_sockets_speak_to_each_other_only(name: str) -> None:
    """An end of a pair of datagram sockets can send to any socket that has a path."""
    program = compile_filter(PROFILES[name](), MACHINES["x86_64"])
    flags = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    allowed = {kind for kind in range(8) if run(program, 53, (socket.AF_UNIX, kind | flags)) == ALLOW}

    assert allowed == {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}


@pytest.mark.parametrize("name", sorted(PROFILES.keys() - {"zygote"}))
def test_nobody_changes_files_by_their_paths(name: str) -> None:
    """Landlock does not restrict who sets modes, owners and times; a program never gains rights by any of ours."""
    program = compile_filter(PROFILES[name](), MACHINES["x86_64"])
    chmod, fchmod, chown, fchown, lchown, fchownat, fchmodat, utimensat = 90, 91, 92, 93, 94, 260, 268, 280

    assert {run(program, one) for one in (chmod, chown, fchown, lchown, fchownat, fchmodat, utimensat)} == {EPERM}
    assert run(program, fchmod, (3, 0o4755)) == EPERM
    assert run(program, fchmod, (3, 0o600)) == (ALLOW if name in {"daemon", "job", "job on a network"} else EPERM)


@pytest.mark.parametrize("name", ["worker", "recovery job"])
def test_a_worker_runs_no_code_but_its_own(name: str) -> None:
    """Not what a client's file holds either: nothing is mapped to be executed."""
    program = compile_filter(PROFILES[name](), MACHINES["x86_64"])

    assert {run(program, call, (0, 4096, 0x5)) for call in (9, 10)} == {EPERM}  # mmap, mprotect; read and execute
    assert {run(program, call, (0, 4096, 0x3)) for call in (9, 10)} == {ALLOW}


def test_who_looks_names_up_opens_nothing_for_writing() -> None:
    """Whichever flag asks for it."""
    program = compile_filter(PROFILES["lookups"](), MACHINES["x86_64"])

    assert run(program, 257, (0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)) == ALLOW
    for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE | os.O_RDWR):
        assert run(program, 257, (0, 0, flag)) == EPERM


@pytest.mark.parametrize("program", [compile_filter({}, MACHINES["x86_64"]), compile_absence([], MACHINES["x86_64"])])
def test_another_architectures_calls_end_the_process(program: bytes) -> None:
    """A 32-bit call, or one of x32, has other numbers for the same things."""
    assert run(program, 1, machine=Machine(0, 0x40000003)) == KILL  # i386
    assert run(program, 0x40000000 | 1) == KILL


def test_what_is_newer_than_the_table_seems_not_to_be_there() -> None:
    """So that libraries fall back to what they did before; what is known and not allowed is refused."""
    program = compile_filter({}, MACHINES["x86_64"])

    assert run(program, NEWEST + 1) == run(program, SYSCALLS["clone3"][0] or 0) == ENOSYS
    assert run(program, NEWEST) == run(program, 0) == EPERM


def test_hidden_calls_seem_not_to_be_there() -> None:
    """All others are as before."""
    program = compile_absence(["io_uring_setup"], MACHINES["x86_64"])

    assert run(program, 425) == ENOSYS
    assert {run(program, number) for number in range(500) if number != 425} == {ALLOW}


@given(
    checks=st.lists(
        st.builds(
            lambda argument, mask, value: Check(argument, mask, value & mask),
            st.integers(0, 5),
            st.integers(0, 2**64 - 1) | st.sampled_from([0xFFFFFFFF, 0xFFFFFFFF_00000000]),
            st.integers(0, 2**64 - 1),
        ),
        max_size=4,
    ),
    arguments=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
    fitting=st.integers(0, 3),
)
def test_a_call_passes_when_one_of_its_conditions_holds(
    checks: list[Check], arguments: tuple[int, ...], fitting: int
) -> None:
    """Both halves of a 64-bit argument count."""
    given_ = list(arguments)
    if fitting < len(checks):  # chance alone would hardly ever make one hold
        check = checks[fitting]
        given_[check.argument] = given_[check.argument] & ~check.mask | check.value
    program = compile_filter({"read": tuple(checks)}, MACHINES["x86_64"])

    holds = not checks or any(given_[one.argument] & one.mask == one.value for one in checks)

    assert run(program, 0, tuple(given_)) == (ALLOW if holds else EPERM)


def test_a_filter_is_on_threads_that_were_there_before() -> None:
    """A thread that waits while the filter is put on cannot do later what nobody may."""

    def work() -> bool:
        harden_process()
        go, answers = threading.Event(), list[int]()

        def late() -> None:
            go.wait()
            libc = ctypes.CDLL(None, use_errno=True)
            libc.personality(0xFFFFFFFF)
            answers.append(ctypes.get_errno())

        thread = threading.Thread(target=late)
        thread.start()
        restrict_calls(worker_calls())
        go.set()
        thread.join()
        return answers == [errno.EPERM]

    assert in_child(work)


def test_a_process_under_a_filter_may_still_end_and_abort() -> None:
    """A signal to itself is its own affair; nobody else gets one."""

    def work() -> bool:
        harden_process()
        restrict_calls(worker_calls())
        libc = ctypes.CDLL(None, use_errno=True)
        tgkill = SYSCALLS["tgkill"][MACHINES[os.uname().machine].column]
        own = libc.syscall(tgkill, os.getpid(), threading.get_native_id(), 0)
        other = libc.syscall(tgkill, os.getppid(), os.getppid(), 0)
        return (own, other) == (0, -1)

    assert in_child(work)
