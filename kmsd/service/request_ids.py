"""The ids by which requests are found again in the audit trail."""

from __future__ import annotations

from collections.abc import Callable

# Any odd number takes 2**32 counts to 2**32 different ids; this one, 2**32 over the golden ratio, has neighbours far
# apart, so that ids that were read out or typed wrongly are none.
_MULTIPLIER = 0x9E3779B1
_MASK = 0xFFFFFFFF
_RUN_BYTES = 6


class RequestIds:
    """Ids of 32 hexadecimal digits, without a draw for each; `random` gives that many public random bytes.

    The first 8 digits differ for each of 2**32 requests of a run, so that people can name a request by them. Then come
    12 that say which run it is, and 12 that count.
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._start = int.from_bytes(random(4), "big")
        self._run = random(_RUN_BYTES).hex()
        self._count = 0

    def next(self) -> str:
        """Return an id that no request has."""
        self._count = count = self._count + 1
        return f"{(self._start + count * _MULTIPLIER) & _MASK:08x}{self._run}{count:012x}"
