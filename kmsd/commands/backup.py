"""`kmsd backup FILE`: has the daemon make a backup, and writes it to a file.

The daemon makes it because only it has the keys, and because it is the only process that may read the store while it
runs; this command is its client, under the identity of whoever calls it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kmsd.api.errors import AlreadyExistsError, KmsError

_STANDARD_OUTPUT = "-"
_EXIT_FAILED = 1


def run_backup(destination: str, *, socket: Path | None, force: bool) -> int:
    """Write a backup to `destination`, or to standard output; return the exit code."""
    from kmsd_client import Client  # noqa: PLC0415 - no other command of kmsd's is a client
    from kmsd_client.backups import create_backup  # noqa: PLC0415

    to_stream = destination == _STANDARD_OUTPUT
    try:
        with Client(socket) as client:
            made = create_backup(client, sys.stdout.fileno() if to_stream else Path(destination), force=force)
    except KmsError as error:
        hint = " (--force replaces it)" if isinstance(error, AlreadyExistsError) else ""
        sys.stderr.write(f"kmsd: error: {error.code}: {error.message}{hint}\n")
        return _EXIT_FAILED
    name = "standard output" if to_stream else destination
    print(
        f"{name}: {made.length} bytes, as of change {made.store_sequence} of the store\nsha256 {made.sha256}",
        file=sys.stderr if to_stream else sys.stdout,
    )
    return 0
