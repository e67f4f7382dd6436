"""A host whose store was founded with a recovery key, as `kmsd init` does it, but as whoever runs the tests.

`python -m tests.support.founded_host CONFIG` is the process that makes the store, with the key on standard input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kmsd.config import load_config
from kmsd.memory.page import Page
from kmsd.recovery import RECOVERY_KEY_BYTES
from kmsd.server.daemon import run_daemon
from kmsd.server.deployment import founding, pin_source
from tests.support.host_daemon import HostDaemon


def found(daemon: HostDaemon, recovery_key: bytes) -> None:
    """Make the daemon's store and trail anew, with a recovery key; its token stays."""
    for left in (*daemon.directory.glob("store.sqlite*"), *daemon.directory.glob("audit.log*")):
        left.unlink()
    config = daemon.directory / "kmsd.toml"
    subprocess.run(
        [sys.executable, "-m", "tests.support.founded_host", str(config)],
        input=recovery_key,
        capture_output=True,
        check=True,
        timeout=60,
    )


def main(path: Path) -> None:
    config = load_config(path)
    page = Page.create()
    assert os.readv(sys.stdin.fileno(), [page.view[:RECOVERY_KEY_BYTES]]) == RECOVERY_KEY_BYTES
    pin = pin_source(config.hsm.pin, None)
    assert pin is not None
    run_daemon(founding(config, pin, lambda: page.view[:RECOVERY_KEY_BYTES]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
