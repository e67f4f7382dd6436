"""Replies that leave together."""

from __future__ import annotations

import os

from kmsd.audit.record import Record
from kmsd.service.audit_budget import AuditBudget


class Batch:
    """Replies that leave together, and the records that must be written before they do, at the expense of `budget`.

    They are one peer's.
    """

    __slots__ = ("budget", "descriptors", "identifiers", "out", "records")

    def __init__(self) -> None:
        self.budget: AuditBudget | None = None
        self.out = bytearray()
        self.records: list[Record] = []
        self.identifiers: list[int] = []
        self.descriptors: list[int] = []

    def discard(self) -> None:
        """Drop the replies: they may hold plaintexts, so they are wiped, and their descriptors are closed."""
        self.out[:] = bytes(len(self.out))
        self.out.clear()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
