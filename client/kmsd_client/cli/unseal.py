"""Unseal the daemon with the token's PIN or recovery shares, asked for on the terminal. For administrators."""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kmsd.api.administration import STATUS, RecoverySetting, SealState, StatusRequest
from kmsd.api.unsealing import MAX_PIN_BYTES, Unsealed
from kmsd_client import Client
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, complain
from kmsd_client.unsealing import unseal, unseal_by_shares

if TYPE_CHECKING:
    from kmsd.recovery.shares import ShareSet

_NEWLINES = b"\r\n"
# A PIN that is too long is told from one with newlines at its end.
_MOST_BYTES = MAX_PIN_BYTES + 64
# A share has some 300 bytes; the rest is for what is written beside it.
_MOST_FILE_BYTES = 64 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pin-file", metavar="FILE", help="a file that holds the PIN alone; - is standard input")
    source.add_argument("--configured", action="store_true", help="take the PIN from where the daemon's settings say")
    source.add_argument("--share", action="store_true", help="ask for recovery shares, which do without the token")
    source.add_argument(
        "--share-file",
        metavar="FILE",
        action="append",
        type=Path,
        help="a file with one recovery share, instead of asking; once for each share",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="take the store and the audit trail as they are, although kmsd did not leave them so; on record",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Unseal; the PIN is tried once, and not at all when the daemon is unsealed."""
    accepts = options.accept_changes
    # A PIN, or words, come into this process: somebody who is asked for them and presses Ctrl-\ leaves no core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Client(options.socket) as client:
        status = client.call(STATUS, StatusRequest())
        if status.state is SealState.UNSEALED:
            print("kmsd is unsealed already")
            return
        if options.share or options.share_file:
            if status.recovery is RecoverySetting.NONE:
                raise CommandError(
                    "this host was set up without recovery shares", "only its token opens the keys: kms unseal"
                )
            secret = _shares(options.share_file)
            done = _wiped_after(secret, lambda: unseal_by_shares(client, secret, accept_changes=accepts))
        elif options.configured:
            done = unseal(client, None, accept_changes=accepts)
        else:
            pin = _pin(options.pin_file)
            done = _wiped_after(pin, lambda: unseal(client, pin, accept_changes=accepts))
    print("kmsd is unsealed already" if done.already else "kmsd is unsealed")


def _wiped_after(secret: bytearray, use: Callable[[], Unsealed]) -> Unsealed:
    try:
        return use()
    finally:
        secret[:] = bytes(len(secret))


def _shares(files: list[Path] | None) -> bytearray:
    """Return the shares that are needed, one a line: typed, or from files; never from the command line."""
    # Imported here: nobody else has to know the words.
    from kmsd.recovery.shares import SharesError, ShareSet  # noqa: PLC0415 - see above

    shares = ShareSet()
    try:
        if files is None:
            _ask_for_shares(shares)
        else:
            _read_files(shares, files)
    except SharesError as error:
        raise CommandError(str(error)) from None
    if shares.missing:
        raise CommandError(f"{shares.missing} more {'share is' if shares.missing == 1 else 'shares are'} needed")
    return bytearray(shares.needed.encode())


def _read_files(shares: ShareSet, files: list[Path]) -> None:
    from kmsd.recovery.shares import SharesError, share_in_file  # noqa: PLC0415 - as above

    for file in files:
        with file.open("rb") as stream:
            content = stream.read(_MOST_FILE_BYTES)
        try:
            shares.add(share_in_file(content.decode()))
        except UnicodeDecodeError:
            raise CommandError(f"{file} is not text", "name the files that hold the shares' words") from None
        except SharesError as error:
            raise CommandError(f"{file}: {error}") from None


def _ask_for_shares(shares: ShareSet) -> None:
    from kmsd.recovery.shares import SharesError  # noqa: PLC0415 - as above

    if not sys.stdin.isatty():
        raise CommandError(
            "standard input is no terminal to ask for shares on",
            "name a file for each share with --share-file FILE",
            code=EXIT_USAGE,
        )
    from getpass import getpass  # noqa: PLC0415 - only where somebody is asked

    print("Type one share at a time, all its words in one line; they are not shown. An empty line gives up.")
    while shares.missing:
        more = f", {shares.missing} more needed" if len(shares) else ""
        try:
            line = getpass(f"Share {len(shares) + 1}{more}: ")
        except EOFError:
            line = ""
        if not line.strip():
            return
        try:
            shares.add(line)
        except SharesError as error:
            complain(str(error), "type it again")


def _pin(file: str | None) -> bytearray:
    """Return the PIN: never from the command line or the environment, which other processes can see."""
    if file is None:
        return _asked()
    fd = sys.stdin.fileno() if file == "-" else os.open(Path(file), os.O_RDONLY | os.O_CLOEXEC)
    pin = bytearray(_MOST_BYTES)
    try:
        length = 0
        while length < len(pin) and (count := os.readv(fd, [memoryview(pin)[length:]])):
            length += count
    finally:
        if file != "-":
            os.close(fd)
    del pin[length:]
    while pin and pin[-1] in _NEWLINES:
        del pin[-1]
    return pin


def _asked() -> bytearray:
    if not sys.stdin.isatty():
        raise CommandError(
            "standard input is no terminal to ask for the PIN on",
            "give the PIN with --pin-file FILE, where - is standard input",
            code=EXIT_USAGE,
        )
    from getpass import getpass  # noqa: PLC0415 - only where somebody is asked

    # Strict: what a terminal sends that is no UTF-8 would otherwise be another PIN.
    return bytearray(getpass("PIN of the token: ").encode("utf-8", "surrogateescape"))
