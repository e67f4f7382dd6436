"""An error as one member of a datagram, beside the protocol's own replies."""

from __future__ import annotations

import msgspec

from kmsd.api.errors import ERRORS, KmsError, error_from_wire

# A text that leaves room for the rest of a datagram of 4 KiB, were each of its characters four bytes long.
MAX_TEXT_CHARACTERS = 960


class Failure(msgspec.Struct, frozen=True):
    """An error of `kmsd.api.errors` in two members."""

    code: str
    message: str

    @classmethod
    def of(cls, error: KmsError) -> Failure:
        """Return how `error` is told."""
        return cls(error.code, error.message[:MAX_TEXT_CHARACTERS])

    def error(self) -> KmsError:
        """Return the error that is told."""
        retryable = self.code in ERRORS and ERRORS[self.code].retryable
        return error_from_wire(self.code, self.message, retryable=retryable, request_id="")
