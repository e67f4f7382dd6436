"""Reduce old files: keep what administered keys and kmsd itself, drop what used keys (FORMAT.md, "Reduced files").

A file is reduced as a whole, oldest first, once its records are old enough or all files together are too large. Its
chain is checked first, and the audit key signs what was kept; a file that was changed is left as it is. The reduced
file is on the disk under its name, and a record of it in the trail, before the whole one is removed. A crash leaves
both at worst; then the whole one counts, and is reduced again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from kmsd.api import OPERATIONS
from kmsd.api.credentials import GET_CREDENTIAL
from kmsd.api.operation import Cost
from kmsd.audit.active import ActiveFile
from kmsd.audit.chain import parse, parse_time
from kmsd.audit.checkpoint import Signer
from kmsd.audit.files import RotatedFile, open_part, rotated_files
from kmsd.audit.reading import last_line_end, lines_between
from kmsd.audit.record import MAX_MESSAGE_CHARACTERS, Kind, Record
from kmsd.audit.reduced import head_line
from kmsd.audit.reducing import survey, write_reduced
from kmsd.audit.standing import system_record
from kmsd.audit.succession import AuditBrokenError, first_line, prev_of
from kmsd.audit.system import System, unavailable

# What uses keys, and comes as often as callers like: AWS calls it the data plane.
_DATA_PLANE = frozenset(
    {*(one.name for one in OPERATIONS if one.cost in {Cost.CRYPTOGRAPHY, Cost.FILE}), GET_CREDENTIAL.name}
)
_FILE_KINDS = frozenset({Kind.BEGIN, Kind.END})


class Recorder(Protocol):
    """The trail, as far as reducing its files is recorded in it."""

    @property
    def signer(self) -> Signer | None:
        """The audit key, None while nobody may use it."""

    def append(self, records: Sequence[Record]) -> int:
        """Write records and return how many bytes they took; raises AuditUnavailableError."""

    async def sync(self) -> None:
        """Return when they are durable; raises AuditUnavailableError."""


class _Line(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    event_type: str
    event_name: str
    read_only: bool = False


_DECODER = msgspec.json.Decoder(_Line)


def is_management(line: bytes) -> bool:
    """Return whether a record is kept for ever: all but uses of keys that were answered or refused, and of files."""
    try:
        record = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # whoever checks the chain says what is wrong with it
    if record.event_type in _FILE_KINDS:
        return False
    return not (record.event_type == Kind.REQUEST and record.read_only and record.event_name in _DATA_PLANE)


@dataclass(frozen=True)
class Retention:
    """When rotated files are reduced: by the age of their last record, or the bytes of all files; 0: never."""

    keep_seconds: float = 0.0
    keep_bytes: int = 0
    is_management: Callable[[bytes], bool] = is_management


class Retainer:
    """Applies a retention to the rotated files of one trail."""

    def __init__(self, path: Path, retention: Retention, system: System) -> None:
        self._path = path
        self._retention = retention
        self._system = system
        self._broken: set[str] = set()  # files that were found changed, and are told of once

    async def reduce_one(self, trail: Recorder, active: ActiveFile, now: float) -> str | None:
        """Reduce the oldest file whose time has come; return what an administrator has to look at, if anything.

        Does nothing while there is no audit key. Raises AuditUnavailableError when it cannot be done now.
        """
        if trail.signer is None or not (self._retention.keep_seconds or self._retention.keep_bytes):
            return None
        try:
            files = rotated_files(self._path)
            oldest = next((file for file in files if self._may_be_reduced(file)), None)
            if oldest is None or not self._is_due(oldest, files, active, now):
                return None
            return await self._reduce(oldest, files, trail, active)
        except OSError as exc:
            raise unavailable(self._path, f"a file cannot be reduced: {exc.strerror or exc}") from exc

    async def _reduce(
        self, file: RotatedFile, files: list[RotatedFile], trail: Recorder, active: ActiveFile
    ) -> str | None:
        is_kept, system = self._retention.is_management, self._system
        try:
            behind = next((other for other in files if other.first > file.first), None)
            next_prev = first_line(self._path, active.part).prev if behind is None else prev_of(behind, system)
            # In a thread, as the event loop has others to serve; Python's lock lets them have their turns.
            surveyed = await asyncio.to_thread(survey, file, next_prev, is_kept, system)
        except AuditBrokenError as exc:
            self._broken.add(file.path.name)
            fault = str(exc)[:MAX_MESSAGE_CHARACTERS]
            trail.append([system_record("AuditFileBroken", {"file": file.path.name, "fault": fault})])
            return fault
        signer = trail.signer
        if signer is None:  # sealed meanwhile
            return None
        line = head_line(signer, surveyed.reduced, surveyed.sha256)
        await asyncio.to_thread(write_reduced, file, line, surveyed, is_kept, system)
        reduced = surveyed.reduced
        details = {"kept": reduced.kept, "dropped": reduced.dropped, "sha256": surveyed.sha256}
        trail.append([system_record("ReduceAuditFile", {"file": file.path.name, **details})])
        await trail.sync()
        system.unlink(file.path)
        system.sync_directory(self._path.parent)
        return None

    def _may_be_reduced(self, file: RotatedFile) -> bool:
        return not file.is_reduced and file.path.name not in self._broken

    def _is_due(self, oldest: RotatedFile, files: list[RotatedFile], active: ActiveFile, now: float) -> bool:
        keep_seconds, keep_bytes = self._retention.keep_seconds, self._retention.keep_bytes
        if 0 < keep_bytes < active.end.size + sum(self._system.lstat(file.path).st_size for file in files):
            return True
        return 0 < keep_seconds < now - _last_time(oldest, self._system)


def _last_time(rotated: RotatedFile, system: System) -> float:
    """Return when the last record of a file was written; the beginning of time if it does not say.

    Such a file is looked at at once, which finds what is wrong with it.
    """
    with open_part(rotated, system) as part:
        line = b"".join(lines_between(part.fd, last_line_end(part.fd, part.stop - 1, system.pread), part.stop))
    try:
        return parse_time(parse(line).event_time)
    except ValueError:
        return -math.inf
