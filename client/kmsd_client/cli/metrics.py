"""Print how the daemon does in numbers, for Prometheus."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from kmsd.api.errors import KmsError
from kmsd.api.metrics import GET_METRICS, UP, GetMetricsRequest
from kmsd_client import Client

# kmsd answers within two, whatever its store does, and is being started for some. systemd ends the unit after 30 (and
# monitoring would go on to read that all is well): connecting and waiting for the answer both fit in.
ANSWER_SECONDS = 10.0
# The collector runs as another user, and nothing of it is secret to the host's monitoring.
_MODE = 0o644


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--textfile",
        type=Path,
        metavar="FILE",
        help=f"write them there at once and whole, for node_exporter's textfile collector (FILE ends in .prom); when "
        f"the daemon does not tell, write {UP} 0, and fail",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the metrics, or put them where they are collected."""
    try:
        text = _ask(options.socket)
    except KmsError:
        if options.textfile is not None:
            _put(options.textfile, f"# TYPE {UP} gauge\n{UP} 0\n")
        raise
    if options.textfile is None:
        sys.stdout.write(text)
    else:
        _put(options.textfile, text)


def _ask(socket: str | None) -> str:
    with Client(socket, timeout=ANSWER_SECONDS) as client:
        return client.call(GET_METRICS, GetMetricsRequest()).text


def _put(path: Path, text: str) -> None:
    """Write a file that whoever reads it sees as it was before or as it is now, and never in between."""
    # The collector reads what ends in .prom.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(descriptor, _MODE)
        Path(name).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
