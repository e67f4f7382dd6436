"""The ids by which requests are found again in the audit trail."""

from __future__ import annotations

from collections.abc import Callable

# Steps of any odd size come to 2**32 different numbers before one comes again; with this one, 2**32 over the golden
# ratio, neighbours are far apart, so that an id that was read out or typed wrongly is none.
_STEP = 0x9E3779B1
_MASK = 0xFFFFFFFF
_RUN_BYTES = 8


class RequestIds:
    """Ids of 32 hexadecimal digits, without a draw for each; `random` gives that many public random bytes.

    The first 8 digits differ for each of 2**32 requests of a run, so that people can name a request by them. Then come
    16 that say which run it is, and 8 that count how often the first ones came round.
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._first = self._last = int.from_bytes(random(4), "big")
        self._run = random(_RUN_BYTES).hex()
        self._round = 0
        self._rest = f"{self._run}{self._round:08x}"

    def next(self) -> str:
        """Return an id that no request has."""
        # Every request needs one: two numbers to format would take twice as long.
        self._last = last = (self._last + _STEP) & _MASK
        if last == self._first:
            self._round += 1
            self._rest = f"{self._run}{self._round:08x}"
        return f"{last:08x}{self._rest}"
