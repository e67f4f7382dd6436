"""Unseal the daemon with the token's PIN, which is asked for on the terminal. For administrators."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kmsd.api.administration import STATUS, SealState, StatusRequest
from kmsd.api.unsealing import MAX_PIN_BYTES
from kmsd_client import Client
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError
from kmsd_client.unsealing import unseal

_NEWLINES = b"\r\n"
# A PIN that is too long is told from one with newlines at its end.
_MOST_BYTES = MAX_PIN_BYTES + 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pin-file", metavar="FILE", help="a file that holds the PIN alone; - is standard input")
    source.add_argument("--configured", action="store_true", help="take the PIN from where the daemon's settings say")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Unseal; the PIN is tried once, and not at all when the daemon is unsealed."""
    with Client(options.socket) as client:
        if client.call(STATUS, StatusRequest()).state is SealState.UNSEALED:
            print("kmsd is unsealed already")
            return
        pin = None if options.configured else _pin(options.pin_file)
        try:
            done = unseal(client, pin)
        finally:
            if pin is not None:
                pin[:] = bytes(len(pin))
    print("kmsd is unsealed already" if done.already else "kmsd is unsealed")


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
