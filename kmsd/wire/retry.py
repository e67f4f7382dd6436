"""When a client asks again, and after how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.api.errors import KmsError, ShuttingDownError
from kmsd.api.operation import Operation

# Enough to get past a restart of the daemon or a burst above the caller's share, and little enough that a person at a
# shell does not wonder: three more attempts, after at most 50, 100 and 200 ms.
_MOST_RETRIES = 3
_FIRST_DELAY_SECONDS = 0.05


def delay_before_retry(
    operation: Operation[Any, Any],
    error: KmsError,
    *,
    sent: bool,
    failures: int,
    random: Callable[[], float],
) -> float | None:
    """Return after how many seconds to ask again, or None to give up.

    Only an error that is marked retryable is worth it, and only where asking twice cannot do a thing twice: the
    operation is read-only, the daemon cannot have got the whole request (`sent` is false), or it said that it refused
    the request because it stops, which it does before anything else. `failures` counts the
    attempts so far; `random` gives numbers from 0 to 1, so that many clients do not come back at once.
    """
    happened = sent and not operation.read_only and not isinstance(error, ShuttingDownError)
    if not error.retryable or happened or failures > _MOST_RETRIES:
        return None
    longest = _FIRST_DELAY_SECONDS * 2.0 ** (failures - 1)
    return longest * (0.5 + random() / 2)
