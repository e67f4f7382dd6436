"""Control groups by number, in trees of folders that stand for the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsd.identity import cgroups as module
from kmsd.identity.cgroups import Cgroups


class Host:
    """A host with control groups and processes in them."""

    def __init__(self, folder: Path) -> None:
        self.root, self.proc = folder / "cgroup", folder / "proc"
        self.root.mkdir()
        self.proc.mkdir()
        (self.root / "cgroup.controllers").touch()
        self.now = 0.0
        self.slept: list[float] = []
        self.cgroups = Cgroups(self.root, self.proc, clock=lambda: self.now, sleep=self.slept.append)

    def group(self, path: str) -> int:
        """Make a group, and return its number."""
        made = self.root / path.removeprefix("/")
        made.mkdir(parents=True, exist_ok=True)
        return made.stat().st_ino

    def show(self, pid: int, path: str) -> None:
        """Have /proc say that a process is in a group."""
        (self.proc / str(pid)).mkdir(exist_ok=True)
        (self.proc / str(pid) / "cgroup").write_text(f"0::{path}\n")

    def path_of(self, pid: int, cgroup_id: int | None) -> str | None:
        return self.cgroups.paths_of([(pid, cgroup_id)])[0]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


A = "/system.slice/a.service"


def test_a_group_is_found_by_its_number(host: Host) -> None:
    """Also deep below its unit, and where /proc shows no process."""
    deep = f"{A}/x/y/z"
    numbers = {path: host.group(path) for path in (deep, A, "/system.slice", "/user.slice/user-1.slice/s.scope", "/")}

    assert host.cgroups.paths_of([(1, number) for number in numbers.values()]) == [*numbers]


def test_a_number_that_no_group_has_is_not_found(host: Host) -> None:
    """A group above our own view, or one that was removed."""
    assert host.path_of(1, 2**40) is None


def test_what_proc_shows_is_believed_where_the_number_is_the_same(host: Host) -> None:
    """Without reading the tree; the pid may be another process's by now."""
    number = host.group(A)
    host.show(1, A)
    host.show(2, "/system.slice/b.service")
    host.group("/system.slice/b.service")

    assert host.path_of(1, number) == A
    assert host.path_of(2, number) == A


def test_on_kernels_that_tell_no_number_proc_is_asked(host: Host) -> None:
    """And where it hides the process, nothing is known."""
    host.show(1, A)

    assert host.path_of(1, None) == A
    assert host.path_of(2, None) is None


def test_without_the_unified_hierarchy_the_number_says_nothing(host: Host) -> None:
    """There every process is at its top."""
    (host.root / "cgroup.controllers").unlink()
    host.show(1, A)

    assert host.path_of(1, host.group("/")) == A
    assert host.path_of(2, host.group("/")) is None


def test_a_new_group_is_found_after_the_tree_was_read(host: Host) -> None:
    """One that is not known yet has the tree read again, and none that is known."""
    first = host.group(A)
    assert host.path_of(1, first) == A
    second = host.group("/system.slice/b.service")

    assert host.path_of(1, second) == "/system.slice/b.service"


def test_reading_the_tree_takes_a_part_of_the_time_only(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for what is not there waits for three times as long as the last reading took."""

    def slowly(self: Cgroups) -> dict[int, str]:
        del self
        host.now += 0.5
        return {}

    monkeypatch.setattr(Cgroups, "_all", slowly)
    host.path_of(1, 2**40)
    host.path_of(1, 2**40)

    assert host.slept == [0.0, 1.5]


def test_many_that_are_not_there_have_the_tree_read_once(host: Host) -> None:
    """Who asks meanwhile is answered together."""
    host.cgroups.paths_of([(1, 2**40 + number) for number in range(100)])

    assert len(host.slept) == 1


def test_who_makes_groups_without_end_hides_only_his_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many folders are read below each unit."""
    monkeypatch.setattr(module, "_MAX_FOLDERS_BELOW_A_UNIT", 10)
    manager = "/user.slice/user-1000.slice/user@1000.service"
    made = [host.group(f"{manager}/{number}/x") for number in range(30)]
    unit, deep = host.group(A), host.group(f"{A}/x/y")

    found = host.cgroups.paths_of([(1, number) for number in (unit, deep, *made)])

    assert found[:2] == [A, f"{A}/x/y"]
    assert None in found[2:]


def test_reading_the_tree_has_an_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever host."""
    monkeypatch.setattr(module, "_MAX_FOLDERS", 20)
    for number in range(40):
        host.group(f"/system.slice/{number}.slice/{number}.service/x")

    assert host.path_of(1, 2**40) is None
    assert len(host.cgroups._paths) < 100
