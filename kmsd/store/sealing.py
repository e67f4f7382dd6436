"""Rows as sealed records: a row's content, and a MAC that binds it to its place.

The content is the row in msgpack (a map by member names). The MAC is HMAC-SHA-256 over these fields, each behind its
length in bytes (4, big-endian), so that no two rows have the same input:

    format version 0x01 (1) | table (UTF-8) | each part of the primary key (text) | row version (8, signed) | content

A record that was edited, given another version, or moved to another key or table therefore does not verify. Columns
that are looked up by repeat members of the content and have to agree with it. What a MAC cannot show is that a row was
removed, or that an earlier record was put back in its own place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from kmsd.api.errors import IntegrityError, SealedError
from kmsd.store.kinds import Kind, RowT, written

_FORMAT_VERSION = b"\x01"


@dataclass(frozen=True)
class Record(Generic[RowT]):
    """What a table holds for one row. Nothing about it is certain, not even types: SQLite stores any in any column."""

    kind: Kind[RowT]
    key: tuple[Any, ...]
    lookup: tuple[Any, ...]
    version: Any
    content: Any
    mac: Any
    # Of a numbered kind, once it has one.
    number: int | None = None

    @classmethod
    def from_columns(cls, kind: Kind[RowT], columns: tuple[Any, ...]) -> Record[RowT]:
        """Return the record in columns of the table's own order: primary key, lookup, version, content, MAC."""
        *found, version, content, mac = columns
        split = len(kind.key)
        return cls(kind, tuple(found[:split]), tuple(found[split:]), version, content, mac)

    def refusal(self, reason: str) -> IntegrityError:
        """Return the error that reports this record; primary keys are public, contents are not shown."""
        return IntegrityError(f"the record of {self.kind.table} {written(self.key)!r} {reason}")


class Sealer:
    """Makes records of rows and rows of records while it holds the MAC key.

    The key is only borrowed, and is used by no call longer than that call. One thread does everything, so that when
    `seal` returns nobody reads the key any more.
    """

    def __init__(self) -> None:
        self._mac_key: memoryview | None = None

    def unseal(self, mac_key: memoryview) -> None:
        """Use `mac_key` from now on."""
        self._mac_key = mac_key

    def seal(self) -> None:
        """Forget the key."""
        self._mac_key = None

    @property
    def sealed(self) -> bool:
        """Whether there is no key."""
        return self._mac_key is None

    def record(self, row: RowT, kind: Kind[RowT], number: int | None = None) -> Record[RowT]:
        """Return a row as it is stored, with a number if it is new and its kind has them; raises SealedError."""
        key, content = kind.key_of(row), msgspec.msgpack.encode(row)
        mac = self._mac(kind.table, key, row.version, content).finalize()
        return Record(kind, key, kind.lookup_of(row), row.version, content, mac, number)

    def row(self, record: Record[RowT]) -> RowT:
        """Return the row of a record that authenticates; raises IntegrityError, SealedError."""
        self.verify(record)
        return unverified_row(record)

    def verify(self, record: Record[Any]) -> None:
        """Check that a record was sealed with this key, for this place; raises IntegrityError, SealedError."""
        if type(record.version) is not int or type(record.content) is not bytes or type(record.mac) is not bytes:
            raise record.refusal("has columns of wrong types")
        try:
            self._mac(record.kind.table, record.key, record.version, record.content).verify(record.mac)
        except InvalidSignature:
            raise record.refusal("does not authenticate: it was changed, or belongs elsewhere") from None

    def _mac(self, table: str, key: tuple[Any, ...], version: int, content: bytes) -> HMAC:
        if self._mac_key is None:
            raise SealedError("the store is sealed; an administrator has to unseal it")
        fields = (
            _FORMAT_VERSION,
            table.encode(),
            *(str(part).encode() for part in key),
            version.to_bytes(8, "big", signed=True),
            content,
        )
        mac = HMAC(self._mac_key, SHA256())
        mac.update(b"".join(len(field).to_bytes(4, "big") + field for field in fields))
        return mac


def unverified_row(record: Record[RowT]) -> RowT:
    """Return the row of a record whose MAC the caller MUST check before it relies on it.

    Raises IntegrityError when the content is no row of this kind, or disagrees with the columns beside it.
    """
    kind = record.kind
    try:
        row = msgspec.msgpack.decode(record.content, type=kind.row_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
        # `from None`: the decoder's message may quote the content.
        raise record.refusal("cannot be decoded") from None
    if (kind.key_of(row), kind.lookup_of(row), row.version) != (record.key, record.lookup, record.version):
        raise record.refusal("disagrees with the columns beside it")
    return row
