"""`kmsd check-config`: what is wrong with the settings, as far as that can be seen without starting anything.

It looks at the file, and at what the file names on this host: folders, the user and groups, the module, the PIN's file,
the host policies. All problems are told, not the first alone. What only root or the service's user may see
is passed over for others.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kmsd.access.host import HostPolicy, HostPolicyError
from kmsd.config import Config
from kmsd.identity.principals import SystemNames

_EXIT_PROBLEMS = 1
# Policies may name the account only as a pattern or by its ARN; which account it is, the store knows.
_ANY_ACCOUNT = "000000000000"


class Problem(NamedTuple):
    """What is wrong, and what to do about it."""

    setting: str
    what: str
    remedy: str


def run_check(config: Config, path: Path) -> int:
    """Print the problems of settings that were read from `path`; return the exit code."""
    problems = list(find_problems(config))
    for problem in problems:
        print(f"{problem.setting}: {problem.what}")
        print(f"    -> {problem.remedy}")
    if problems:
        print(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return _EXIT_PROBLEMS
    print(f"{path}: no problem was found")
    return 0


def find_problems(config: Config) -> Iterator[Problem]:
    """Yield what would keep a daemon with these settings from starting, or from what they are meant for."""
    yield from _accounts(config)
    yield from _folders(config)
    yield from _token(config)
    yield from _pin(config)
    yield from _policies(config)


def _accounts(config: Config) -> Iterator[Problem]:
    try:
        if pwd.getpwnam(config.user).pw_uid == 0:
            yield Problem("user", f"{config.user} is root", "name a user that has no rights of its own")
    except KeyError:
        yield Problem("user", f"there is no user {config.user}", "run `kmsd init`, or correct the name")
    for group in config.administrators.groups:
        try:
            grp.getgrnam(group)
        except KeyError:
            yield Problem(
                "administrators.groups", f"there is no group {group}", f"groupadd --system {group}, or correct the name"
            )
    if not config.administrators.uids and not config.administrators.groups:
        yield Problem("administrators", "nobody is one", "name a uid or a group: nobody could unseal kmsd")


def _folders(config: Config) -> Iterator[Problem]:
    owner = _uid_of(config.user)
    for setting, folder in (
        ("paths.state", Path(config.paths.state)),
        ("paths.audit", Path(config.paths.audit).parent),
    ):
        facts = _facts(folder)
        if facts is None and not _is_missing(folder):
            continue
        if facts is None:
            yield Problem(setting, f"{folder} is not there", "run `kmsd init`, or make it for the service's user")
        elif not stat.S_ISDIR(facts.st_mode):
            yield Problem(setting, f"{folder} is no directory", "correct the path")
        elif owner is not None and facts.st_uid != owner:
            yield Problem(setting, f"{folder} belongs to uid {facts.st_uid}", f"chown {config.user} {folder}")
        elif stat.S_IMODE(facts.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            yield Problem(setting, f"others may look into {folder}", f"chmod 700 {folder}")


def _token(config: Config) -> Iterator[Problem]:
    hsm = config.hsm
    if not hsm.module:
        yield Problem("hsm.module", "no PKCS#11 library is named", "run `kmsd init`, or name the library of the token")
    elif not Path(hsm.module).is_absolute():
        yield Problem("hsm.module", f"{hsm.module} is no whole path", "begin it with /")
    elif not Path(hsm.module).is_file():
        yield Problem("hsm.module", f"{hsm.module} is not there", "install it, or correct the path")
    if not hsm.token_label:
        yield Problem("hsm.token_label", "no token is named", "set the label of the token that holds the root key")
    if hsm.when_lost == "seal" and not hsm.check_seconds:
        yield Problem("hsm.when_lost", "nobody would notice the loss", "set hsm.check_seconds as well")
    named = [("hsm.environment", value) for value in hsm.environment.values() if Path(value).is_absolute()]
    named += [("hsm.readable_paths", path) for path in hsm.readable_paths]
    named += [("hsm.writable_paths", path) for path in hsm.writable_paths]
    for setting, path in named:
        if not Path(path).is_absolute():
            yield Problem(setting, f"{path} is no whole path", "begin it with /")
        elif _is_missing(Path(path)):
            yield Problem(setting, f"{path} is not there", "make it, or correct the path")


def _pin(config: Config) -> Iterator[Problem]:
    kind, _, value = config.hsm.pin.partition(":")
    if kind != "file" or (facts := _facts(Path(value))) is None:
        if kind == "file" and _is_missing(Path(value)):
            yield Problem("hsm.pin", f"{value} is not there", "make it, readable for the service's user alone")
        return
    if not stat.S_ISREG(facts.st_mode):
        yield Problem("hsm.pin", f"{value} is no regular file", "correct the path")
    elif stat.S_IMODE(facts.st_mode) & stat.S_IRWXO:
        yield Problem("hsm.pin", f"everyone may read or write {value}", f"chmod o= {value}")


def _policies(config: Config) -> Iterator[Problem]:
    try:
        HostPolicy.load(Path(config.paths.policies), account=_ANY_ACCOUNT, names=SystemNames())
    except HostPolicyError as error:
        yield Problem("paths.policies", str(error), "correct the policy: kmsd does not start with it")


def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _facts(path: Path) -> os.stat_result | None:
    """Return what is at `path`; None where nothing is, or where one may not look."""
    try:
        return path.stat()
    except OSError:
        return None


def _is_missing(path: Path) -> bool:
    """Tell whether it is certain that nothing is there: a folder that one may not enter hides what is in it."""
    try:
        path.stat()
    except PermissionError:
        return False
    except OSError:
        return True
    return False
