"""Write the trail, and refuse when it cannot be written (DESIGN 9).

Appending a batch:
1. Refuse while a sync is failing or hanging. After a refusal, first see whether the file is what it should be.
2. Encode and chain all records; nothing is written if one of them cannot be.
3. One write(2). Short or failed: cut the file back to its last whole line and refuse; `seq` and `prev` stay.
4. Look the path up: the lines count only if they are now at the end of the file that bears the trail's name. One
   lstat (0.7 us, however large the batch) tells a removed, renamed, replaced, truncated or foreign-written file from
   ours, so it is done after every write, and no request is ever answered on a record that went into a lost file.
5. Only now `seq`, `prev` and the size advance.

After a refusal nothing has to be reset: the next append starts at 1 again, and works as soon as the cause is gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import msgspec

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.chain import Head, digest_of, fits, format_time, link
from kmsd.audit.opening import Opened, Torn, open_file
from kmsd.audit.reading import last_line_end, read_after, read_last
from kmsd.audit.record import SETTLES, Intent, Kind, Record
from kmsd.audit.syncing import End, Syncer
from kmsd.audit.system import System, unavailable
from kmsd.audit.verify import MARK

# How many bytes may lie behind a mark. All of them are checked at the next start: 16 MiB are some 25,000 records and
# take about 0.1 s, while a mark itself costs one record in as many.
MARK_EVERY_BYTES = 16 * 1024 * 1024

# When too many intents were open for a mark, how many bytes until it is tried again: trying takes some milliseconds.
MARK_RETRY_BYTES = 1024 * 1024

# What encoding a record or the time may raise: a number or a nesting that JSON cannot have, a clock far out of range.
_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, OSError, RecursionError, msgspec.MsgspecError)

_INTENTS = frozenset(SETTLES.values())
_REQUEST = Kind.REQUEST  # looking it up in its class once a record would cost 0.07 us of about 2


class SyncMode(StrEnum):
    """What makes the records of ordinary requests durable; intents are always synced by who writes them."""

    INTERVAL = "interval"  # append schedules a sync, at most every 50 ms; nobody waits for it
    ALWAYS = "always"  # whoever appends awaits `Trail.sync` before replying
    OS = "os"  # the kernel writes them back when it likes


class Trail:
    """The audit trail of one daemon: the only writer of its file. Made by `open`.

    All methods are for one thread (that of the event loop). `mode` tells what ordinary requests have to wait for.
    """

    def __init__(self, path: Path, opened: Opened, mode: SyncMode, clock: Callable[[], float], system: System) -> None:
        self.mode = mode
        self._path = path
        self._fd = opened.fd
        self._append_fd = opened.append_fd
        self._clock = clock
        self._system = system
        self._identity = opened.identity
        self._end = End(opened.size, opened.head)
        self._residue: int | None = None  # the size that a refused append may have left the file with
        self._mark_behind = opened.checked_from + MARK_EVERY_BYTES
        self._found_open = opened.open_intents
        self._open = {(intent.kind, intent.request_id): intent for intent in opened.open_intents}
        self._syncer = Syncer(path, opened.append_fd, opened.fd, lambda: self._end, system)

    @classmethod
    def open(cls, path: Path, *, sync: SyncMode, clock: Callable[[], float], system: System | None = None) -> Self:
        """Open the trail at `path`, or begin one, and continue its chain.

        `clock` returns seconds since 1970. Raises AuditUnavailableError when the file cannot be used now, and
        AuditBrokenError when it is not a whole trail. What a crash left unfinished is kept beside it and recorded.
        """
        system = system or System()
        opened = open_file(path, system)
        trail = cls(path, opened, sync, clock, system)
        if opened.torn is not None:
            try:
                trail.append([_recovery(opened.torn)])
            except AuditUnavailableError:
                trail.close()
                raise
        return trail

    @property
    def head(self) -> tuple[int, str]:
        """The number of the last record and the SHA-256 of its line in hex."""
        return self._end.head

    def append(self, records: Sequence[Record]) -> int:
        """Write the records as one batch, all of them or none, and return how many bytes they took.

        Raises AuditUnavailableError, naming the file and the reason, when the trail cannot be written; nothing may
        then be done or answered on the strength of these records. Returns before they are durable: see `SyncMode`.
        """
        if not records:
            return 0
        self._refuse_if(self._syncer.trouble())
        end = self._end
        if self._residue is not None:
            self._take_back(self._residue)
            self._refuse_if(self._misplaced(end.size) or self._changed(end))
            self._residue = None
        if end.size > self._mark_behind:
            records = [*self._mark(end), *records]
        lines, head = self._link(end.head, records)
        data = b"".join(lines)
        new = End(end.size + len(data), head)
        self._write(data)
        misplaced = self._misplaced(new.size)
        if misplaced is not None:
            self._take_back(new.size)
            raise unavailable(self._path, misplaced)
        self._end = new
        for seq, record in enumerate(records, end.head.seq + 1):
            if record.kind is not _REQUEST:
                self._note(seq, record, end.size)
        if self.mode is SyncMode.INTERVAL:
            self._syncer.schedule()
        return len(data)

    async def sync(self) -> None:
        """Return when all that was appended is durable; raises AuditUnavailableError. Many callers share one sync."""
        await self._syncer.sync()

    def open_intents(self) -> tuple[Intent, ...]:
        """Return the intents and begins that nothing had settled when the trail was opened, oldest first."""
        return self._found_open

    def read(self, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        """Return at most `limit` lines behind number `after_seq`, of `max_bytes` together, oldest first, no line feeds.

        Raises LimitExceededError when the first alone is longer, IntegrityError where the file holds no record, and
        AuditUnavailableError when it cannot be read.
        """
        try:
            return read_after(self._fd, self._end.size, after_seq=after_seq, limit=limit, max_bytes=max_bytes)
        except OSError as exc:
            raise unavailable(self._path, exc) from exc

    def read_tail(self, *, limit: int, max_bytes: int) -> list[str]:
        """Return the last lines, oldest first; bounds and errors as in `read`."""
        try:
            return read_last(self._fd, self._end.size, limit=limit, max_bytes=max_bytes)
        except OSError as exc:
            raise unavailable(self._path, exc) from exc

    def close(self) -> None:
        """Sync what is left and close the file; raises AuditUnavailableError when that sync failed. Idempotent."""
        if self._append_fd < 0:
            return
        # A sync that hangs in the kernel keeps the descriptors: their numbers must not come to mean other files.
        if self._syncer.close():
            os.close(self._append_fd)
            os.close(self._fd)
        self._append_fd = self._fd = -1
        self._refuse_if(self._syncer.trouble())

    def _write(self, data: bytes) -> None:
        size = self._end.size
        try:
            written = self._system.write(self._append_fd, data)
        except OSError as exc:
            self._take_back(size)
            raise unavailable(self._path, exc) from exc
        if written < len(data):
            self._take_back(size + written)
            raise unavailable(self._path, f"took only {written} of {len(data)} bytes; no space left, or a size limit")

    def _misplaced(self, size: int) -> str | None:
        """Return what is wrong with the file that bears the trail's name, None if it is ours and has `size` bytes."""
        try:
            status = self._system.lstat(self._path)
        except OSError as exc:
            return f"the file was removed or renamed ({exc.strerror or exc})"
        if (status.st_dev, status.st_ino) != self._identity:
            return "the file was replaced by another"
        if status.st_size != size:
            return f"the file has {status.st_size} bytes and not {size}: truncated, or written by another program"
        return None

    def _changed(self, end: End) -> str | None:
        """Return whether the last record is still where it was; asked only after a refusal.

        A truncated file that refused records were appended to can come to have the right size by chance.
        """
        if end.size == 0:
            return None
        try:
            start = last_line_end(self._fd, end.size - 1, self._system.pread)
            line = self._system.pread(self._fd, end.size - start, start)
        except OSError as exc:
            return f"the last record cannot be read back: {exc.strerror or exc}"
        return None if digest_of(line) == end.head.digest else "the last record is not in the file any more"

    def _take_back(self, size: int) -> None:
        """Cut off what a refused append left, if the file has exactly the `size` that it left it with.

        The file may be ours and elsewhere, and has to be whole should it come back; with any other size somebody else
        changed it, and cutting would make the size right over wrong content. The next append tries this again.
        """
        self._residue = size
        whole = self._end.size
        with contextlib.suppress(OSError):
            if size > whole and self._system.fstat(self._append_fd).st_size == size:
                self._system.ftruncate(self._append_fd, whole)

    def _refuse_if(self, trouble: str | None) -> None:
        if trouble is not None:
            raise unavailable(self._path, trouble)

    def _note(self, seq: int, record: Record, offset: int) -> None:
        """Keep what the next mark has to say; `offset` is where the batch began."""
        if record.kind in _INTENTS:
            self._open[record.kind, record.request_id] = Intent(
                seq, record.kind, record.event_name, record.request_id, record.actor, record.resources
            )
        elif record.kind in SETTLES:
            self._open.pop((SETTLES[record.kind], record.request_id), None)
        elif record.event_name == MARK:
            self._mark_behind = offset + MARK_EVERY_BYTES  # a mark is always the first of its batch

    def _mark(self, end: End) -> list[Record]:
        """Return the mark, or none when its line would be too long: cut, it would lose what a start relies on."""
        # The mark stands before the batch, so it has only what was open before.
        intents = msgspec.to_builtins(list(self._open.values()))
        mark = _system_record(MARK, {"openIntents": intents})
        if fits(mark):
            return [mark]
        self._mark_behind = end.size + MARK_RETRY_BYTES
        return []

    def _link(self, head: Head, records: Sequence[Record]) -> tuple[list[bytes], Head]:
        try:
            return link(head, records, format_time(self._clock()))
        except _ENCODE_ERRORS as exc:
            # The text may quote the record.
            raise unavailable(self._path, f"a record cannot be written ({type(exc).__name__})") from None


def _recovery(torn: Torn) -> Record:
    details = {"tornBytes": torn.length, "tornSha256": torn.sha256, "keptAs": torn.kept_as.name}
    return _system_record("RecoverAuditTrail", details)


def _system_record(event_name: str, details: dict[str, Any]) -> Record:
    return Record(Kind.SYSTEM, event_name, actor=None, request_id="", read_only=False, details=details)
