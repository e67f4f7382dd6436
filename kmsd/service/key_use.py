"""What is done with one key, counted in memory until it is stored.

Counting is on the path of every request, so it does no more than that: what was counted since the last flush is kept by
operation and version of the material, and summed with what is stored only when somebody wants to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from kmsd.service.key_dates import DAY_MS
from kmsd.store.rows import MaterialUse, UsageRow

# Stands for the version of the material where a record of the trail does not tell it.
UNKNOWN_VERSION = 0


class Tracking:
    """Since when, and how surely, uses are known; one for all keys.

    `since_ms` is when tracking began: from then on no use is missing. None: not all of them were counted yet.
    `clock` gives seconds since 1970 UTC, and `certain_ms` the time that is sure to have passed: a clock that runs ahead
    must not make a key look unused, nor one that is behind.
    """

    def __init__(self, clock: Callable[[], float], certain_ms: Callable[[], int]) -> None:
        self.clock = clock
        self.certain_ms = certain_ms
        self.since_ms: int | None = None
        # Those of which something is not stored.
        self.changed: dict[str, KeyUse] = {}

    def now(self) -> Now:
        """Return the time by which uses are stored."""
        certain_ms = self.certain_ms()
        return Now(certain_ms, max(0, certain_ms - int(self.clock() * 1000)))


class Now(NamedTuple):
    """The time that is sure to have passed, and how much the clock is behind it."""

    certain_ms: int
    behind_ms: int

    def certain(self, seconds: float) -> int:
        """Return when something happened of which the clock said this.

        No later than now: a clock that ran ahead would have a key look used until then.
        """
        return min(int(seconds * 1000) + self.behind_ms, self.certain_ms)


class Counted:
    """Uses that are not stored; each table has the number of uses and the last one's time, by operation and version."""

    __slots__ = ("decrypted", "encrypted", "operation", "request_id", "seconds")

    def __init__(self) -> None:
        self.encrypted: dict[tuple[str, int], list[float]] = {}
        self.decrypted: dict[tuple[str, int], list[float]] = {}
        # Of the last use.
        self.operation = ""
        self.request_id = ""
        self.seconds = 0.0

    def add(self, later: Counted) -> None:
        """Take in what was counted after this."""
        for mine, its in ((self.encrypted, later.encrypted), (self.decrypted, later.decrypted)):
            for which, (number, seconds) in its.items():
                tally = mine.setdefault(which, [0, 0.0])
                tally[0] += number
                tally[1] = max(tally[1], seconds)
        if later.seconds >= self.seconds:
            self.operation, self.request_id, self.seconds = later.operation, later.request_id, later.seconds

    def count(self, operation: str, request_id: str, seconds: float, times: int) -> None:
        """Count uses that a record of the trail tells of, which does not tell by which version of the material."""
        tally = self.encrypted.setdefault((operation, UNKNOWN_VERSION), [0, 0.0])
        tally[0] += times
        tally[1] = max(tally[1], seconds)
        if seconds >= self.seconds:
            self.operation, self.request_id, self.seconds = operation, request_id, seconds

    def added_to(self, row: UsageRow, now: Now) -> UsageRow:
        """Return a key's row with these uses in it."""
        counts, materials = dict(row.counts), dict(row.materials)
        for member, table in (("encrypted", self.encrypted), ("decrypted", self.decrypted)):
            for (operation, version), (number, seconds) in table.items():
                counts[operation] = counts.get(operation, 0) + int(number)
                if version != UNKNOWN_VERSION:
                    use = materials.get(str(version), MaterialUse())
                    materials[str(version)] = replace(
                        use,
                        **{member: getattr(use, member) + int(number)},
                        last_ms=max(use.last_ms, now.certain(seconds)),
                    )
        added = replace(row, counts=counts, materials=materials, version=row.version + 1)
        last_ms = now.certain(self.seconds)
        # One that was counted from the trail may be older than what was stored.
        if last_ms < row.last_ms:
            return added
        return replace(added, last_ms=last_ms, operation=self.operation, request_id=self.request_id)


