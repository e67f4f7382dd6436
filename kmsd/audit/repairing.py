"""Begin a new chain where the trail is broken, while no daemon writes it (`kmsd audit-repair`).

The file at which the fault shows is set aside as NAME.broken-N: never deleted, never changed. A new file in the place
of the active one begins with a record that refers to it. If it is a rotated file, the active one is rotated first.
Every step is on the disk before the next one, and a run that was killed is finished by the next run:

| done so far | what the next run finds |
|---|---|
| NAME.broken-N is a second name of the broken file | the trail is still broken; that name is used again |
| the active file has its number as a second name | the same; that name is used again |
| the new file has the active one's name | the trail is whole; a rotated file that was set aside loses its old name |
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.chain import GENESIS, Head, Line, MalformedLineError, format_time, parse
from kmsd.audit.files import RotatedFile, next_path, open_for_writing, open_regular, rotated_files, rotated_path
from kmsd.audit.opening import find_whole
from kmsd.audit.repair import Repair, begin_anew, survey
from kmsd.audit.salvage import salvage
from kmsd.audit.succession import AuditBrokenError, broken, check_start, drop_unused_next, end_of, finish_rotation
from kmsd.audit.system import System, unavailable
from kmsd.audit.trail_check import check_trail
from kmsd.audit.trail_files import TrailBrokenError, TrailFile

_BROKEN = ".broken-"


@dataclass(frozen=True)
class Fault:
    """What is wrong with the trail, and the file at which that shows."""

    path: Path
    what: str


@dataclass(frozen=True)
class SetAside:
    """What was done about a fault: where the broken file is, and the first record of the new chain."""

    path: Path
    size: int
    sha256: str
    first_seq: int
    open_intents: int


class Repairs:
    """A trail that nobody else writes. Made by `open`; `close` lets the daemon have it again."""

    def __init__(self, trail: Path, system: System, clock: Callable[[], float]) -> None:
        self._trail = trail
        self._system = system
        self._clock = clock
        self._locks = contextlib.ExitStack()
        self._active_fd = -1

    @classmethod
    def open(cls, trail: Path, *, clock: Callable[[], float], system: System | None = None) -> Self:
        """Take the trail at `trail`; `clock` returns seconds since 1970.

        Raises AuditUnavailableError when a daemon has it or it cannot be opened, AuditBrokenError when there is none.
        """
        repairs = cls(trail, system or System(), clock)
        try:
            repairs._take()
        except OSError as exc:
            repairs.close()
            raise unavailable(trail, exc) from exc
        except BaseException:
            repairs.close()
            raise
        return repairs

    def close(self) -> None:
        """Let go of the trail."""
        self._locks.close()

    def find(self) -> Fault | None:
        """Return the first fault, None if the trail is whole: what a crash leaves at its end is no fault.

        Raises AuditBrokenError when it is a file that an earlier repair set aside that was changed.
        """
        try:
            self._drop_old_names()
            return self._find_in_active() or self._find_in_chain() or self._find_in_succession()
        except OSError as exc:
            raise unavailable(self._trail, exc) from exc

    def set_aside(self, fault: Fault) -> SetAside:
        """Set the file of a fault aside and begin a new chain; raises AuditUnavailableError when it cannot be done."""
        try:
            return self._set_aside(fault)
        except OSError as exc:
            raise unavailable(self._trail, f"cannot be repaired: {exc.strerror or exc}; run this again") from exc

    def _take(self) -> None:
        trail, system = self._trail, self._system
        missing = None
        try:
            finish_rotation(trail, system)
        except AuditBrokenError as exc:
            missing = exc
        flags = 0
        if not os.path.lexists(trail):
            if missing is None:
                raise broken(trail, "there is no trail, and nothing to repair")
            flags = os.O_CREAT | os.O_EXCL  # in the place of the missing file: empty, and so broken
        files = open_for_writing(trail, flags, system, self._locks)
        if flags:
            status = system.lstat(rotated_files(trail)[-1].path)
            os.fchown(files.fd, status.st_uid, status.st_gid)
        self._active_fd = files.fd

    def _find_in_active(self) -> Fault | None:
        """Return what a start could not get over in the active file as such."""
        rotated = self._rotated()
        try:
            size = self._system.fstat(self._active_fd).st_size
            _, whole = find_whole(self._trail, self._active_fd, size)
        except AuditBrokenError as exc:
            return Fault(self._trail, str(exc))
        except OSError as exc:
            return Fault(self._trail, f"{self._trail.name} cannot be read: {exc.strerror or exc}")
        if whole == 0 and rotated:
            what = f"{self._trail.name} is empty, and {rotated[-1].path.name} is not all of the trail"
            return Fault(self._trail, what)
        return None

    def _find_in_chain(self) -> Fault | None:
        size = self._system.fstat(self._active_fd).st_size
        _, whole = find_whole(self._trail, self._active_fd, size)
        paths = [*(one.path for one in self._rotated()), *self._set_aside_before()]
        files = [TrailFile(path.name, self._reader(path)) for path in paths]
        files.append(TrailFile(self._trail.name, self._reader(self._trail, whole)))
        try:
            check_trail(files, is_part=True, trusts_repairs=True)
        except TrailBrokenError as exc:
            if _BROKEN in exc.file:
                raise broken(self._trail.with_name(exc.file), f"{exc}: nothing that a repair can mend") from None
            return Fault(self._trail.with_name(exc.file), str(exc))
        return None

    def _find_in_succession(self) -> Fault | None:
        first = self._first_line(self._trail)
        if first is None:
            return None
        try:
            check_start(self._trail, first, self._system)
            drop_unused_next(self._trail, self._system)
        except AuditBrokenError as exc:
            return Fault(next_path(self._trail) if os.path.lexists(next_path(self._trail)) else self._trail, str(exc))
        return None

    def _set_aside(self, fault: Fault) -> SetAside:
        found = survey(self._reader(fault.path)())
        standing = found if fault.path == self._trail else survey(self._reader(self._trail)())
        last = self._last(fault.path, [head for head in (found.last, standing.last) if head is not None])
        path = self._free_name(fault.path)
        repair = Repair(path.name, fault.path.name, found.size, found.sha256, last.seq, last.digest, fault.what)
        draft, fd = self._write_draft(b"".join(begin_anew(repair, standing, format_time(self._clock()))))
        self._link(fault.path, path)
        if fault.path != self._trail:
            first = self._first_line(self._trail)
            if first is not None and standing.last is not None:
                self._link(self._trail, rotated_path(self._trail, first.seq, standing.last.seq))
        self._system.rename(draft, self._trail)
        self._system.sync_directory(self._trail.parent)
        self._active_fd = fd
        if fault.path != self._trail:
            self._system.unlink(fault.path)
            self._system.sync_directory(self._trail.parent)
        return SetAside(path, found.size, found.sha256, last.seq + 1, len(standing.open_intents))

    def _last(self, left_out: Path, heads: list[Head]) -> Head:
        """Return the last record of all: what a lost one was is told by the names of files, and its hash by nothing."""
        for one in self._rotated():
            heads.append(Head(one.last, GENESIS.digest))
            if one.path != left_out:
                with contextlib.suppress(AuditBrokenError, AuditUnavailableError):
                    heads.append(end_of(one, self._system))
        return max(heads, default=GENESIS)

    def _write_draft(self, data: bytes) -> tuple[Path, int]:
        """Return the new file, on the disk under a name that nothing else has, and locked."""
        draft, system = self._trail.with_name(f".{self._trail.name}.repair"), self._system
        if os.path.lexists(draft):  # of a run that was killed
            system.unlink(draft)
        files = open_for_writing(draft, os.O_CREAT | os.O_EXCL, system, self._locks)
        owner = system.fstat(self._active_fd)
        os.fchown(files.fd, owner.st_uid, owner.st_gid)
        rest = data
        while rest:  # a disk that fills up takes a part and reports it as a success
            rest = rest[system.write(files.append, rest) :]
        system.fsync(files.append)
        system.sync_directory(draft.parent)
        return draft, files.fd

    def _link(self, source: Path, target: Path) -> None:
        if not _is_same(source, target):
            self._system.link(source, target)
        self._system.sync_directory(target.parent)

    def _free_name(self, path: Path) -> Path:
        """Return the name under which a file is set aside: the one it has already, or a new one."""
        names = (self._trail.with_name(f"{self._trail.name}{_BROKEN}{number}") for number in itertools.count(1))
        return next(name for name in names if not os.path.lexists(name) or _is_same(path, name))

    def _set_aside_before(self) -> list[Path]:
        """Return the files that repairs set aside, but for one that was about to be."""
        names = sorted(self._trail.parent.glob(f"{self._trail.name}{_BROKEN}*"))
        return [path for path in names if not _is_same(path, self._trail)]

    def _drop_old_names(self) -> None:
        """Take from rotated files that a repair set aside the names that it had no time to take."""
        told = self._first_line(self._trail)
        name = (told.additional_event_data or {}).get("brokenFile") if told is not None else None
        for aside in self._set_aside_before():
            for one in self._rotated():
                if aside.name == name and _is_same(one.path, aside):
                    self._system.unlink(one.path)
                    self._system.sync_directory(self._trail.parent)

    def _rotated(self) -> list[RotatedFile]:
        # An active file that a killed run was about to rotate has two names.
        return [one for one in rotated_files(self._trail) if not _is_same(one.path, self._trail)]

    def _first_line(self, path: Path) -> Line | None:
        try:
            return parse(next(self._reader(path)(), b""))
        except MalformedLineError:
            return None

    def _reader(self, path: Path, stop: int | None = None) -> Callable[[], Iterator[bytes]]:
        def read() -> Iterator[bytes]:
            with contextlib.ExitStack() as stack:
                fd = open_regular(path, os.O_RDONLY, self._system, stack)
                yield from salvage(fd, self._system.fstat(fd).st_size if stop is None else stop, self._system)

        return read


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two names are of one file."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False
