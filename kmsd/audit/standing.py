"""What a mark repeats, so that a start need not read the trail from its beginning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from kmsd.audit.chain import fits
from kmsd.audit.record import SETTLES, Intent, Kind, Record
from kmsd.audit.verify import MARK, told_sequence

_INTENTS = frozenset(SETTLES.values())


class Standing:
    """How things stand at the end of the trail: the intents that nothing has settled yet, and the store's sequence.

    `store_sequence` is the highest number of commits of the store that a record has told.
    """

    def __init__(self, intents: Iterable[Intent], store_sequence: int) -> None:
        self.store_sequence = store_sequence
        self._intents = {(intent.kind, intent.request_id): intent for intent in intents}

    def note(self, seq: int, record: Record) -> None:
        """Take in record number `seq`."""
        if record.kind in _INTENTS:
            self._intents[record.kind, record.request_id] = Intent(
                seq, record.kind, record.event_name, record.request_id, record.actor, record.resources
            )
        elif record.kind in SETTLES:
            self._intents.pop((SETTLES[record.kind], record.request_id), None)
        self.store_sequence = max(self.store_sequence, told_sequence(record.details))

    def mark(self, **members: str) -> Record | None:
        """Return the mark, or None when its line would be too long: cut, it would lose what a start relies on."""
        intents = msgspec.to_builtins(list(self._intents.values()))
        mark = system_record(MARK, {"openIntents": intents, "storeSequence": self.store_sequence, **members})
        return mark if fits(mark) else None


def system_record(event_name: str, details: dict[str, Any]) -> Record:
    """Return the record of something that the trail does by itself."""
    return Record(Kind.SYSTEM, event_name, actor=None, request_id="", read_only=False, details=details)
