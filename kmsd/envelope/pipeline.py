"""Two threads and three buffers: one thread reads and ciphers while the other writes.

System calls and AES-GCM release the interpreter's lock, so both cores work. A third buffer keeps either thread from
waiting when the other takes longer once (measured, DESIGN 10). The threads exist before the job does, so that they
are under the same restrictions as the process, whenever these are put in place.

Everything produced before a failure is written, in order; then the failure is the result.
"""

from __future__ import annotations

import mmap
import os
import threading
from queue import SimpleQueue

from kmsd.api.errors import KmsError, KMSInternalError
from kmsd.envelope.descriptors import Sink, Source
from kmsd.envelope.stages import Stage

_BUFFERS = 3
_PAGE_BYTES = mmap.PAGESIZE


class _End:
    """Ends the stream of buffers; `error` is why, None when all is well."""

    def __init__(self, error: KmsError | None) -> None:
        self.error = error


class _Filled:
    """A buffer and how much of it is to be written."""

    def __init__(self, buffer: memoryview, length: int) -> None:
        self.buffer = buffer
        self.length = length


class Pipeline:
    """Runs one stage into one sink. `finished_fd` becomes readable when `result` is there."""

    def __init__(self) -> None:
        self.finished_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._stages: SimpleQueue[tuple[Stage, Source]] = SimpleQueue()
        self._sinks: SimpleQueue[Sink] = SimpleQueue()
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._full: SimpleQueue[_Filled | _End] = SimpleQueue()
        self._stopped = False
        self._outcome = _End(KMSInternalError("writing failed unexpectedly"))
        # Daemon threads: a thread stuck in a system call must not keep its process from ending.
        threading.Thread(target=self._read, name="read", daemon=True).start()
        threading.Thread(target=self._write, name="write", daemon=True).start()

    def start(self, stage: Stage, source: Source, sink: Sink) -> None:
        """Begin; to be called once."""
        self._sinks.put(sink)
        self._stages.put((stage, source))

    def stop(self) -> None:
        """Begin no further write, whatever has been produced."""
        self._stopped = True

    def result(self) -> KmsError | None:
        """Wait for the end and return why it failed, None when everything was written.

        The reading thread may then still wait for a source nobody needs any more.
        """
        os.eventfd_read(self.finished_fd)
        os.close(self.finished_fd)
        return self._outcome.error

    def _read(self) -> None:
        end = _End(KMSInternalError("reading failed unexpectedly"))
        try:
            stage, source = self._stages.get()
            source.check()
            for buffer in _buffers(stage.buffer_bytes):
                self._free.put(buffer)
            # None: the writing thread failed and takes no more.
            while (free := self._free.get()) is not None:
                length = stage.produce(free)
                if length == 0:
                    break
                self._full.put(_Filled(free, length))
            end = _End(None)
        except KmsError as error:
            end = _End(error)
        finally:
            # Reached by errors nobody foresaw too, so that the other thread never waits for nothing.
            self._full.put(end)

    def _write(self) -> None:
        try:
            sink = self._sinks.get()
            sink.check()
            while isinstance(item := self._full.get(), _Filled) and not self._stopped:
                sink.write(item.buffer[: item.length])
                self._free.put(item.buffer)
            if isinstance(item, _End):
                self._outcome = item
        except KmsError as error:
            self._outcome = _End(error)
        finally:
            self._free.put(None)
            os.eventfd_write(self.finished_fd, 1)


def _buffers(size: int) -> list[memoryview]:
    # Page-aligned; pages take memory only when they are first written.
    rounded = -(-size // _PAGE_BYTES) * _PAGE_BYTES
    whole = memoryview(mmap.mmap(-1, rounded * _BUFFERS))
    return [whole[start : start + rounded] for start in range(0, rounded * _BUFFERS, rounded)]
