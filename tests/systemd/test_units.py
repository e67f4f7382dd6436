"""The units confine the service as far as systemd can tell, explain themselves, and leave callers' identities alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd_client.cli.metrics import ANSWER_SECONDS

UNITS = Path(__file__).parent.parent.parent / "systemd"
SERVICE = UNITS / "kmsd.service"
EVENTS = UNITS / "kmsd-events.service"
METRICS = UNITS / "kmsd-metrics.service"
SYSTEM = sorted(path for kind in ("service", "socket", "timer") for path in UNITS.glob(f"*.{kind}"))
ALL = sorted([*SYSTEM, *UNITS.glob("drop-ins/*"), *UNITS.glob("user/*")])
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
    for name in ("kms", "kmsd"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    for unit in SYSTEM:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/kms", f"{tmp_path}/kms"))
    return tmp_path


@needs_analyze
@pytest.mark.parametrize("service", sorted(UNITS.glob("*.service")), ids=lambda path: path.stem)
def test_exposure_of_a_service_is_at_most_half_a_point(service: Path) -> None:
    """As `systemd-analyze security` counts it; 10 is a service without any protection."""
    told = analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", service)

    assert told.returncode == 0, told.stdout + told.stderr


@needs_analyze
def test_systemd_has_nothing_to_say_about_the_units(installed: Path) -> None:
    """No unknown names, no values it would ignore."""
    units = (installed / unit.name for unit in SYSTEM)

    told = analyze("verify", "--man=no", *units)

    said = [line for line in told.stderr.splitlines() if "kmsd" in line]
    assert told.returncode == 0, told.stderr
    assert said == []


@needs_analyze
@pytest.mark.parametrize("drop_in", sorted(UNITS.glob("drop-ins/*.conf")), ids=lambda path: path.stem)
def test_systemd_has_nothing_to_say_about_a_drop_in(installed: Path, drop_in: Path) -> None:
    """Each of them, where it is to be installed."""
    service = EVENTS.name if drop_in.stem.startswith("events-") else SERVICE.name
    place = installed / f"{service}.d"
    place.mkdir()
    (place / drop_in.name).write_text(drop_in.read_text().replace("/usr/bin/kms", f"{installed}/kms"))

    told = analyze("verify", "--man=no", installed / service)

    assert [line for line in told.stderr.splitlines() if service in line or drop_in.name in line] == []


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


def test_metrics_go_where_only_their_unit_writes() -> None:
    """Under the name that the collector looks for, in a directory that outlives each run."""
    found = {name: value for name, value, _ in directives(METRICS)}

    assert found["ExecStart"] == "/usr/bin/kms metrics --textfile /run/kmsd-metrics/kmsd.prom"
    assert (found["RuntimeDirectory"], found["RuntimeDirectoryPreserve"]) == ("kmsd-metrics", "yes")
    # A daemon that hangs is told before systemd ends the command.
    assert int(found["TimeoutStartSec"]) > 2 * ANSWER_SECONDS
    assert found["RuntimeDirectoryMode"] == "0755"
    assert re.search(rf"^u {found['User']} ", (UNITS / "kmsd.sysusers").read_text(), re.MULTILINE)


def test_events_go_on_where_they_were() -> None:
    """In the journal or by mail, from a position that outlives each run; and the unit stops with kmsd, behind it."""
    found = {name: value for name, value, _ in directives(EVENTS)}
    mailing = [value for name, value, _ in directives(UNITS / "drop-ins/events-by-mail.conf") if name == "ExecStart"]

    assert found["ExecStart"] == "/usr/bin/kms events --follow --log --position %S/kmsd-events/position"
    assert mailing == ["", f"{found['ExecStart']} --mail root"]
    assert (found["DynamicUser"], found["StateDirectory"]) == ("yes", "kmsd-events")
    assert (found["PartOf"], found["Before"], found["WantedBy"]) == (SERVICE.name, SERVICE.name, SERVICE.name)


@pytest.mark.parametrize(("unit", "action"), [(METRICS, "kms:GetMetrics"), (EVENTS, "kms:SubscribeEvents")])
def test_the_shipped_host_policy_knows_the_unit(unit: Path, action: str) -> None:
    """It runs as nobody who would be an administrator."""
    statements = json.loads((UNITS.parent / "kmsd" / "access" / "host_policy.json").read_text())["Statement"]

    [principals] = [one["Principal"]["Unix"] for one in statements if one["Action"] == action]
    assert f"unit:{unit.name}" in principals
