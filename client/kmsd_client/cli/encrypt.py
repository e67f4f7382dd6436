"""Encrypt a file under a key that never leaves the daemon. The result, FILE.kms, is an AWS Encryption SDK message."""

from __future__ import annotations

import argparse
from pathlib import Path

from kmsd_client.cli.transfer import (
    add_common_arguments,
    destination_of,
    source_of,
    transfer,
)
from kmsd_client.files import encrypt_file

SUFFIX = ".kms"
# Means, for each caller, a key of his own.
_DEFAULT_KEY = "alias/kmsd/default"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_common_arguments(parser, key=f"{_DEFAULT_KEY}, which is your own", output=f"FILE{SUFFIX}")
    parser.set_defaults(run=run, key=_DEFAULT_KEY)


def run(options: argparse.Namespace) -> None:
    """Encrypt one file."""
    source = source_of(options)
    default = None if isinstance(source, int) else Path(f"{options.file}{SUFFIX}")
    destination = destination_of(options, default, binary=True)
    transfer(encrypt_file, options, source, destination)
