"""`kmsd backup --verify FILE` and `kmsd restore FILE`: where the keys come from, and whose process may have them."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kmsd.audit.record import Actor
from kmsd.commands.dev import prepare_directory
from kmsd.commands.failures import exit_code_of
from kmsd.commands.gathering import gather_shares
from kmsd.commands.init import Choices, check_token
from kmsd.commands.offline import Opening
from kmsd.commands.restore import restore
from kmsd.commands.restored_host import RestoredHost
from kmsd.commands.service_process import as_service
from kmsd.commands.sites import development, host, pin_of_host
from kmsd.commands.steps import UsageError
from kmsd.commands.verifying import verify
from kmsd.config import Config, load_config
from kmsd.processes.privileges import find_account

_EXIT_USAGE = 2


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the command line says of who opens a backup: a host's token, that of a `kmsd dev`, or recovery shares."""

    settings: Path
    dev: Path | None
    typed: bool
    share_files: tuple[Path, ...]

    def shares(self) -> bytes | None:
        """Return the recovery shares, None if there are to be none; raises SetupError."""
        return gather_shares(self.share_files, typed=self.typed)


def run_verify(file: Path, sources: Sources) -> int:
    """Verify the backup in `file`; return the exit code."""
    return exit_code_of(lambda: _verify(file, sources))


def run_restore(file: Path, sources: Sources, choices: Choices, *, to_token: bool) -> int:
    """Restore the backup in `file`; with `to_token` onto the token that is there now. Return the exit code."""
    try:
        _check_options(sources, choices, to_token=to_token)
    except UsageError as error:
        sys.stderr.write(f"kmsd: error: {error}\n")
        return _EXIT_USAGE
    return exit_code_of(lambda: _restore(file, sources, choices, to_token=to_token))


def _check_options(sources: Sources, choices: Choices, *, to_token: bool) -> None:
    check_token(choices)
    if to_token and not (sources.typed or sources.share_files):
        raise UsageError("--token needs --share or --share-file: another token does not open the backup")
    if choices.module is not None and sources.dev is not None:
        raise UsageError("--module is for a host, and --dev is none")


def _verify(file: Path, sources: Sources) -> None:
    shares = sources.shares()
    with file.open("rb") as stream:
        if sources.dev is not None:
            verify(Opening(stream=stream, name=str(file), site=development(sources.dev.absolute()), shares=shares))
        elif shares is not None:
            # They do it alone, on any machine.
            verify(Opening(stream=stream, name=str(file), site=host(Config(), None), shares=shares))
        else:
            _verify_by_token(stream, file, sources.settings)


def _verify_by_token(stream: BinaryIO, file: Path, settings: Path) -> None:
    config = load_config(settings)
    pin = pin_of_host(settings, config, interactive=sys.stdin.isatty())
    opening = Opening(stream=stream, name=str(file), site=host(config, pin), shares=None)
    if os.getuid() == 0:
        # The token's module is not for root to load.
        as_service(find_account(config.user), lambda: verify(opening))
    else:
        verify(opening)


def _restore(file: Path, sources: Sources, choices: Choices, *, to_token: bool) -> None:
    shares, actor = sources.shares(), _caller()
    with file.open("rb") as stream:
        if sources.dev is not None:
            site = development(prepare_directory(sources.dev), makes_token=to_token)
        elif os.getuid() == 0:
            RestoredHost(choices, stream, str(file), shares, actor, to_token=to_token).run()
            return
        else:
            config = load_config(sources.settings)
            site = host(config, pin_of_host(sources.settings, config, interactive=sys.stdin.isatty()))
        restore(Opening(stream=stream, name=str(file), site=site, shares=shares, needs_token=to_token), actor)


def _caller() -> Actor:
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = None
    return Actor(uid=uid, gid=os.getgid(), user=user, pid=os.getpid(), unit=None, exe=None)
