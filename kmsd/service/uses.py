"""Uses of all keys: counted in memory, stored each minute, and counted again from the trail after a kill.

1. A request counts its use before its record is in the trail (`kmsd.service.key_use`).
2. A flush stores what was counted, and with the last of it the number of the trail's last record by then: what was
   counted for records up to that one is stored.
3. What a process that was killed had not stored stands in the trail behind that number. The next process counts it from
   there, once, while others are served already: a busy minute has a million records, and nobody should wait for them.
   Until that is done no flush moves the number, and nobody is told how long a key has not been used.
4. Where the trail cannot tell (its records are gone, or it is another trail), tracking begins anew: nothing of a key
   is known to be unused before now.

So every use is counted at least once, and exactly once unless a kill falls between the batches of a flush.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from msgspec.structs import replace

from kmsd.api.errors import ConflictError, IntegrityError, KmsError, LimitExceededError
from kmsd.audit.chain import MAX_READ_LINE_BYTES
from kmsd.logs import Logger
from kmsd.service.key_use import KeyUse, Tracking
from kmsd.service.telling import told
from kmsd.service.under_way import look_at
from kmsd.service.use_records import Page, continues
from kmsd.store.base import Change, Insert, Replace, RowChangedError, RowExistsError, Store
from kmsd.store.rows import HousekeepingRow, KeyRow, UsageRow

# Rows of one commit: it takes the store's thread some ten milliseconds, and the event loop less.
BATCH_ROWS = 200
# Records without a use behind which the number is stored all the same, so that a later process need not read them: some
# fifty milliseconds of reading.
IDLE_RECORDS = 10_000
# Records that are read at once: some two milliseconds, in which nobody is served.
PAGE_RECORDS = 500
# Others that change the same rows do so once a minute.
_TRIES = 4


class ReadableTrail(Protocol):
    """What of `kmsd.audit.writer.Trail` this needs."""

    @property
    def head(self) -> tuple[int, str]:
        """The last line's number and hash."""

    async def sync(self) -> None:
        """Wait until everything written is on the disk; raises AuditUnavailableError."""

    def read(self, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        """Return lines behind a number."""


class KeyUses:
    """The uses of every key.

    `clock` gives seconds since 1970 UTC, `certain_ms` the time that is sure to have passed.
    """

    def __init__(
        self,
        store: Store,
        trail: ReadableTrail,
        logger: Logger,
        *,
        clock: Callable[[], float],
        certain_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._trail = trail
        self._logger = logger
        self._tracking = Tracking(clock, certain_ms)
        self._keys: WeakValueDictionary[str, KeyUse] = WeakValueDictionary()
        self._counting = asyncio.Lock()
        self._flushing = asyncio.Lock()
        # Up to which record the trail is to be counted, once there was somebody who could use keys; and how far it was.
        self._until: tuple[int, str] | None = None
        self._position: int | None = None
        # Why not all uses can be counted from the trail, if that is so.
        self._missing: str | None = None
        # Up to which record what is stored was counted; None: that is to be stored whether anything was used or not.
        self._stored_sequence: int | None = None

    def begin(self) -> None:
        """Take note of where the trail is before the first use of a key; called whenever there are keys."""
        if self._until is None:
            self._until = self._trail.head

    def of(self, key: KeyRow, stored: UsageRow | None) -> KeyUse:
        """Return the uses of a key, of which this was read from the store."""
        use = self._find(key.key_id)
        use.learn(key.creation_ms, stored)
        return use

    def _find(self, key_id: str) -> KeyUse:
        use = self._keys.get(key_id)
        if use is None:
            self._keys[key_id] = use = KeyUse(key_id, self._tracking)
        return use

    def forget(self, key_id: str) -> None:
        """Forget the uses of a key that was destroyed."""
        use = self._keys.pop(key_id, None)
        if use is not None:
            use.drop()

    def last_used_ms(self, key_id: str, stored: UsageRow | None) -> int:
        """Return when a key was used last, of which this is stored; 0 if it never was."""
        use = self._keys.get(key_id)
        known = (stored, None if use is None else use.total())
        return max((one.last_ms for one in known if one is not None), default=0)

    async def keep(self) -> None:
        """Count what is not counted yet, and store it; raises a KmsError when that cannot be done now."""
        await self.recount()
        await self.flush()

    async def keep_if_possible(self) -> None:
        """Store what was counted, before keys are taken away; what cannot be stored is counted from the trail later."""
        try:
            await self.flush()
        except KmsError as error:
            self._logger.warning("uses_not_stored", code=error.code, reason=error.message)

    async def recount(self) -> None:
        """Count what an earlier process did not store, unless that was done; raises a KmsError when it cannot be."""
        async with self._counting:
            if self._tracking.since_ms is not None or self._until is None:
                return
            with told():
                row = await self._store.housekeeping()
            if row is None or not row.tracking_ms:
                self._track_from_now()
            elif not self._is_counted_trail(row, *self._until):
                self._begin_anew(f"it is not the one whose records were counted up to {row.counted_sequence}")
            else:
                await self._count_from(row.counted_sequence, self._until[0])
                if self._missing is None:
                    self._tracking.since_ms = row.tracking_ms
                    self._stored_sequence = row.counted_sequence
                else:
                    self._begin_anew(self._missing)

    def _is_counted_trail(self, row: HousekeepingRow, until: int, digest: str) -> bool:
        """Tell whether the trail, of which this is the last record, has the one up to which uses were counted.

        A store that was restored from a backup may have come to the trail of another host.
        """
        if row.counted_sequence >= until:
            return (row.counted_sequence, row.counted_digest) == (until, digest)
        return continues(self._read(row.counted_sequence, 1), row.counted_digest)

    def _read(self, after: int, limit: int) -> list[str]:
        try:
            return self._trail.read(after_seq=after, limit=limit, max_bytes=MAX_READ_LINE_BYTES)
        except (IntegrityError, LimitExceededError):
            return []

    async def _count_from(self, counted: int, until: int) -> None:
        """Count what the trail has from behind one number up to another; who is cancelled is gone on for later."""
        if self._position is None:
            self._position = counted
        while self._position < until:
            page = Page(self._read(self._position, PAGE_RECORDS), self._position, until)
            if page.gap:
                self._missing = f"of the records behind {self._position} some are not there, or are none"
            for key_id, found in page.uses.items():
                self._find(key_id).recount(found)
            self._position = page.last
            await asyncio.sleep(0)

    def _begin_anew(self, reason: str) -> None:
        self._logger.warning("uses_not_known", reason=f"the audit trail does not tell all uses of keys: {reason}")
        self._track_from_now()

    def _track_from_now(self) -> None:
        self._tracking.since_ms = self._tracking.certain_ms()
        self._stored_sequence = None

    async def flush(self) -> None:
        """Store what was counted, unless something is not counted yet; raises a KmsError when that cannot be done now.

        It goes on to its end when who waits for it is cancelled: half of it would be counted twice.
        """
        task = asyncio.ensure_future(self._flush_in_turn())
        task.add_done_callback(look_at)
        await asyncio.shield(task)

    async def _flush_in_turn(self) -> None:
        async with self._flushing:
            for _ in range(_TRIES):
                with told(), contextlib.suppress(RowChangedError, RowExistsError):
                    await self._flush()
                    return
            raise ConflictError("uses of keys could not be stored: others changed the same rows again and again")

    async def _flush(self) -> None:
        if self._tracking.since_ms is None:
            return
        for use in tuple(self._tracking.changed.values()):
            if not use.is_certain:
                await self._look_up(use)
        # Nothing is awaited between these: what is taken is what was counted up to this record.
        head = self._trail.head
        changed = tuple(self._tracking.changed.values())
        self._tracking.changed.clear()
        taken = [use for use in changed if use.take()]
        if taken or self._stored_sequence is None or head[0] - self._stored_sequence >= IDLE_RECORDS:
            await self._store_all(taken, head)
            self._stored_sequence = head[0]

    async def _look_up(self, use: KeyUse) -> None:
        key = await self._store.key(use.key_id)
        if key is None:
            self.forget(use.key_id)
        else:
            use.settle(key.creation_ms, await self._store.usage(use.key_id))

    async def _store_all(self, taken: Sequence[KeyUse], head: tuple[int, str]) -> None:
        """Store rows in batches, and with the last of them the record up to which their uses were counted."""
        begun = 0
        try:
            while True:
                batch = taken[begun : begun + BATCH_ROWS]
                begun += len(batch)
                await self._commit(batch, head if begun == len(taken) else None)
                if begun == len(taken):
                    return
        finally:
            for use in taken[begun:]:
                use.give_back()

    async def _commit(self, batch: Sequence[KeyUse], head: tuple[int, str] | None) -> None:
        changes = [_storing(use.attempt()) for use in batch]
        try:
            if head is not None:
                # A power cut must not leave the trail shorter than the store says it was.
                await self._trail.sync()
                changes.append(await self._counted_until(*head))
            await self._store.commit(None, changes)
        except BaseException:
            # They may be stored all the same, or others may have changed them: the next flush looks.
            for use in batch:
                use.doubt()
            raise
        for use in batch:
            use.keep()

    async def _counted_until(self, sequence: int, digest: str) -> Change:
        row = await self._store.housekeeping()
        row = row or HousekeepingRow(certain_ms=0, boot_id="", uptime_ms=0, slack_ms=0, version=0)
        counted = replace(
            row,
            counted_sequence=sequence,
            counted_digest=digest,
            tracking_ms=self._tracking.since_ms or 0,
            version=row.version + 1,
        )
        return Insert(counted) if counted.version == 1 else Replace(counted)


def _storing(row: UsageRow) -> Change:
    return Insert(row) if row.version == 1 else Replace(row)
