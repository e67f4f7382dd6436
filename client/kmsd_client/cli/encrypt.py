"""Encrypt a file under a key that never leaves the daemon. The result, FILE.kms, is an AWS Encryption SDK message."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kmsd_client import Client
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, context_of, print_json
from kmsd_client.cli.transfer import (
    add_common_arguments,
    destination_of,
    overwriting_explained,
    progress_of,
    source_of,
    summary_of,
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
    with Client(options.socket) as client, progress_of(source) as progress, overwriting_explained():
        result = encrypt_file(
            client,
            source,
            destination,
            key_id=options.key,
            encryption_context=context_of(options.context),
            force=options.force,
            progress=progress,
            sync=not options.no_sync,
        )
    if options.json and destination != sys.stdout.fileno():
        print_json(summary_of(result))
