"""What client and file worker say to each other, one msgpack map a datagram. Pure; `FORMAT.md` specifies it.

The client says `Start` once, together with its two descriptors; the worker answers with `Report`s, the last of which
is done or an error.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kmsd.api.errors import ProtocolError
from kmsd.api.failure import Failure

# The largest datagram either side sends is an error with its text; both refuse longer ones.
MAX_DATAGRAM_BYTES = 4096
# Source, destination.
START_DESCRIPTORS = 2

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Start(msgspec.Struct, frozen=True, tag_field="op", tag="start", forbid_unknown_fields=True):
    """Begin: `progress` asks for reports of progress, `size` is how many bytes the source has, if that is known."""

    progress: bool = False
    size: Count | None = None


class Progress(msgspec.Struct, frozen=True):
    """How many bytes were taken from the source, of how many."""

    done: Count
    total: Count | None


class Done(msgspec.Struct, frozen=True):
    """The file is complete, and its audit record written; both lengths in bytes."""

    plaintext_bytes: Count
    message_bytes: Count


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """One datagram of the worker: exactly one member is there. A client passes over reports it does not know."""

    progress: Progress | None = None
    done: Done | None = None
    error: Failure | None = None


_encoder = msgspec.msgpack.Encoder()
_starts = msgspec.msgpack.Decoder(Start)
_reports = msgspec.msgpack.Decoder(Report)


def encode(message: Start | Report) -> bytes:
    """Return the datagram of `message`."""
    return _encoder.encode(message)


def decode_start(datagram: bytes) -> Start:
    """Return what a client said; raises ProtocolError."""
    try:
        return _starts.decode(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the file worker expected a start: {error}") from None


def decode_report(datagram: bytes) -> Report:
    """Return what a worker said; raises ProtocolError."""
    try:
        return _reports.decode(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the file worker said something unknown: {error}") from None
