"""Ask before something is done that cannot be undone, or that others may miss."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, printable


def add_yes_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the option not to ask, for scripts."""
    parser.add_argument("--yes", action="store_true", help="do not ask")


def check_for_terminal() -> None:
    """Raise CommandError when nobody is there to be asked."""
    if not sys.stdin.isatty():
        raise CommandError("nobody is there to be asked", "say --yes", code=EXIT_USAGE)


def ask(question: str, answers: Iterable[str], otherwise: str) -> None:
    """Ask, and raise CommandError with the words of `otherwise` unless the answer is one of `answers`."""
    check_for_terminal()
    sys.stderr.write(printable(question))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in answers:
        raise CommandError(otherwise)
