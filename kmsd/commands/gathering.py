"""Recovery shares, as people bring them to a command: typed, or in files.

They are text in this process, which ends soon and is no daemon; what makes the key of them is a process of its own.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from kmsd.commands.steps import SetupError
from kmsd.processes.sandbox import harden_process
from kmsd.recovery.shares import SharesError, ShareSet, share_in_file

# A share has some 300 bytes; the rest is for what is written beside it.
_MAX_FILE_BYTES = 64 * 1024


def gather_shares(files: Sequence[Path], *, typed: bool) -> bytes | None:
    """Return the shares in `files`, and with `typed` as many more as are needed, one a line; None if none are to be.

    Raises SetupError.
    """
    if not files and not typed:
        return None
    # Words are in this process's memory from now on: somebody who is asked for them and presses Ctrl-\ leaves no core.
    harden_process()
    shares = ShareSet()
    for file in files:
        try:
            shares.add(_share_in(file))
        except SharesError as error:
            raise SetupError(f"{file}: {error}") from None
    while typed and shares.missing:
        _ask(shares)
    if shares.missing:
        raise SetupError(
            f"recovery shares are missing, {shares.missing} more: name their files with --share-file, or type them "
            "with --share"
        )
    return shares.needed.encode()


def _share_in(file: Path) -> str:
    with file.open("rb") as stream:
        content = stream.read(_MAX_FILE_BYTES)
    try:
        return share_in_file(content.decode())
    except UnicodeDecodeError:
        raise SharesError("this is not text") from None


def _ask(shares: ShareSet) -> None:
    if not sys.stdin.isatty():
        raise SetupError("nobody is there to type recovery shares: name their files with --share-file")
    try:
        words = getpass.getpass(f"Share {len(shares) + 1}, all its words in one line: ")
        shares.add(words)
    except SharesError as error:
        sys.stderr.write(f"{error}\n")
    except EOFError:
        raise SetupError("no more recovery shares were typed, and there are not enough yet") from None
