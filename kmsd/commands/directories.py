"""The directories of a host's daemon: who owns them, and who may look inside."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kmsd.commands.steps import SetupError, tell
from kmsd.config import Config
from kmsd.processes.privileges import Account

_ROOT = 0
# The mode of a directory that has not been given its owner yet.
_CLOSED = 0o700


def make_directories(config: Config, settings: Path, account: Account) -> None:
    """Make the directories that the settings name; the daemon's own are closed to everybody else."""
    own = (account.uid, account.gid)
    for path in dict.fromkeys((Path(config.paths.state), Path(config.paths.audit).parent)):
        _make(path, own, 0o700)
    # Policies and settings are no secret, and only root changes them.
    for path in dict.fromkeys((settings.parent, Path(config.paths.policies))):
        _make(path, (_ROOT, _ROOT), 0o755)


def _make(path: Path, owner: tuple[int, int], mode: int) -> None:
    _check_way(path, owner[0])
    if not os.path.lexists(path):
        # Closed until it has its owner.
        path.mkdir(mode=_CLOSED, parents=True)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise SetupError(f"{path} is there and is no directory: move it away")
    found = stat.S_IMODE(facts.st_mode)
    # So a run leaves it that was interrupted here; anything else is somebody's.
    is_new = facts.st_uid == _ROOT and found == _CLOSED and not any(path.iterdir())
    if is_new:
        os.chown(path, *owner, follow_symlinks=False)
        path.chmod(mode)
    elif facts.st_uid != owner[0]:
        raise SetupError(
            f"{path} belongs to uid {facts.st_uid} and not to uid {owner[0]}: look at what it is, and give it away "
            f"with chown, or name another directory in the settings"
        )
    elif found & ~mode:
        path.chmod(found & mode)
    tell(made=is_new, what=f"{path} (mode {path.stat().st_mode & 0o7777:04o}, uid {owner[0]})")


def _check_way(path: Path, owner: int) -> None:
    """Refuse a place where somebody else could put another directory in this one's place."""
    way = path.parent.resolve()
    for folder in (way, *way.parents):
        if not folder.exists():
            continue
        facts = folder.stat()
        open_to_all = facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX
        if facts.st_uid not in {_ROOT, owner} or open_to_all:
            raise SetupError(f"{path} is in {folder}, where others than root can replace it: name another place")
