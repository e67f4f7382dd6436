"""`kmsd check-config`: everything that is wrong with the settings, as far as it shows without the token."""

from __future__ import annotations

import grp
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from kmsd.access.host import HostPolicy, HostPolicyError
from kmsd.config import SOCKET_PATH_BYTES, Config, find_problems, load_config
from kmsd.hsm.pin import FilePin
from kmsd.hsm.root import PinUnavailableError
from kmsd.identity.principals import HostNames
from kmsd.memory.page import Page
from kmsd.processes.privileges import Account, PrivilegesError, find_account

_EXIT_WRONG = 1
_EXIT_INVALID = 2
# Which account it is stands in the store, which only the daemon reads; documents that name one name this host's.
_SOME_ACCOUNT = "000000000000"
_ACCOUNT_IN_ARN = re.compile(r"arn:aws:iam::(\d{12}):")
_INIT = "run `kmsd init`, or correct the setting"


def run_check_config(path: Path) -> int:
    """Check the settings in `path`; return the exit code."""
    if invalid := find_problems(path):
        _say(invalid)
        return _EXIT_INVALID
    config = load_config(path)
    if wrong := list(_wrong(config)):
        _say(wrong)
        return _EXIT_WRONG
    print(f"{path}: all is well")
    return 0


def _say(problems: list[str]) -> None:
    for problem in problems:
        sys.stderr.write(f"kmsd: error: {problem}\n")


def _wrong(config: Config) -> Iterator[str]:
    account = None
    try:
        account = find_account(config.user)
    except PrivilegesError as error:
        yield str(error)
    yield from _own_directory("paths.state", Path(config.paths.state), account)
    yield from _own_directory("paths.audit", Path(config.paths.audit).parent, account)
    for name in ("socket", "credential_socket"):
        path = getattr(config.paths, name)
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            yield f"paths.{name}: {path}: a socket's path may have {SOCKET_PATH_BYTES} bytes"
    yield from _policies(Path(config.paths.policies))
    yield from _groups(config)
    yield from _token(config)


def _own_directory(setting: str, path: Path, account: Account | None) -> Iterator[str]:
    try:
        facts = path.stat()
    except OSError as error:
        yield f"{setting}: {path}: {error.strerror}: {_INIT}"
        return
    if not stat.S_ISDIR(facts.st_mode):
        yield f"{setting}: {path} is no directory"
    elif account is not None and facts.st_uid != account.uid:
        yield f"{setting}: {path} belongs to uid {facts.st_uid}, not to {account.name}: chown {account.name} {path}"
    elif facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield f"{setting}: {path} is open to others: chmod 700 {path}"


def _policies(path: Path) -> Iterator[str]:
    try:
        texts = [file.read_text("utf-8", "replace") for file in path.glob("*.json") if file.is_file()]
        accounts = {account for text in texts for account in _ACCOUNT_IN_ARN.findall(text)}
        HostPolicy.load(path, account=min(accounts, default=_SOME_ACCOUNT), names=HostNames())
    except (OSError, HostPolicyError) as error:
        yield f"paths.policies: {error}"


def _groups(config: Config) -> Iterator[str]:
    for group in config.administrators.groups:
        try:
            grp.getgrnam(group)
        except KeyError:
            yield f"administrators.groups: there is no group {group!r}: {_INIT}"


def _token(config: Config) -> Iterator[str]:
    hsm = config.hsm
    if not hsm.module:
        yield f"hsm.module: it names no PKCS#11 library: {_INIT}"
    elif not Path(hsm.module).is_absolute() or not Path(hsm.module).is_file():
        yield f"hsm.module: {hsm.module} is no file with a whole path: install it, or correct the setting"
    if not hsm.token_label:
        yield f"hsm.token_label: it names no token: {_INIT}"
    for name, paths in (("readable_paths", hsm.readable_paths), ("writable_paths", hsm.writable_paths)):
        for path in paths:
            if not Path(path).is_absolute() or not Path(path).exists():
                yield f"hsm.{name}: {path} is not there, or no whole path"
    kind, _, place = hsm.pin.partition(":")
    if kind == "file":
        yield from _pin_file(Path(place))


def _pin_file(path: Path) -> Iterator[str]:
    with Page.create() as page, page.view[:] as view:
        try:
            FilePin(path).read_into(view)
        except PinUnavailableError as error:
            yield f"hsm.pin: {error}"
