"""What is said over the descriptor that Unseal answers with; `kmsd/wire/PROTOCOL.md` specifies it.

The client sends the PIN as it is, one datagram of UTF-8 text, unless it asked for the configured source; or, as it
asked, all recovery shares in one datagram, one a line. The daemon sends one `Outcome`, and closes its end.
"""

from __future__ import annotations

import msgspec

from kmsd.api.errors import ProtocolError
from kmsd.api.failure import Failure

# PKCS#11 sets no bound; SoftHSM2 takes at most this many characters, and the vendors' tokens fewer.
MAX_PIN_BYTES = 255
# What fits a page of secret memory with its length: 13 shares, where the most that are ever needed are 8.
MAX_SHARES_BYTES = 4094
# The largest outcome is an error with its text.
MAX_DATAGRAM_BYTES = 4096


class Unsealed(msgspec.Struct, frozen=True):
    """The daemon holds its keys; `already` tells that it did before, and no PIN was tried."""

    already: bool = False


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The daemon's one datagram: exactly one member is there."""

    done: Unsealed | None = None
    error: Failure | None = None


_encoder = msgspec.msgpack.Encoder()
_outcomes = msgspec.msgpack.Decoder(Outcome)


def encode(outcome: Outcome) -> bytes:
    """Return the datagram of `outcome`."""
    return _encoder.encode(outcome)


def decode_outcome(datagram: bytes) -> Outcome:
    """Return what the daemon said; raises ProtocolError."""
    try:
        outcome = _outcomes.decode(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the daemon said something unknown about the unsealing: {error}") from None
    if outcome.done is None and outcome.error is None:
        raise ProtocolError("the daemon did not say what became of the unsealing")
    return outcome
