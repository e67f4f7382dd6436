"""Looks for secrets in other processes, as root at run time could: in their memory and behind their descriptors.

Root may read every mapping through /proc/PID/mem, and take a copy of every descriptor with pidfd_getfd(2) and map it.
What memfd_secret(2) made answers EIO to the first, and cannot be had by the second once its descriptor is closed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_PIECE_BYTES = 1024 * 1024
_PAGE_BYTES = mmap.PAGESIZE
_PIDFD_GETFD = 438  # the same number on every architecture (pidfd_getfd(2), Linux 5.6)
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)$", re.MULTILINE)
# Pages of the kernel's own clock; they hold nothing else and some kernels refuse to show them.
_KERNELS_OWN = ("[vvar]", "[vvar_vclock]", "[vsyscall]")

_libc = ctypes.CDLL(None, use_errno=True)


class Finding(NamedTuple):
    """A secret that was found: which, in which process, and in which mapping or behind which descriptor."""

    name: str
    pid: int
    place: str


@dataclass
class Report:
    """What a scan looked at and found; `unreadable` names the mappings of which not all could be read."""

    findings: set[Finding] = field(default_factory=set)
    read_bytes: int = 0
    descriptors: int = 0
    unreadable: set[str] = field(default_factory=set)


def scan(pids: list[int], secrets: Mapping[str, bytes]) -> Report:
    """Look for `secrets`, by name, in all memory and behind all descriptors of `pids`. Only root may."""
    report = Report()
    for pid in pids:
        _scan_memory(pid, secrets, report)
        _scan_descriptors(pid, secrets, report)
    return report


def _scan_memory(pid: int, secrets: Mapping[str, bytes], report: Report) -> None:
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for start, end, name in _MAPPING.findall(Path(f"/proc/{pid}/maps").read_text()):
            if name not in _KERNELS_OWN:
                place = name or "anonymous"
                _scan_mapping(memory, range(int(start, 16), int(end, 16)), _Place(pid, place), secrets, report)
    finally:
        os.close(memory)


class _Place(NamedTuple):
    pid: int
    name: str


def _scan_mapping(memory: int, addresses: range, place: _Place, secrets: Mapping[str, bytes], report: Report) -> None:
    overlap = b""
    longest = max(len(secret) for secret in secrets.values())
    for piece in _pieces(memory, addresses):
        if piece is None:
            report.unreadable.add(place.name)
            overlap = b""
            continue
        report.read_bytes += len(piece)
        _look(overlap + piece, place, secrets, report)
        overlap = piece[-longest:]


def _pieces(memory: int, addresses: range) -> Iterator[bytes | None]:
    """Yield what stands at these addresses, and None for a page that cannot be read."""
    position = addresses.start
    while position < addresses.stop:
        piece = _read(memory, min(_PIECE_BYTES, addresses.stop - position), position)
        if piece is None:
            piece = _read(memory, _PAGE_BYTES, position)
        yield piece
        position += len(piece) if piece else _PAGE_BYTES


def _read(memory: int, count: int, position: int) -> bytes | None:
    try:
        return os.pread(memory, count, position) or None
    except OSError:
        return None


def _scan_descriptors(pid: int, secrets: Mapping[str, bytes], report: Report) -> None:
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            taken = _libc.syscall(_PIDFD_GETFD, process, int(entry.name), 0)
            if taken < 0:
                raise OSError(ctypes.get_errno(), f"pidfd_getfd of {pid}'s descriptor {entry.name}")
            report.descriptors += 1
            with os.fdopen(taken, "rb", buffering=0, closefd=True) as stream:
                place = _Place(pid, f"descriptor {entry.name}: {Path(f'/proc/self/fd/{taken}').readlink()}")
                _look(_content(stream.fileno()), place, secrets, report)
    finally:
        os.close(process)


def _content(fd: int) -> bytes:
    """Return what can be had of a descriptor without disturbing its owner."""
    status = os.fstat(fd)
    if stat.S_ISSOCK(status.st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            try:
                return sock.recv(_PIECE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                return b""
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return b""
    try:
        with mmap.mmap(fd, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            return mapped[:]
    except PermissionError:  # open for writing only: what it leads to can be opened anew
        return Path(f"/proc/self/fd/{fd}").read_bytes()


def _look(content: bytes, place: _Place, secrets: Mapping[str, bytes], report: Report) -> None:
    for name, secret in secrets.items():
        if secret in content:
            report.findings.add(Finding(name, place.pid, place.name))
