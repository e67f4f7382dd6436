"""Begin a new file when the active one is large or old, without a moment at which a record could be lost.

All is done in one step of the event loop, so nothing is appended meanwhile; each of its syncs has little to do, as
almost everything was synced before. `kmsd.audit.succession` says what a crash between any two calls leaves, and how a
start goes on from there. A call that fails is undone, and the trail goes on in the old file.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from kmsd.audit.active import ActiveFile, End
from kmsd.audit.chain import Head
from kmsd.audit.files import next_path, open_for_writing, rotated_path
from kmsd.audit.system import System, unavailable

_DAY_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Rotation:
    """When a new file is begun: by the size of the active one, or by the age of its first record; 0: never."""

    # Some 100,000 records: few files a year for most hosts, and an editor still opens one.
    max_bytes: int = 64 * 1024 * 1024
    max_seconds: float = 30 * _DAY_SECONDS

    def is_due(self, file: ActiveFile, now: float) -> bool:
        """Return whether a file is to be followed by another; one that has only its mark never is."""
        if file.end.head.seq <= file.first_seq:
            return False
        too_large = 0 < self.max_bytes <= file.end.size
        return too_large or 0 < self.max_seconds <= now - file.began


def name_of(trail: Path, file: ActiveFile) -> Path:
    """Return the path that the active file has once it is rotated now."""
    return rotated_path(trail, file.first_seq, file.end.head.seq)


def rotate(trail: Path, old: ActiveFile, mark: bytes, head: Head, now: float, system: System) -> ActiveFile:
    """Put `old` aside and return the file that follows it, which begins with the line `mark` and so ends at `head`.

    Raises AuditUnavailableError when that cannot be done now. `old` is then still the active file; one that could not
    even be put back takes nothing until `put_back` succeeds.
    """
    try:
        put_back(trail, old, system)
        _drop_next(trail, system)
        # By the descriptor that the syncer does not use: the kernel tells each of them of a write error once.
        system.fdatasync(old.fd)
        misplaced = old.misplaced(old.end.size)
        if misplaced is not None:
            raise unavailable(trail, misplaced)
        with contextlib.ExitStack() as undo:
            new = _make_ready(trail, mark, End(len(mark), head), now, system, undo)
            _switch(trail, old, system)
            undo.pop_all()
    except OSError as exc:
        if old.moved_to is None:
            with contextlib.suppress(OSError):  # the next attempt, or a start, tries it again
                _drop_next(trail, system)
        raise unavailable(trail, f"cannot be rotated: {exc.strerror or exc}") from exc
    with contextlib.suppress(OSError):  # all is where it belongs, and a start heals what a power cut leaves of it
        system.sync_directory(trail.parent)
    return new


def put_back(trail: Path, old: ActiveFile, system: System) -> None:
    """Give a file that a failed rotation has moved the trail's name again; raises OSError while that cannot be done."""
    if old.moved_to is None:
        return
    if not old.is_at(trail):
        if os.path.lexists(trail):
            raise FileExistsError(None, f"another file is in the place of {old.moved_to.name}")
        system.rename(old.moved_to, trail)
    # Until then the disk may have no active file, and a start needs the next one.
    system.sync_directory(trail.parent)
    old.moved_to = None


def _make_ready(
    trail: Path, mark: bytes, end: End, now: float, system: System, undo: contextlib.ExitStack
) -> ActiveFile:
    """Return the next file, which is on the disk under its first name."""
    files = open_for_writing(next_path(trail), os.O_CREAT | os.O_EXCL, system, undo)
    written = system.write(files.append, mark)
    if written < len(mark):
        raise OSError(None, f"the next file took only {written} of {len(mark)} bytes")
    system.fsync(files.append)
    system.sync_directory(trail.parent)
    return ActiveFile(trail, files, end, system, first_seq=end.head.seq, began=now)


def _switch(trail: Path, old: ActiveFile, system: System) -> None:
    """Give the old file its number and the next one the trail's name, or leave both as they are."""
    aside = name_of(trail, old)
    if os.path.lexists(aside):
        raise FileExistsError(None, f"{aside.name} is there already")
    system.rename(trail, aside)
    old.moved_to = aside
    try:
        _see_that(old.is_at(aside))  # and not one that took its place between the look at it and now
        system.sync_directory(trail.parent)
        system.rename(next_path(trail), trail)
    except OSError:
        with contextlib.suppress(OSError):  # whoever rotates next tries it again
            put_back(trail, old, system)
        raise
    old.moved_to = None


def _see_that(is_ours: bool) -> None:  # noqa: FBT001 - reads as a sentence where it is called
    if not is_ours:
        raise OSError(None, "the file was replaced by another")


def _drop_next(trail: Path, system: System) -> None:
    if os.path.lexists(next_path(trail)):
        system.unlink(next_path(trail))
