"""The development token: SoftHSM2 with everything it needs in one directory.

    softhsm2.conf   written anew at each start, so that the directory may be moved
    tokens/         SoftHSM's own files (0700)
    pin             the user PIN (0600)

All of it is made in a folder `making-*` of its own, and becomes `tokens` by one rename when its root key exists and
works. So there is either no `tokens`, and what is left of an attempt is removed (nothing can have been wrapped by it),
or a whole one, which is never touched: another root key in its place would make everything under the first unreadable.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kmsd.hsm.conversation import Done, MakeToken, TokenConfig
from kmsd.hsm.pin import FilePin
from kmsd.hsm.pkcs11 import TokenJobs, pin_page
from kmsd.hsm.root import TokenFailedError
from kmsd.processes.zygote import Zygote

MODULE_VARIABLE = "KMSD_SOFTHSM_MODULE"
PIN_NAME = "pin"
ROOT_KEY_LABEL = "kmsd-root"

_CONFIGURATION_NAME = "softhsm2.conf"
_TOKENS_NAME = "tokens"
_MAKING = "making-"
# 106 bits: SoftHSM encrypts its objects under the PIN, so this is what protects a copy of `tokens` alone. (It takes
# 4 to 255 characters.)
_PIN_DIGITS = 32
# Where distributions put it, below / or below the folder where `make setup` unpacks the package for one user.
_MODULE_PATTERNS = tuple(f"{lib}/softhsm/libsofthsm2.so" for lib in ("usr/lib", "usr/lib64", "usr/lib/*"))
# SimpleConfigLoader.cpp in SoftHSM 2.6 ends each line at the first of these, and trims blanks.
_UNWRITABLE = frozenset("#\n\r")


def find_module() -> Path:
    """Return SoftHSM2's PKCS#11 module; raises FileNotFoundError that says what to install."""
    if named := os.environ.get(MODULE_VARIABLE):
        if Path(named).is_file():
            return Path(named)
        raise FileNotFoundError(f"{MODULE_VARIABLE} names {named}, which is not a file: correct it or unset it")
    for top in (Path(sys.prefix, "softhsm2"), Path("/")):
        for pattern in _MODULE_PATTERNS:
            for found in sorted(top.glob(pattern)):
                return found
    raise FileNotFoundError(
        f"SoftHSM2 is not installed: install it (Debian: softhsm2), or name its libsofthsm2.so in {MODULE_VARIABLE}"
    )


async def make_token(
    zygote: Zygote, directory: Path, *, label: str, random_below: Callable[[int], int] = secrets.randbelow
) -> TokenConfig:
    """Make the token with its PIN file and root key in `directory`, unless it is there, and return how to use it.

    May be interrupted at any instant and called again. `random_below(n)` gives a random integer from 0 to n-1. Raises
    a `RootError`, also when SoftHSM could not read the directory's path, and OSError when it cannot be written.
    """
    directory = _own_directory(directory)
    with _locked(directory):
        # First: a token that is in its place must never lack it.
        config = _configure(directory, label)
        _remove_attempts(directory)
        if not is_made(directory):
            _check_no_pin(directory)
            making = _fresh_folder(directory)
            _write_pin(making / PIN_NAME, random_below)
            await _fill(zygote, making, label)
            _move_into_place(making, directory)
        return config


def is_made(directory: Path) -> bool:
    """Whether `make_token` has made its token in `directory`."""
    return (directory / _TOKENS_NAME).is_dir()


def token_config(directory: Path, *, label: str) -> TokenConfig:
    """Return how to use the token that `make_token` makes in `directory`; raises as `find_module` does."""
    return TokenConfig(
        module=str(find_module()),
        token_label=label,
        root_key_label=ROOT_KEY_LABEL,
        environment=(("SOFTHSM2_CONF", str(directory / _CONFIGURATION_NAME)),),
    )


def _own_directory(directory: Path) -> Path:
    directory = directory.absolute()
    if _UNWRITABLE & set(str(directory)):
        raise TokenFailedError(f"SoftHSM cannot read the path {str(directory)!r} in its settings: use one without '#'")
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _remove_attempts(directory: Path) -> None:
    for left in directory.glob(f"{_MAKING}*"):
        if not (left / PIN_NAME).exists() and any((left / _TOKENS_NAME).glob("*")):
            # It ended between the two renames: the PIN in the directory is that of these tokens.
            (directory / PIN_NAME).unlink(missing_ok=True)
        shutil.rmtree(left)


def _check_no_pin(directory: Path) -> None:
    if (directory / PIN_NAME).exists():
        raise TokenFailedError(
            f"{directory / PIN_NAME} is the PIN of a token that is not there: put {directory / _TOKENS_NAME} back, or "
            "move the PIN away to begin anew"
        )


def _fresh_folder(directory: Path) -> Path:
    # A name of its own: the job of an attempt that was killed just now may still be running.
    making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=directory))
    (making / _TOKENS_NAME).mkdir(mode=0o700)
    return making


async def _fill(zygote: Zygote, making: Path, label: str) -> None:
    config = _configure(making, label)
    with pin_page(FilePin(making / PIN_NAME)) as pin:
        await TokenJobs(zygote).run(MakeToken(config), [pin], Done)


def _move_into_place(making: Path, directory: Path) -> None:
    # SoftHSM leaves its files to the page cache; after a power cut the rename must not be all that is there.
    for folder, _, names in os.walk(making, topdown=False):
        for path in (*(Path(folder, name) for name in names), Path(folder)):
            _sync(path)
    (making / PIN_NAME).rename(directory / PIN_NAME)  # first: without `tokens` it opens nothing
    _sync(directory)
    (making / _TOKENS_NAME).rename(directory / _TOKENS_NAME)
    _sync(directory)
    shutil.rmtree(making)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TokenFailedError(
            f"another process is making the token in {directory}: try again when it has ended"
        ) from None
    else:
        yield
    finally:
        os.close(descriptor)


def _write_pin(path: Path, random_below: Callable[[int], int]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(_PIN_DIGITS):
            # Digit by digit, so that no object ever holds the whole PIN.
            os.write(descriptor, b"%d" % random_below(10))
    finally:
        os.close(descriptor)


def _configure(directory: Path, label: str) -> TokenConfig:
    path = directory / _CONFIGURATION_NAME
    draft = directory / f"{_CONFIGURATION_NAME}.new"
    draft.write_text(
        f"directories.tokendir = {directory / _TOKENS_NAME}\n"
        "objectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
    )
    _sync(draft)
    draft.rename(path)
    return token_config(directory, label=label)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
