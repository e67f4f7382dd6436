"""What `kms encrypt` and `kms decrypt` have in common: where things go, and a progress bar on a terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from kmsd.api.errors import AlreadyExistsError
from kmsd_client import Client
from kmsd_client.cli.terminal import (
    EXIT_USAGE,
    CommandError,
    add_context_option,
    add_json_option,
    context_of,
    print_json,
)
from kmsd_client.files import FileResult, Place, ProgressFunction

# Files below this are done before a person could read a bar (DESIGN 14: more than 1 GB/s).
_BAR_FROM_BYTES = 256 * 1024 * 1024


def add_common_arguments(parser: argparse.ArgumentParser, *, key: str, output: str) -> None:
    """Declare the options that both verbs have; `key` and `output` say what is done without them."""
    parser.add_argument("-k", "--key", metavar="KEY", help=f"key id, key ARN, alias or alias ARN; default: {key}")
    add_context_option(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUT", help=f"where to write; - is standard output; default: {output}"
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite OUT if it exists")
    parser.add_argument("--no-sync", action="store_true", help="do not wait until the result is on the disk")
    parser.add_argument("file", metavar="FILE", help="what to read; - is standard input")
    add_json_option(parser)


def source_of(options: argparse.Namespace) -> Place:
    """Return what to read: a path, or standard input's descriptor."""
    return sys.stdin.fileno() if options.file == "-" else Path(options.file)


def destination_of(options: argparse.Namespace, default: Path | None, *, binary: bool) -> Place:
    """Return where to write: a path, or standard output's descriptor, which for `binary` must be no terminal."""
    if options.output is not None and options.output != "-":
        return Path(options.output)
    if options.output is None and default is not None:
        return default
    if binary and sys.stdout.isatty():
        raise CommandError(
            "will not print an encrypted message to a terminal", "name a file with -o, or redirect it", code=EXIT_USAGE
        )
    return sys.stdout.fileno()


@contextlib.contextmanager
def overwriting_explained() -> Iterator[None]:
    """Tell what to do about a destination that exists."""
    try:
        yield
    except AlreadyExistsError as error:
        raise CommandError(error.message, "choose another name with -o OUT, or overwrite it with --force") from None


@contextlib.contextmanager
def progress_of(source: Place) -> Iterator[ProgressFunction | None]:
    """Give a function that draws a bar on standard error, or None where nobody would see it or need it."""
    if not sys.stderr.isatty() or isinstance(source, int) or not _is_large(source):
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - costs 34 ms, so only where a bar is drawn
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _is_large(source: str | os.PathLike[str]) -> bool:
    try:
        return Path(source).stat().st_size >= _BAR_FROM_BYTES
    except OSError:
        return False  # whoever opens it says what is wrong


def transfer(work: Callable[..., FileResult], options: argparse.Namespace, source: Place, destination: Place) -> None:
    """Do `work`, which is `encrypt_file` or `decrypt_file`, as the command line says."""
    with Client(options.socket) as client, progress_of(source) as progress, overwriting_explained():
        result = work(
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


def summary_of(result: FileResult) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "KeyId": result.key_id,
        "EncryptionContext": dict(result.encryption_context),
        "PlaintextBytes": result.plaintext_bytes,
        "MessageBytes": result.message_bytes,
    }
