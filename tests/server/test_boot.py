"""Which boot of the host this is: `kmsd.server.boot`."""

from __future__ import annotations

from pathlib import Path

from kmsd.server.boot import BOOT_ID_VARIABLE, host_boot_id

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNIT = Path(__file__).parent.parent.parent / "systemd" / "kmsd.service"


def test_the_boot_has_one_name_whoever_says_it() -> None:
    """systemd writes it without dashes; one start by the unit and one by hand must not look like two boots."""
    assert host_boot_id({}) == BOOT_ID.read_text().strip().replace("-", "")
    assert host_boot_id({BOOT_ID_VARIABLE: "0a5e"}) == host_boot_id({BOOT_ID_VARIABLE: "0a-5e\n"}) == "0a5e"


def test_the_unit_says_it() -> None:
    """Its own /proc has processes and nothing else."""
    text = UNIT.read_text()

    assert "\nProcSubset=pid\n" in text
    assert f"\nEnvironment={BOOT_ID_VARIABLE}=%b\n" in text
