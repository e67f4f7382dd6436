"""What an administrator sees and does when the host's clock is not believed, on real parts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.dev_daemon import DevDaemon

# In there it is two days later by the time since boot, and the clock is the same.
LATER = ("unshare", "--time", "--boottime", str(2 * 24 * 3600))


def test_a_clock_that_fell_behind_is_told_and_confirmed(short_path: Path, prepared: Path) -> None:
    """By the time since boot, which nobody can set, more has passed than by the clock, until somebody confirms that."""
    if subprocess.run([*LATER, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this host lets nobody make time namespaces")
    before = DevDaemon(shutil.copytree(prepared, short_path / "d"))
    daemon = DevDaemon(before.directory, within=LATER)

    def said(command: str) -> str:
        return daemon.run(*command.split(), cwd=short_path).stdout.decode()

    try:
        before.start()
        before.run("kms", "clock", "confirm", "--yes", cwd=short_path)  # so that a time is kept, however soon it stops
        before.stop()
        daemon.start()
        assert said("kms clock").startswith("state:   in doubt: it is behind the time that is sure to have passed\n")
        assert "kmsd has it in doubt: it is behind" in said("kms doctor")
        assert said("kms clock confirm --yes").startswith("the certain time was ")
        assert "clock:         trusted\n" in said("kms status")
        daemon.stop()
    finally:
        before.end()
        daemon.end()
