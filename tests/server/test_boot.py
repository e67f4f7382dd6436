"""Which boot of the host it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsd.config import ConfigurationError
from kmsd.server.boot import host_boot_id, host_uptime

KERNELS = "3f6c9a52-7d1e-4b8f-9c0a-5e2d8b7f1a34\n"
SYSTEMDS = "3f6c9a527d1e4b8f9c0a5e2d8b7f1a34"


def test_the_kernel_and_the_service_manager_name_it_alike(tmp_path: Path) -> None:
    """The one is asked where it can be, and a daemon that is started the other way knows its boot again."""
    path = tmp_path / "boot_id"
    assert host_boot_id({"KMSD_BOOT_ID": SYSTEMDS}, path) == SYSTEMDS
    path.write_text(KERNELS)
    assert host_boot_id({"KMSD_BOOT_ID": "0" * 32}, path) == SYSTEMDS


@pytest.mark.parametrize("environment", [{}, {"KMSD_BOOT_ID": ""}])
def test_nothing_starts_that_does_not_know_its_boot(tmp_path: Path, environment: dict[str, str]) -> None:
    """The message says what a unit needs."""
    with pytest.raises(ConfigurationError, match="Environment=KMSD_BOOT_ID=%b"):
        host_boot_id(environment, tmp_path / "boot_id")


def test_this_host_has_one() -> None:
    """And has been up for some time in it."""
    assert len(host_boot_id()) == 32
    assert 0 < host_uptime() <= host_uptime()


def test_the_unit_says_it() -> None:
    """Its own /proc has processes and nothing else."""
    unit = (Path(__file__).parent.parent.parent / "systemd" / "kmsd.service").read_text(encoding="utf-8")

    assert "\nProcSubset=pid\n" in unit
    assert "\nEnvironment=KMSD_BOOT_ID=%b\n" in unit