class KeyUse:
    """The uses of one key: `row` is what is stored of them, None if nothing is.

    There is one object for each key at any time (`kmsd.service.uses`). `created_ms` is when the key was made, and None
    as long as neither that nor `row` was read, or what was read may not hold any more.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_clock",
        "_new",
        "_tracking",
        "_under_way",
        "attempted",
        "created_ms",
        "key_id",
        "row",
    )

    def __init__(self, key_id: str, tracking: Tracking) -> None:
        self.key_id = key_id
        self.created_ms: int | None = None
        self.row: UsageRow | None = None
        # What a flush tries to store, or has tried to: a failure does not always tell whether it is.
        self.attempted: UsageRow | None = None
        self._tracking = tracking
        self._clock = tracking.clock
        self._changed = tracking.changed
        # What was counted since the last flush, and what a flush that is under way, or failed, is to store.
        self._new: Counted | None = None
        self._under_way: Counted | None = None

    def note_encryption(self, operation: str, request_id: str, version: int) -> None:
        """Count an encryption that a version of the key's material has done."""
        new = self._new or self._begin()
        new.operation = operation
        new.request_id = request_id
        new.seconds = seconds = self._clock()
        tally = new.encrypted.get((operation, version))
        if tally is None:
            new.encrypted[operation, version] = [1, seconds]
        else:
            tally[0] += 1
            tally[1] = seconds

    def note_decryption(self, operation: str, request_id: str, version: int) -> None:
        """Count a decryption that a version of the key's material has done."""
        # The same again, because a call would take a fifth of what this takes.
        new = self._new or self._begin()
        new.operation = operation
        new.request_id = request_id
        new.seconds = seconds = self._clock()
        tally = new.decrypted.get((operation, version))
        if tally is None:
            new.decrypted[operation, version] = [1, seconds]
        else:
            tally[0] += 1
            tally[1] = seconds

    def recount(self, earlier: Counted) -> None:
        """Take in uses that the trail tells of; later ones may be counted already."""
        if self._new is not None:
            earlier.add(self._new)
        self._new = earlier
        self._changed[self.key_id] = self

    def _begin(self) -> Counted:
        self._new = Counted()
        self._changed[self.key_id] = self
        return self._new

    @property
    def since_ms(self) -> int:
        """Since when the key's uses are known, if they are."""
        return max(self.created_ms or 0, self._tracking.since_ms or 0)

    def total(self) -> UsageRow | None:
        """Return all uses, also those that are not stored; None if there are none."""
        counted = [one for one in (self._under_way, self._new) if one is not None]
        if not counted:
            return self.row
        now, total = self._tracking.now(), self._stored()
        for one in counted:
            total = one.added_to(total, now)
        return total

    def days_unused(self) -> int | None:
        """Return how many whole days the key was not used: since its last use, or since its uses are known.

        None: not all uses were counted yet. A use that is not stored is of this minute.
        """
        if self._tracking.since_ms is None:
            return None
        total = self.total()
        last_ms = max(self.since_ms, 0 if total is None else total.last_ms)
        return max(0, (self._tracking.certain_ms() - last_ms) // DAY_MS)

    @property
    def is_certain(self) -> bool:
        """Whether it is known what of it is stored."""
        return self.created_ms is not None and self.attempted is None

    def learn(self, created_ms: int, row: UsageRow | None) -> None:
        """Take in what somebody has read, which a flush may have overtaken."""
        if self.created_ms is None and self._under_way is None:
            self.created_ms, self.row = created_ms, row

    def settle(self, created_ms: int, row: UsageRow | None) -> None:
        """Take in what is stored now, which tells whether what was tried last is."""
        if self.attempted is not None and row == self.attempted:
            self._under_way = None
        self.created_ms, self.row = created_ms, row
        self.give_back()

    def take(self) -> bool:
        """Let what was counted so far be what is stored next; tell whether anything was."""
        self._under_way, self._new = self._new, None
        return self._under_way is not None

    def attempt(self) -> UsageRow:
        """Return the row that is to be stored with what was taken."""
        taken = self._under_way or Counted()
        self.attempted = taken.added_to(self._stored(), self._tracking.now())
        return self.attempted

    def keep(self) -> None:
        """Take what was to be stored for stored."""
        self.row, self.attempted, self._under_way = self.attempted, None, None

    def give_back(self) -> None:
        """Take what was to be stored for not stored, and have it tried another time."""
        if self._under_way is not None:
            if self._new is not None:
                self._under_way.add(self._new)
            self._new, self._under_way = self._under_way, None
        self.attempted = None
        if self._new is not None:
            self._changed[self.key_id] = self

    def doubt(self) -> None:
        """Have it seen another time whether what was to be stored is."""
        self.created_ms = None
        self._changed[self.key_id] = self

    def drop(self) -> None:
        """Forget what was counted: the key was destroyed."""
        self._new = self._under_way = self.attempted = None
        self._changed.pop(self.key_id, None)

    def _stored(self) -> UsageRow:
        return self.row or UsageRow(
            key_id=self.key_id, tracking_ms=self.since_ms, last_ms=0, operation="", request_id="", version=0
        )
