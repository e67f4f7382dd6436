"""Encrypt a file under a key that never leaves the daemon. The result, FILE.kms, is an AWS Encryption SDK message."""

from __future__ import annotations

import argparse
from pathlib import Path

from kmsd_client.cli.terminal import EXIT_USAGE, CommandError
from kmsd_client.cli.transfer import (
    add_common_arguments,
    destination_of,
    source_of,
    transfer,
)
from kmsd_client.files import encrypt_file

SUFFIX = ".kms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_common_arguments(parser, output=f"FILE{SUFFIX}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Encrypt one file."""
    if options.key is None:
        raise CommandError(
            "which key?", "name one with -k; kms key create --alias alias/NAME makes one", code=EXIT_USAGE
        )
    source = source_of(options)
    default = None if isinstance(source, int) else Path(f"{options.file}{SUFFIX}")
    destination = destination_of(options, default, binary=True)
    transfer(encrypt_file, options, source, destination)
