"""The service's user and groups on this host."""

from __future__ import annotations

import grp
import pwd
import shutil
import subprocess
from pathlib import Path

from kmsd.commands.steps import SetupError, tell

# What the package brings for systemd-sysusers(8).
_SYSUSERS = Path("/usr/lib/sysusers.d/kmsd.conf")
# Administration programs are not on everybody's PATH.
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
ADMINISTRATORS = "kms-admin"
# Whom the shipped host policy lets make keys, and read the audit trail.
USERS = "kms-users"
AUDITORS = "kms-auditors"
_GROUPS = (ADMINISTRATORS, USERS, AUDITORS)


def make_accounts(user: str, home: str) -> None:
    """Make the groups of administrators, users and auditors, and the system user `user` with a group of its own."""
    missing = [group for group in _GROUPS if not _group_exists(group)]
    is_new = not _user_exists(user)
    if missing or is_new:
        if shutil.which("systemd-sysusers", path=_PATH) and _SYSUSERS.is_file():
            _run("systemd-sysusers", str(_SYSUSERS))
        # What the package's file does not name: another user, a group that somebody removed.
        for group in missing:
            if not _group_exists(group):
                _run("groupadd", "--system", group)
        if not _user_exists(user):
            _run(
                "useradd",
                *("--system", "--user-group", "--no-create-home", "--home-dir", home),
                *("--shell", "/usr/sbin/nologin", "--comment", "kmsd key daemon", user),
            )
    tell(made=is_new, what=f"user {user}")
    for group in _GROUPS:
        tell(made=group in missing, what=f"group {group}")


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _run(program: str, *arguments: str) -> None:
    found = shutil.which(program, path=_PATH)
    if found is None:
        raise SetupError(f"{program} is not installed (Debian: passwd), so users and groups cannot be made")
    ran = subprocess.run(  # noqa: S603 - a program of the system, found in its own folders
        [found, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if ran.returncode:
        raise SetupError(f"{program} failed: {ran.stderr.strip() or f'exit code {ran.returncode}'}")
