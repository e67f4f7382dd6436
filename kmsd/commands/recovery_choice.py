"""What an administrator decides, once and for all, about a host that loses its token."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from kmsd.commands.steps import UsageError
from kmsd.recovery.shares import check_numbers

NO_RECOVERY = "none"
SHARES = "shares"
DEFAULT_THRESHOLD = 2
DEFAULT_SHARES = 3

_QUESTION = f"""\
What opens the keys when the token is lost?

  {SHARES}  A recovery key is split into shares of 33 words, for several people to keep in several places. Some of them
          together, such as any {DEFAULT_THRESHOLD} of {DEFAULT_SHARES}, open the keys without the token.
  {NO_RECOVERY}    Nothing does: the keys are lost with the token. Keep backups of the token and of its PIN.

This is decided now; a store that exists gets no shares later.
"""


@dataclass(frozen=True)
class RecoveryOptions:
    """What the command line says; None where it says nothing."""

    kind: str | None
    threshold: int | None
    shares: int | None
    directory: Path | None


@dataclass(frozen=True)
class SharePlan:
    """How a recovery key is split: any `threshold` of `count` shares; into files in `directory`, or to be shown."""

    threshold: int
    count: int
    directory: Path | None


def check_options(options: RecoveryOptions, *, interactive: bool) -> None:
    """Raise UsageError for options that contradict each other."""
    named = options.threshold is not None or options.shares is not None or options.directory is not None
    if options.kind != SHARES and named and not (options.kind is None and interactive):
        raise UsageError(f"--threshold, --shares and --share-directory belong to --recovery {SHARES}")
    if options.kind == SHARES and options.directory is None and not interactive:
        raise UsageError(
            f"--recovery {SHARES} needs --share-directory here, where nobody can be shown the shares: name a folder "
            "for a file of each"
        )
    _plan(options)


def choose(options: RecoveryOptions, *, interactive: bool) -> SharePlan | None:
    """Return how the recovery key is to be split, None for no recovery, and ask for what was not said.

    Raises UsageError when it was not said.
    """
    kind = options.kind
    if kind is None and interactive:
        print(_QUESTION)
        kind = _answer(f'Type "{SHARES}" or "{NO_RECOVERY}": ')
        if kind == SHARES:
            options = RecoveryOptions(
                SHARES,
                shares=options.shares or _number("How many shares", DEFAULT_SHARES),
                threshold=options.threshold or _number("How many of them open the keys", DEFAULT_THRESHOLD),
                directory=options.directory,
            )
        elif kind != NO_RECOVERY:
            raise UsageError("no recovery was chosen, so nothing was done")
    if kind is None:
        raise UsageError(
            f"say what becomes of the keys when the token is lost: --recovery {SHARES} makes shares of a recovery key, "
            f"which open them, --recovery {NO_RECOVERY} means that they are lost with it"
        )
    return _plan(options) if kind == SHARES else None


def _plan(options: RecoveryOptions) -> SharePlan:
    threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    count = max(DEFAULT_SHARES, threshold) if options.shares is None else options.shares
    try:
        check_numbers(threshold, count)
    except ValueError as error:
        raise UsageError(f"{error}: see --threshold and --shares") from None
    return SharePlan(threshold, count, options.directory)


def _number(question: str, default: int) -> int:
    answer = _answer(f"{question}? [{default}] ")
    if not answer:
        return default
    if not answer.isdecimal():
        raise UsageError(f"{answer!r} is no number, so nothing was done")
    return int(answer)


def _answer(question: str) -> str:
    with contextlib.suppress(EOFError):
        return input(question).strip()
    return ""
