"""The units confine the service as far as systemd can tell, explain themselves, and leave callers' identities alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent.parent / "systemd"
SERVICE = UNITS / "kmsd.service"
ALL = sorted([*UNITS.glob("*.service"), *UNITS.glob("*.socket"), *UNITS.glob("drop-ins/*"), *UNITS.glob("user/*")])
# systemd-analyze counts exposure from 0 to 100 here and prints a tenth of it.
MAX_EXPOSURE = 5

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def directives(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each `Name=value` of a unit, with the line before it."""
    previous = ""
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"([A-Z]\w+)=(.*)", line):
            yield match[1], match[2], previous
        previous = line


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The system's units with a program that exists: systemd asks whether it can be executed."""
    program = tmp_path / "kmsd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in ("kmsd.service", "kmsd.socket", "kmsd-credential.socket"):
        (tmp_path / unit).write_text((UNITS / unit).read_text().replace("/usr/bin/kmsd", str(program)))
    return tmp_path


@needs_analyze
def test_exposure_of_the_service_is_at_most_half_a_point() -> None:
    """As `systemd-analyze security` counts it; 10 is a service without any protection."""
    told = analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", SERVICE)

    assert told.returncode == 0, told.stdout + told.stderr


@needs_analyze
def test_systemd_has_nothing_to_say_about_the_units(installed: Path) -> None:
    """No unknown names, no values it would ignore."""
    units = (installed / name for name in ("kmsd.service", "kmsd.socket", "kmsd-credential.socket"))

    told = analyze("verify", "--man=no", *units)

    said = [line for line in told.stderr.splitlines() if "kmsd" in line]
    assert told.returncode == 0, told.stderr
    assert said == []


@needs_analyze
@pytest.mark.parametrize("drop_in", sorted(UNITS.glob("drop-ins/*.conf")), ids=lambda path: path.stem)
def test_systemd_has_nothing_to_say_about_a_drop_in(installed: Path, drop_in: Path) -> None:
    """Each of them, where it is to be installed."""
    place = installed / "kmsd.service.d"
    place.mkdir()
    shutil.copy(drop_in, place)

    told = analyze("verify", "--man=no", installed / "kmsd.service")

    assert [line for line in told.stderr.splitlines() if "kmsd." in line or drop_in.name in line] == []


@pytest.mark.parametrize("unit", ALL, ids=lambda path: str(path.relative_to(UNITS)))
def test_every_line_of_a_unit_is_explained(unit: Path) -> None:
    """By a comment right above it."""
    unexplained = [name for name, _, previous in directives(unit) if not previous.startswith("# ")]

    assert unexplained == []
    assert list(directives(unit))


@pytest.mark.parametrize("unit", ALL, ids=lambda path: str(path.relative_to(UNITS)))
def test_callers_identities_are_left_alone(unit: Path) -> None:
    """In a user namespace of its own, the service would take every caller for the overflow uid."""
    assert "PrivateUsers" not in {name for name, _, _ in directives(unit)}


def test_no_unit_lets_processes_read_each_other() -> None:
    """What a debugger would call is removed by name; what kmsd protects itself with is allowed by name."""
    for unit in (SERVICE, UNITS / "user" / "kmsd.service"):
        filters = [value for name, value, _ in directives(unit) if name == "SystemCallFilter"]
        removed = {call for value in filters if value.startswith("~") for call in value[1:].split()}
        kept = {call for value in filters if not value.startswith("~") for call in value.split()}
        assert {"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "userfaultfd"} <= removed
        assert {"memfd_secret", "landlock_restrict_self", "seccomp"} <= kept
