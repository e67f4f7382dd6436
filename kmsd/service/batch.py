"""Replies that leave together."""

from __future__ import annotations

from kmsd.audit.record import Record


class Batch:
    """Replies that leave together, and the records that must be written before they do."""

    __slots__ = ("descriptors", "identifiers", "out", "records")

    def __init__(self) -> None:
        self.out = bytearray()
        self.records: list[Record] = []
        self.identifiers: list[int] = []
        self.descriptors: list[int] = []
