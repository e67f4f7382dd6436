"""Print random bytes of the daemon's generator."""

from __future__ import annotations

import argparse
import sys

from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest
from kmsd_client import Client
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError

# What one request may ask for.
_REQUEST_BYTES = 32 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("count", type=int, metavar="N", help="how many bytes")
    parser.add_argument("--hex", action="store_true", help="as hexadecimal digits")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the bytes, as many requests as that takes."""
    if options.count < 1:
        raise CommandError("ask for at least 1 byte", code=EXIT_USAGE)
    if sys.stdout.isatty() and not options.hex:
        raise CommandError("will not print random bytes to a terminal", "use --hex, or redirect standard output")
    left = options.count
    with Client(options.socket) as client:
        while left:
            request = GenerateRandomRequest(number_of_bytes=min(left, _REQUEST_BYTES))
            drawn = client.call(GENERATE_RANDOM, request).plaintext
            left -= len(drawn)
            sys.stdout.buffer.write(drawn.hex().encode() if options.hex else drawn)
    if options.hex:
        sys.stdout.buffer.write(b"\n")
