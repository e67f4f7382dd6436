"""From the audit trail into the event log: each event once, in order, whatever happens in between.

1. At the start, events whose records the trail does not hold are dropped: it is another trail, or an earlier one.
2. What stands behind the position, or else behind the last event, is read and projected, page by page.
3. From then on the trail tells what it writes. An event goes into the log only when its record is on the disk, so that
   a power cut takes no event that somebody was told of.
4. Whatever fails in between leads back to 2; a log that somebody has written into, or cut, to 1.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from kmsd.api.errors import IntegrityError, KmsError, LimitExceededError
from kmsd.api.events import Event
from kmsd.audit.chain import MAX_READ_LINE_BYTES, digest_of, seq_of
from kmsd.audit.record import Record
from kmsd.audit.writer import Trail
from kmsd.events.log import EventLog, LogSpoiledError, Position
from kmsd.events.projection import PROJECTED, Projection, id_of
from kmsd.logs import Logger
from kmsd.service.grace import within
from kmsd.service.loops import Loop

# A page of some 150 KiB takes about a millisecond, and requests are served between two.
_PAGE_RECORDS = 256
_PAUSE_SECONDS = 0.005
# How much of the trail is read once more after a kill. More often would be a write for nobody's good.
_POSITION_SECONDS = 60.0
_AGAIN_SECONDS = 1.0
# A fault comes with a traceback in the log, and may come each time.
_AFTER_FAULT_SECONDS = 60.0
# So many wait to be projected, while a disk is slow; beyond, they are read from the trail again.
_MOST_LINES = 1024


class EventFeed:
    """Feeds the log at `path` from `trail`.

    `changed` is set, and another takes its place, when there is something new to read. `sleep` waits for so many
    seconds.
    """

    def __init__(
        self,
        *,
        trail: Trail,
        path: Path,
        projection: Projection,
        logger: Logger,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._trail = trail
        self._path = path
        self._projection = projection
        self._logger = logger
        self._sleep = sleep
        self.changed = asyncio.Event()
        # What all who read the log now should know at once although it is no event of the trail.
        self.urgent: Event | None = None
        self._log: EventLog | None = None
        self._position = 0
        self._lines: deque[str] = deque()
        self._wake = asyncio.Event()
        self._live = False
        self._spoiled = False
        self._told_of: str | None = None
        # How many events were written since the start.
        self.written = 0
        self._feeding, self._keeping = (
            Loop(run, event="events_failed", logger=logger, sleep=sleep, pause_seconds=_AFTER_FAULT_SECONDS)
            for run in (self._run, self._keep_positions)
        )

    @property
    def is_current(self) -> bool:
        """Whether the log has the events of all that is on record."""
        return self._live and not self._lines

    def start(self) -> None:
        """Begin to project; what is appended to the trail from now on is not missed."""
        self._trail.on_record = self._note
        self._feeding.begin()
        self._keeping.begin()

    async def opened(self) -> EventLog:
        """Return the log, which may lack events yet that are on record."""
        while self._log is None:
            await self.changed.wait()
        return self._log

    async def caught_up(self) -> EventLog:
        """Return the log once it has all that is on record now."""
        await self.opened()
        head, _ = self._trail.head
        self._wake.set()
        while self._log is None or self._position < head:
            await self.changed.wait()
        return self._log

    @property
    def _opened_log(self) -> EventLog:
        if self._log is None:
            raise RuntimeError("the event log is not open yet")
        return self._log

    async def close(self, grace_seconds: float) -> None:
        """Project what is on record now, within the grace, and end."""
        self._wake.set()
        async with within(grace_seconds):
            while self._feeding.begun and self._position < self._trail.head[0]:
                await self.changed.wait()
        await self._feeding.close()
        await self._keeping.close()
        self._keep_position()

    def tell(self, urgent: Event | None) -> None:
        """Tell those who read the log now, or have nothing more to tell."""
        self.urgent = urgent
        self._tell_readers()

    def distrust(self, log: EventLog) -> None:
        """Have the log made anew, which somebody found spoiled, unless that was done since."""
        if log is self._log:
            self._spoiled = True
            self._wake.set()

    def _note(self, record: Record, line: bytes) -> None:
        """Take a record of the trail; called by the trail, which must not be held up."""
        if not self._live or record.event_name not in PROJECTED:
            return
        if len(self._lines) >= _MOST_LINES:
            self._live = False
        self._lines.append(line[:-1].decode("ascii"))
        self._wake.set()

    async def _run(self) -> None:
        self._live = False
        while True:
            try:
                if self._log is None:
                    self._open()
                await self._catch_up()
                await self._go_on()
            except (OSError, KmsError) as error:
                self._live = False
                self._complain(error)
                if isinstance(error, LogSpoiledError):
                    self._give_up()
                await self._sleep(_AGAIN_SECONDS)

    def _give_up(self) -> None:
        """Part with the log; who reads it asks again, for the one that takes its place."""
        if self._log is not None:
            self._log.give_up()
        self._log = None
        self._spoiled = False
        self._tell_readers()

    def _open(self) -> None:
        """Open the log, drop of it what the trail does not hold, and find out behind which record to go on."""
        log = EventLog.open(self._path)
        self._drop(log)
        position = log.position()
        self._position = position.sequence if position is not None and self._is_at(position) else log.last
        self._log = log
        self._tell_readers()

    def _drop(self, log: EventLog) -> None:
        events = log.events()
        if events and not self._holds(events[-1]):
            # Each line of a trail is chained to all before it, so that two trails are one up to some line.
            held = bisect.bisect_left(events, True, key=lambda event: not self._holds(event))
            self._logger.warning("events_dropped", count=len(events) - held, reason="the audit trail holds them not")
            log.cut_behind(events[held - 1].sequence if held else 0)

    def _holds(self, event: Event) -> bool:
        line = self._record(event.sequence)
        return line is not None and id_of(line) == event.id

    def _is_at(self, position: Position) -> bool:
        line = self._record(position.sequence)
        return line is not None and digest_of(f"{line}\n".encode("ascii")) == position.digest

    def _record(self, sequence: int) -> str | None:
        """Return the first record that has this number or a higher one."""
        try:
            lines = self._trail.read(after_seq=max(sequence - 1, 0), limit=1, max_bytes=MAX_READ_LINE_BYTES)
        except KmsError:
            return None
        return lines[0] if lines else None

    async def _catch_up(self) -> None:
        """Project what is on record behind the position; return when there is nothing left, and nothing is missed."""
        self._lines.clear()
        while self._position < (head := self._trail.head[0]):
            try:
                lines = self._trail.read(after_seq=self._position, limit=_PAGE_RECORDS, max_bytes=MAX_READ_LINE_BYTES)
            except (IntegrityError, LimitExceededError) as error:
                # Without this, nothing would ever be told again.
                self._logger.warning("events_incomplete", behind=self._position, until=head, reason=error.message)
                lines = []
            await self._project(lines)
            self._advance(_sequence_of(lines[-1]) if lines else head)
            if self._position < self._trail.head[0]:
                await self._sleep(_PAUSE_SECONDS)
        self._live = True

    async def _go_on(self) -> None:
        """Project what the trail tells; return when that was too much at once."""
        while self._live:
            await self._wake.wait()
            self._wake.clear()
            if self._spoiled:
                raise LogSpoiledError
            head, lines = self._trail.head[0], list(self._lines)
            await self._project(lines)
            for _ in lines:
                self._lines.popleft()
            if self._live:
                self._advance(head)

    async def _project(self, lines: Sequence[str]) -> None:
        events = [event for line in lines if (event := self._projection.event_of(line)) is not None]
        if not events:
            return
        await self._trail.sync()
        log = self._opened_log
        for event in events:
            if event.sequence > log.last:
                log.append(event)
                self.written += 1

    def _advance(self, sequence: int) -> None:
        self._position = sequence
        self._told_of = None
        self._tell_readers()

    def _tell_readers(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def _keep_positions(self) -> None:
        while True:
            await self._sleep(_POSITION_SECONDS)
            self._keep_position()

    def _keep_position(self) -> None:
        head, digest = self._trail.head
        if self._live and not self._lines:
            with contextlib.suppress(OSError):  # the next start then reads a little more of the trail
                self._opened_log.keep_position(head, digest)

    def _complain(self, error: OSError | KmsError) -> None:
        reason = error.message if isinstance(error, KmsError) else str(error)
        if reason != self._told_of:  # it is tried again every second, and told once
            self._logger.warning("events_not_written", reason=reason)
        self._told_of = reason


def _sequence_of(line: str) -> int:
    sequence = seq_of(line.encode("ascii"))
    if sequence is None:
        raise IntegrityError("the audit trail has a line that is no record")
    return sequence
