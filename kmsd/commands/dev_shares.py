"""Recovery shares of a `kmsd dev`, with which recovery can be tried: any 2 of 3, in files."""

from __future__ import annotations

import os
from pathlib import Path

from kmsd.commands.recovery_choice import DEFAULT_SHARES, DEFAULT_THRESHOLD
from kmsd.commands.service_process import apart
from kmsd.commands.shares import HeldKey
from kmsd.commands.steps import SetupError, write_new
from kmsd.memory.mapping import fill_random
from kmsd.recovery.shares import split


def make_shares(store: Path, directory: Path) -> HeldKey:
    """Return the recovery key of a store that is yet to be made, when its shares are in files in `directory`.

    Raises SetupError.
    """
    if store.exists():
        raise SetupError(f"{store} is there, and a store that exists gets no shares later: name another directory")
    directory = directory.absolute()
    key = HeldKey()
    fill_random(key.mapped())
    apart(lambda: _write(directory, bytes(key.mapped())))
    return key


def _write(directory: Path, key: bytes) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number, words in enumerate(split(key, threshold=DEFAULT_THRESHOLD, count=DEFAULT_SHARES), 1):
        path = directory / f"share-{number}"
        if path.exists():
            raise SetupError(f"{path} is there: name another directory for the shares")
        write_new(path, f"{words}\n".encode(), mode=0o600, owner=(os.getuid(), os.getgid()))
