"""Packages for the tests of this folder."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Builds the package with a revision, once each."""
    if missing := [tool for tool in ("dpkg-deb", "/usr/bin/python3") if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: Debian packages are built on Debian")
    output = tmp_path_factory.mktemp("packages")

    @cache
    def build_revision(revision: int) -> Path:
        command = [sys.executable, "-m", "systemd.debian.build", "--revision", str(revision), "--output", str(output)]
        return Path(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())

    return build_revision
