"""What conditions ask about a request: values by condition key."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol, TypeAlias


class Undetermined(enum.Enum):
    """An attribute that could not be determined: it fits every Deny and no Allow."""

    UNDETERMINED = "undetermined"


UNDETERMINED = Undetermined.UNDETERMINED

# None: the request has no such key. A key with several values has each of them, in no order.
Values: TypeAlias = Sequence[str] | Undetermined | None


class Facts(Protocol):
    """A request, as conditions see it."""

    def values(self, key: str) -> Values:
        """Return the values of a condition key, which is in lower case: "kms:keyspec", "kms:encryptioncontext:app".

        Numbers are decimal, booleans "true" and "false", times as RFC 3339 writes them in UTC. A key that conditions
        may not name is never asked for.
        """

    def encryption_context(self) -> dict[str, str] | None:
        """Return the encryption context, as constraints of grants compare it; None if the request can have none."""
