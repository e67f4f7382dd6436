"""The service log: what the daemon has to say to its administrator, as JSON lines on standard error.

It is not the audit trail. Values of local variables and messages of foreign exceptions may hold secrets, so a fault is
logged as its type and the places it passed through.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import traceback
from typing import Any, Protocol, TextIO, cast

import structlog


class Logger(Protocol):
    """What the daemon logs with."""

    def info(self, event: str, **fields: Any) -> None:
        """Tell something that is as it should be."""

    def warning(self, event: str, **fields: Any) -> None:
        """Tell something that an administrator should look at."""

    def fault(self, event: str, fault: BaseException, **fields: Any) -> None:
        """Tell a fault that nobody foresaw."""


class DroppingStream:
    """A text stream whose writes never block: a thread of its own writes to `stream`.

    Lines that come faster than whoever reads the log takes them are dropped beyond `capacity`, and counted in the log.
    """

    def __init__(self, stream: TextIO, *, capacity: int = 1024) -> None:
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(capacity)
        self._dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Take a piece of text, or drop it."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread flushes."""

    def _run(self) -> None:
        while True:
            text = self._lines.get()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                text = f'{{"event": "log_lines_dropped", "count": {dropped}}}\n{text}'
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                self._stream.write(text)
                self._stream.flush()


class StructuredLogger:
    """A logger of JSON lines on `stream`, made with structlog.

    A line that cannot be written is lost: whoever reads the log may go away, and nothing may fail for that.
    """

    def __init__(self, stream: TextIO | DroppingStream | None = None) -> None:
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(cast(TextIO, stream or sys.stderr)),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )

    def info(self, event: str, **fields: Any) -> None:
        """Log at level info."""
        with contextlib.suppress(OSError):
            self._logger.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log at level warning."""
        with contextlib.suppress(OSError):
            self._logger.warning(event, **fields)

    def fault(self, event: str, fault: BaseException, **fields: Any) -> None:
        """Log type and places of a fault, never its message or any local variable."""
        frames = traceback.extract_tb(fault.__traceback__, limit=-20)
        places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
        errno = fault.errno if isinstance(fault, OSError) else None
        with contextlib.suppress(OSError):
            self._logger.error(event, fault=type(fault).__name__, errno=errno, places=places, **fields)
