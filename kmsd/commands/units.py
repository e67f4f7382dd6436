"""The units of a host's daemon."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kmsd.commands.steps import SetupError, tell
from kmsd.config import DEFAULT_PATH

UNITS = ("kmsd.socket", "kmsd.service")
# There while systemd is PID 1 (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")


def is_booted() -> bool:
    """Whether systemd runs this host."""
    return _BOOTED.is_dir()


def start_units(settings: Path) -> str | None:
    """Have systemd start kmsd now and at each boot; return why it cannot with these `settings`, None if it does."""
    program = shutil.which("systemctl")
    if program is None or not is_booted():
        return "systemd is not running here"
    if settings != DEFAULT_PATH:
        return f"the units {' and '.join(UNITS)} read {DEFAULT_PATH}"
    if _run(program, "cat", *UNITS).returncode:
        return f"the units {' and '.join(UNITS)} are not installed"
    # Asked about several units at once, it is content with any of them.
    if not any(_run(program, asked, unit).returncode for asked in ("is-enabled", "is-active") for unit in UNITS):
        tell(made=False, what="kmsd enabled and running")
        return None
    started = _run(program, "enable", "--now", *UNITS)
    if started.returncode:
        raise SetupError(f"systemctl enable --now failed: {started.stderr.strip()}; see `journalctl -u kmsd`")
    tell(made=True, what="kmsd enabled and running")
    return None


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - systemd's own program
        [program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
