"""What policies refused lately, with why: for who was refused, and for administrators.

The explanation is made with the refusal, from the very facts it was made on. So many are kept, in memory only; the
audit trail has all of them, without the trace.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from kmsd.access.decision import Explanation
from kmsd.identity.principals import Caller

MAX_REFUSALS = 1024
# An ordinary explanation has a few steps, one of a policy of full size some hundred. A step takes half a KiB.
MAX_STEPS = 16 * 1024

# By so many digits a request is named: request ids of one run differ in them.
PREFIX_DIGITS = 8


@dataclass(frozen=True)
class Refusal:
    """A request that policies refused."""

    request_id: str
    operation: str
    caller: Caller
    action: str
    resource: str
    explanation: Explanation

    @property
    def size(self) -> int:
        """What it counts for: its steps, and itself."""
        return 1 + len(self.explanation.trace)


class Refusals:
    """The newest refusals; who has most of them loses his own first, so that nobody pushes out another's."""

    def __init__(self, *, most: int = MAX_REFUSALS, most_steps: int = MAX_STEPS) -> None:
        self._most = most
        self._most_steps = most_steps
        self._refusals: dict[str, Refusal] = {}
        self._by_place: dict[int, OrderedDict[str, Refusal]] = {}
        self._sizes: dict[int, int] = {}
        self._size = 0

    def add(self, refusal: Refusal, place: int) -> None:
        """Remember a refusal of one who is counted under `place`."""
        prefix = refusal.request_id[:PREFIX_DIGITS]
        self._refusals[prefix] = refusal
        self._by_place.setdefault(place, OrderedDict())[prefix] = refusal
        self._sizes[place] = self._sizes.get(place, 0) + refusal.size
        self._size += refusal.size
        while len(self._refusals) > self._most or self._size > self._most_steps:
            self._drop_oldest(max(self._sizes, key=self._sizes.__getitem__))

    def find(self, request_id: str) -> Refusal | None:
        """Return the refusal of a request, named by its id or the first digits of it."""
        refusal = self._refusals.get(request_id[:PREFIX_DIGITS])
        return refusal if refusal is not None and refusal.request_id.startswith(request_id) else None

    def _drop_oldest(self, place: int) -> None:
        prefix, dropped = self._by_place[place].popitem(last=False)
        del self._refusals[prefix]
        self._sizes[place] -= dropped.size
        self._size -= dropped.size
        if not self._by_place[place]:
            del self._by_place[place], self._sizes[place]
