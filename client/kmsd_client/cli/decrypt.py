"""Decrypt a message that kms encrypt or an AWS Encryption SDK made. The result is FILE without its .kms."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kmsd_client import Client
from kmsd_client.cli.encrypt import SUFFIX
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, context_of, print_json
from kmsd_client.cli.transfer import (
    add_common_arguments,
    destination_of,
    overwriting_explained,
    progress_of,
    source_of,
    summary_of,
)
from kmsd_client.files import decrypt_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_common_arguments(parser, output=f"FILE without {SUFFIX}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Decrypt one message; pairs given with -c must be among its encryption context."""
    source = source_of(options)
    destination = destination_of(options, _default(options), binary=False)
    with Client(options.socket) as client, progress_of(source) as progress, overwriting_explained():
        result = decrypt_file(
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


def _default(options: argparse.Namespace) -> Path | None:
    if options.file == "-" or options.output is not None:
        return None
    if not options.file.endswith(SUFFIX) or Path(options.file).name == SUFFIX:
        raise CommandError(
            f"'{options.file}' does not end in {SUFFIX}", "say where to write with -o OUT", code=EXIT_USAGE
        )
    return Path(options.file.removesuffix(SUFFIX))
