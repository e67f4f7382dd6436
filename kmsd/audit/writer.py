"""Write the trail, and refuse when it cannot be written (DESIGN 9).

Appending a batch:
1. Refuse while a sync is failing or hanging. After a refusal, first see whether the file is what it should be.
2. Encode and chain all records; nothing is written if one of them cannot be.
3. Have the active file take the lines (`kmsd.audit.active`): all of them at the end of the file that bears the trail's
   name, or none. Only then `seq`, `prev` and the size advance.

After a refusal nothing has to be reset: the next append starts at 1 again, and works as soon as the cause is gone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Self

import msgspec

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.active import ActiveFile, End
from kmsd.audit.chain import Head, format_time, link
from kmsd.audit.checkpoint import CHECKPOINT, Checkpoint, Signer, sign
from kmsd.audit.history import History
from kmsd.audit.opening import Opened, Torn, open_trail
from kmsd.audit.record import Intent, Kind, Record
from kmsd.audit.retention import Retainer, Retention
from kmsd.audit.rotation import Rotation, name_of, put_back, rotate
from kmsd.audit.standing import Standing, system_record
from kmsd.audit.syncing import Syncer
from kmsd.audit.system import System, unavailable
from kmsd.audit.verify import MARK

# How many bytes may lie behind a mark. All of them are checked at the next start: 16 MiB are some 25,000 records and
# take about 0.1 s, while a mark itself costs one record in as many.
MARK_EVERY_BYTES = 16 * 1024 * 1024

# When too many intents were open for a mark, how many bytes until it is tried again: trying takes some milliseconds.
MARK_RETRY_BYTES = 1024 * 1024

# How many records there are to a checkpoint: signing takes some 100 us, so its share of a record is 0.01 us of about 7,
# and a busy host has one at least every second.
CHECKPOINT_EVERY_RECORDS = 10_000

# What encoding a record or the time may raise: a number or a nesting that JSON cannot have, a clock far out of range.
_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, OSError, RecursionError, msgspec.MsgspecError)

_ROTATION = Rotation()
_RETENTION = Retention()
_REQUEST = Kind.REQUEST  # looking it up in its class once a record would cost 0.07 us of about 2


class SyncMode(StrEnum):
    """What makes the records of ordinary requests durable; intents are always synced by who writes them."""

    INTERVAL = "interval"  # append schedules a sync, at most every 50 ms; nobody waits for it
    ALWAYS = "always"  # whoever appends awaits `Trail.sync` before replying
    OS = "os"  # the kernel writes them back when it likes


class Trail:
    """The audit trail of one daemon: the only writer of its files. Made by `open`.

    All methods are for one thread (that of the event loop). `mode` tells what ordinary requests have to wait for.
    `on_checkpoint` is called with each checkpoint after it was written, `on_record` with each record but those of
    ordinary requests and with its line, and `on_refusal` with the reason when `append` refuses. None of them may raise.
    """

    def __init__(
        self,
        path: Path,
        opened: Opened,
        mode: SyncMode,
        clock: Callable[[], float],
        rotation: Rotation,
        retention: Retention,
        checkpoint_records: int,
        system: System,
    ) -> None:
        self.mode = mode
        self.on_checkpoint: Callable[[Checkpoint], None] = _keep_nowhere
        self.on_record: Callable[[Record, bytes], None] = _tell_nobody
        self.on_refusal: Callable[[str], None] = _tell_nobody
        self._path = path
        self._clock = clock
        self._rotation = rotation
        self._checkpoint_records = checkpoint_records
        self._system = system
        self._file = opened.file
        self._mark_behind = opened.checked_from + MARK_EVERY_BYTES
        self._found_open = opened.open_intents
        self._standing = Standing(opened.open_intents, opened.store_sequence)
        self._signer: Signer | None = None
        self._signed_seq = 0
        self._sign_at = sys.maxsize  # the number of records at which the next checkpoint is due
        # How many bytes were written since it was opened, and how often none could be.
        self.written_bytes = 0
        self.refusals = 0
        self._syncer = Syncer(path, opened.file, system)
        self._retainer = Retainer(path, retention, system)
        self._history = History(path, lambda: self._file, system)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        sync: SyncMode,
        clock: Callable[[], float],
        rotation: Rotation = _ROTATION,
        retention: Retention = _RETENTION,
        checkpoint_records: int = CHECKPOINT_EVERY_RECORDS,
        system: System | None = None,
    ) -> Self:
        """Open the trail at `path`, or begin one, and continue its chain.

        `clock` returns seconds since 1970. Raises AuditUnavailableError when the file cannot be used now, and
        AuditBrokenError when it is not a whole trail. What a crash left unfinished is kept beside it and recorded.
        """
        system = system or System()
        opened = open_trail(path, system, clock())
        trail = cls(path, opened, sync, clock, rotation, retention, checkpoint_records, system)
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
        return self._file.end.head

    @property
    def store_sequence(self) -> int:
        """The highest number of commits of the store that the trail has told (`storeSequence`), 0 if it told none.

        Of an opened trail, what it has told since its last mark, which repeats what was told before.
        """
        return self._standing.store_sequence

    @property
    def lag_seconds(self) -> float | None:
        """For how long the oldest record that may not be on the disk has waited for that; None if none ever does."""
        return None if self.mode is SyncMode.OS else self._syncer.lag_seconds

    @property
    def signer(self) -> Signer | None:
        """The audit key, None while nobody may use it; with one, there is a checkpoint every so many records."""
        return self._signer

    @signer.setter
    def signer(self, signer: Signer | None) -> None:
        self._signer = signer
        self._sign_at = sys.maxsize if signer is None else self._file.end.head.seq + self._checkpoint_records

    def append(self, records: Sequence[Record]) -> int:
        """Write the records as one batch, all of them or none, and return how many bytes they took.

        Raises AuditUnavailableError, naming the file and the reason, when the trail cannot be written; nothing may
        then be done or answered on the strength of these records. Returns before they are durable: see `SyncMode`.
        """
        if not records:
            return 0
        try:
            file = self._ready()
            end = file.end
            if end.size > self._mark_behind:
                records = [*self._mark(end), *records]
            lines, head = self._link(end.head, records)
            data = b"".join(lines)
            file.append(data, head)
        except AuditUnavailableError as error:
            self.refusals += 1
            self.on_refusal(error.message)
            raise
        self.written_bytes += len(data)
        for place, record in enumerate(records):
            if record.kind is not _REQUEST:
                self._note(end.head.seq + 1 + place, record, end.size)
                self.on_record(record, lines[place])
        if self.mode is SyncMode.INTERVAL:
            self._syncer.schedule()
        if head.seq >= self._sign_at:
            with contextlib.suppress(AuditUnavailableError):  # the batch stands; the next one tries again
                self.checkpoint()
        return len(data)

    def checkpoint(self) -> Checkpoint | None:
        """Sign the trail as it is now and write that down; None without a signer, or when there is nothing new.

        Raises AuditUnavailableError like `append`.
        """
        file = self._ready()
        head = file.end.head
        if self._signer is None or head.seq == self._signed_seq:
            return None
        time = self._time()
        # The line has to have the number, the hash and the time that are signed, so it is a batch of its own.
        checkpoint = sign(self._signer, head.seq + 1, head.digest, time)
        details = {"keyId": checkpoint.key_id, "signature": checkpoint.signature}
        [line], head = self._link(head, [system_record(CHECKPOINT, details)], time)
        file.append(line, head)
        self.written_bytes += len(line)
        self._signed_seq = checkpoint.seq
        self._sign_at = checkpoint.seq + self._checkpoint_records
        if self.mode is SyncMode.INTERVAL:
            self._syncer.schedule()
        self.on_checkpoint(checkpoint)
        return checkpoint

    async def sync(self) -> None:
        """Return when all that was appended is durable; raises AuditUnavailableError. Many callers share one sync."""
        await self._syncer.sync()

    async def maintain(self) -> str | None:
        """Do what is due from time to time: begin a new file, reduce an old one. To be called every few seconds.

        Returns what an administrator has to look at, if anything: an old file that was changed. Raises
        AuditUnavailableError when something fails; the trail goes on as it is, and the next call tries again.
        """
        self._put_back()
        if self._is_rotation_due():
            self.checkpoint()
            # What this leaves to sync in the rotation itself, during which nobody is served, is little.
            await self.sync()
            if self._is_rotation_due():  # it was not closed meanwhile
                self._rotate()
        if self._file.is_gone:
            return None
        return await self._retainer.reduce_one(self, self._file, self._clock())

    def open_intents(self) -> tuple[Intent, ...]:
        """Return the intents and begins that nothing had settled when the trail was opened, oldest first."""
        return self._found_open

    def read(self, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        """Return at most `limit` lines behind number `after_seq`, of `max_bytes` together, oldest first, no line feeds.

        Raises LimitExceededError when the first alone is longer, IntegrityError where a file holds no record, and
        AuditUnavailableError when one cannot be read. Of what retention has reduced come the lines that were kept.
        """
        return self._history.read(after_seq=after_seq, limit=limit, max_bytes=max_bytes)

    def read_tail(self, *, limit: int, max_bytes: int) -> list[str]:
        """Return the last lines, oldest first; bounds and errors as in `read`."""
        return self._history.read_tail(limit=limit, max_bytes=max_bytes)

    @property
    def reduced_until(self) -> int:
        """The number up to which retention may have dropped records, 0 if it has dropped none."""
        return self._history.reduced_until

    def seq_before(self, event_time: str) -> int:
        """Return a number behind which all records of `event_time` and later stand, if the clock never stepped back.

        Raises AuditUnavailableError when the trail cannot be read.
        """
        return self._history.seq_before(event_time)

    def holds(self, checkpoint: Checkpoint, signer: Signer) -> bool:
        """Return whether exactly this checkpoint stands in the trail; raises AuditUnavailableError when it cannot tell.

        One older than all files that are still here counts if `signer`, the audit key, signed the next.
        """
        return self._history.holds(checkpoint, signer)

    def fault_behind(self, checkpoint: Checkpoint, signer: Signer) -> str | None:
        """Return why what stands behind a checkpoint that is held does not continue it, None if all of it does.

        Errors as in `holds`. 200,000 records take a second; there are those of a minute.
        """
        return self._history.fault_behind(checkpoint, signer)

    def close(self) -> None:
        """Sync what is left and close the file; raises AuditUnavailableError when that sync failed. Idempotent."""
        file = self._file
        if file.is_gone:
            return
        self._file = file.gone()
        # A sync that hangs in the kernel keeps the descriptors.
        if self._syncer.close():
            file.close()
        self._refuse_if(self._syncer.trouble())

    def _ready(self) -> ActiveFile:
        """Return the file to append to; raises AuditUnavailableError while nothing may be appended."""
        trouble = self._syncer.trouble()
        if trouble is not None:
            raise unavailable(self._path, trouble)
        file = self._file
        if file.residue is not None:
            file.recover()
        return file

    def _is_rotation_due(self) -> bool:
        return not self._file.is_gone and self._rotation.is_due(self._file, self._clock())

    def _rotate(self) -> None:
        old = self._ready()
        now = self._clock()
        mark = self._standing.mark(previousFile=name_of(self._path, old).name)
        if mark is None:  # too many open intents for a line: later
            return
        [line], head = self._link(old.end.head, [mark])
        self._file = rotate(self._path, old, line, head, now, self._system)
        self._syncer.switch(self._file)
        self._mark_behind = MARK_EVERY_BYTES
        # The file vouches for what it continues even when the files before it are put elsewhere.
        self.checkpoint()

    def _put_back(self) -> None:
        try:
            put_back(self._path, self._file, self._system)
        except OSError as exc:
            raise unavailable(self._path, f"cannot be put back: {exc.strerror or exc}") from exc

    def _note(self, seq: int, record: Record, offset: int) -> None:
        """Keep what the next mark has to say; `offset` is where the batch began."""
        self._standing.note(seq, record)
        if record.kind is Kind.SYSTEM and record.event_name == MARK:
            self._mark_behind = offset + MARK_EVERY_BYTES  # a mark is always the first of its batch

    def _mark(self, end: End) -> list[Record]:
        """Return the mark, or none when its line would be too long."""
        # The mark stands before the batch, so it has only what was open before.
        mark = self._standing.mark()
        if mark is None:
            self._mark_behind = end.size + MARK_RETRY_BYTES
            return []
        return [mark]

    def _time(self) -> str:
        try:
            return format_time(self._clock())
        except _ENCODE_ERRORS as exc:
            raise unavailable(self._path, f"the time cannot be written ({type(exc).__name__})") from None

    def _link(self, head: Head, records: Sequence[Record], event_time: str | None = None) -> tuple[list[bytes], Head]:
        try:
            return link(head, records, event_time or format_time(self._clock()))
        except _ENCODE_ERRORS as exc:
            # The text may quote the record.
            raise unavailable(self._path, f"a record cannot be written ({type(exc).__name__})") from None

    def _refuse_if(self, trouble: str | None) -> None:
        if trouble is not None:
            raise unavailable(self._path, trouble)


def _keep_nowhere(checkpoint: Checkpoint) -> None:
    """Leave a checkpoint where it is: in the trail only."""


def _tell_nobody(*_: object) -> None:
    """Leave it at that: nobody wants to know."""


def _recovery(torn: Torn) -> Record:
    details = {"tornBytes": torn.length, "tornSha256": torn.sha256, "keptAs": torn.kept_as.name}
    return system_record("RecoverAuditTrail", details)
