"""The file in which the number of the last delivered event is kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kmsd_client.cli.terminal import CommandError

_NUMBER = re.compile(rb"([0-9]{1,19})\n?")


class PositionFile:
    """A file that holds one number; it is replaced, so that a crash leaves the old one or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int | None:
        """Return the number, None if there is no file yet; raises CommandError for a file that is another's."""
        try:
            with self._path.open("rb") as stream:
                found = _NUMBER.fullmatch(stream.read(32))
        except FileNotFoundError:
            return None
        if found is None:
            raise CommandError(
                f"{self._path} holds no position", "name another file; or remove this one, and all is told from now on"
            )
        return int(found[1])

    def keep(self, sequence: int) -> None:
        """Keep a number, durably; raises OSError."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        with temporary.open("wb") as stream:
            stream.write(b"%d\n" % sequence)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
