"""A disk that goes wrong when a test wants it to: how to build `faulty_disk.c`, and how to tell it what to do."""

from __future__ import annotations

import ctypes
import enum
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

_SOURCE = Path(__file__).with_name("faulty_disk.c")
_ENTRY = struct.Struct("@Iiqq")


class Call(enum.IntFlag):
    """Kinds of calls; the last three stand in records only."""

    OPEN = 1
    WRITE = 2
    TRUNCATE = 4
    SYNC = 8
    RENAME = 16
    LINK = 32
    UNLINK = 64
    READ = 128
    SYNC_BEGIN = 256
    NOTE = 512
    SYNC_FAILED = 1024


# Those that change something, and opens.
CHANGES = Call.OPEN | Call.WRITE | Call.TRUNCATE | Call.SYNC | Call.RENAME | Call.LINK | Call.UNLINK


class Act(enum.IntEnum):
    """What becomes of the call that a plan names."""

    FAIL = 1
    SHORTEN = 2
    KILL_BEFORE = 3
    KILL_AMID = 4
    KILL_AFTER = 5


KILLS = (Act.KILL_BEFORE, Act.KILL_AMID, Act.KILL_AFTER)


class Entry(NamedTuple):
    """One call of a record; see `faulty_disk.c` for what `offset` and `data` are."""

    call: Call
    fd: int
    offset: int
    data: bytes


def build(folder: Path) -> Path:
    """Compile the shim into `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler (Debian: apt-get install gcc libc6-dev)")
    module = folder / "faulty_disk.so"
    subprocess.run(
        [compiler, "-Wall", "-shared", "-fPIC", "-O1", "-o", module, _SOURCE, "-ldl", "-lpthread"], check=True
    )
    return module


class FaultyDisk:
    """Controls the shim in the process that it is preloaded into; threads begin after that."""

    def __init__(self) -> None:
        self._shim = ctypes.CDLL(None)
        self._shim.disk_calls.restype = ctypes.c_long

    def watch(self, directory: Path) -> None:
        """Know the files below `directory` from now on; those that are open are not."""
        self._shim.disk_watch(os.fsencode(directory))

    def plan(
        self, *, at: int = 0, act: Act = Act.FAIL, kinds: Call = CHANGES, error: int = 0, persists: bool = False
    ) -> None:
        """Count from now on, and act at call number `at`, 0 for never; `persists`: and at all behind it."""
        self._shim.disk_plan(ctypes.c_uint(kinds), ctypes.c_long(at), int(act), error, int(persists))

    @property
    def calls(self) -> int:
        """How many calls were counted since the plan was made."""
        return int(self._shim.disk_calls())

    def record(self, descriptor: int) -> None:
        """Write what happens into this descriptor from now on."""
        self._shim.disk_record(descriptor)

    def note(self, data: bytes) -> None:
        """Put a note between what happens."""
        self._shim.disk_note(data, ctypes.c_size_t(len(data)))


def entries(record: bytes) -> Iterator[Entry]:
    """Read a record; one that was cut off by a kill ends with its last whole entry."""
    position = 0
    while position + _ENTRY.size <= len(record):
        call, fd, offset, length = _ENTRY.unpack_from(record, position)
        position += _ENTRY.size
        if position + length > len(record):
            return
        yield Entry(Call(call), fd, offset, record[position : position + length])
        position += length
