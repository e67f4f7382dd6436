"""Decrypt a message that kms encrypt or an AWS Encryption SDK made. The result is FILE without its .kms."""

from __future__ import annotations

import argparse
from pathlib import Path

from kmsd_client.cli.encrypt import SUFFIX
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError
from kmsd_client.cli.transfer import (
    add_common_arguments,
    destination_of,
    source_of,
    transfer,
)
from kmsd_client.files import decrypt_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_common_arguments(parser, key="the one the message names", output=f"FILE without {SUFFIX}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Decrypt one message; pairs given with -c must be among its encryption context."""
    source = source_of(options)
    destination = destination_of(options, _default(options), binary=False)
    transfer(decrypt_file, options, source, destination)


def _default(options: argparse.Namespace) -> Path | None:
    if options.file == "-" or options.output is not None:
        return None
    if not options.file.endswith(SUFFIX) or Path(options.file).name == SUFFIX:
        raise CommandError(
            f"'{options.file}' does not end in {SUFFIX}", "say where to write with -o OUT", code=EXIT_USAGE
        )
    return Path(options.file.removesuffix(SUFFIX))
