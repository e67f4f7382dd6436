"""Find a time in a file of the trail by bisection, reading some lines and not all."""

from __future__ import annotations

import os
import re

from kmsd.audit.reading import CHUNK_BYTES

# How a line starts: number, hash of the line before, time. Anchored to the start of a line, because a request can have
# the rest put into its parameters, but never a line feed. Such a start has at most 160 bytes.
_START = re.compile(rb'^\{"seq":([0-9]{1,19}),"prev":"[0-9a-f]{64}","eventTime":"([0-9T:.Z-]{1,40})"', re.MULTILINE)
_START_BYTES = 160


def seq_before(fd: int, start: int, stop: int, event_time: str) -> int | None:
    """Return a number behind which all records of `event_time` or later stand, if times only rise from line to line.

    The lines lie from offset `start` to `stop`. It is of a record at most about a chunk before the first of those;
    None when that is the first record here, or none is found.
    """
    low, high, found = start, stop, None
    while low < high:
        middle = max(low, (low + high - CHUNK_BYTES) // 2)
        # One byte more in front, so that a line at `middle` is seen to begin there.
        before = min(middle - start, 1)
        chunk = os.pread(fd, min(CHUNK_BYTES + _START_BYTES, stop - middle) + before, middle - before)
        match = next((one for one in _START.finditer(chunk) if one.start() >= before), None)
        if match is None or match[2].decode("ascii") >= event_time:
            high = middle
        else:
            found = int(match[1])
            low = middle + CHUNK_BYTES
    return found
