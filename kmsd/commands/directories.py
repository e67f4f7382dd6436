"""The directories of a host's daemon: who owns them, and who may look inside."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kmsd.commands.steps import SetupError, tell
from kmsd.config import Config
from kmsd.processes.privileges import Account

_ROOT = 0


def make_directories(config: Config, settings: Path, account: Account) -> None:
    """Make the directories that the settings name; the daemon's own are closed to everybody else."""
    own = (account.uid, account.gid)
    for path in dict.fromkeys((Path(config.paths.state), Path(config.paths.audit).parent)):
        _make(path, own, 0o700)
    # Policies and settings are no secret, and only root changes them.
    for path in dict.fromkeys((settings.parent, Path(config.paths.policies))):
        _make(path, (_ROOT, _ROOT), 0o755)


def _make(path: Path, owner: tuple[int, int], mode: int) -> None:
    is_new = not os.path.lexists(path)
    if is_new:
        # Closed until it has its owner.
        path.mkdir(mode=0o700, parents=True)
        os.chown(path, *owner)
        path.chmod(mode)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise SetupError(f"{path} is there and is no directory: move it away")
    if facts.st_uid != owner[0] and not is_new:
        # An interrupted run leaves an empty directory; anything else is somebody's.
        if any(path.iterdir()):
            raise SetupError(f"{path} belongs to uid {facts.st_uid} and not to uid {owner[0]}: look at what is inside")
        os.chown(path, *owner)
    if stat.S_IMODE(facts.st_mode) & ~mode or is_new:
        path.chmod(mode)
    tell(made=is_new, what=f"{path} (mode {mode:04o}, uid {owner[0]})")
