"""Make the reduced copy of a rotated file (FORMAT.md, "Reduced files"); a large file takes a second or so."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from kmsd.audit.chain import GENESIS
from kmsd.audit.files import RotatedFile, open_part, open_regular, reduced_path
from kmsd.audit.reading import CHUNK_BYTES, lines_between
from kmsd.audit.reduced import Reduced
from kmsd.audit.succession import broken, first_line
from kmsd.audit.system import System
from kmsd.audit.verify import ChainBrokenError, verify

# Whether a line is kept.
Predicate = Callable[[bytes], bool]


class Survey(NamedTuple):
    """What a whole file is, and the SHA-256 of all lines that are kept of it."""

    reduced: Reduced
    sha256: str


def survey(rotated: RotatedFile, next_prev: str, is_kept: Predicate, system: System) -> Survey:
    """Check a whole file, behind which `next_prev` is what the next one continues, and return what it is.

    Raises AuditBrokenError, and OSError when the file cannot be read.
    """
    kept, digest = 0, hashlib.sha256()

    def observed(lines: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal kept
        for line in lines:
            yield line
            if is_kept(line):
                kept += 1
                digest.update(line)

    with open_part(rotated, system) as part:
        first = first_line(rotated.path, part)
        try:
            report = verify(observed(lines_between(*part)), start=None)
        except ChainBrokenError as exc:
            raise broken(rotated.path, str(exc)) from None
    if (report.first_seq, report.last_seq) != (rotated.first, rotated.last):
        raise broken(rotated.path, f"has the records {report.first_seq} to {report.last_seq}")
    # A chain that begins behind a repair continues nothing.
    if next_prev not in {GENESIS.digest, report.last_hash}:
        raise broken(rotated.path, "the file behind it does not continue it: one of the two was changed")
    dropped = report.lines - kept
    return Survey(
        Reduced(report.first_seq, report.last_seq, first.prev, report.last_hash, kept, dropped), digest.hexdigest()
    )


def write_reduced(rotated: RotatedFile, head_line: bytes, surveyed: Survey, is_kept: Predicate, system: System) -> None:
    """Put the reduced file beside the whole one, durably; raises OSError."""
    path = reduced_path(rotated.path)
    temporary = rotated.path.with_name(f"{rotated.path.name}.reducing")
    with contextlib.suppress(FileNotFoundError):  # of an attempt that was killed
        system.unlink(temporary)
    try:
        _write_copy(rotated, temporary, head_line, surveyed, is_kept, system)
        system.rename(temporary, path)
        system.sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            system.unlink(temporary)
        raise


def _write_copy(
    rotated: RotatedFile, path: Path, head_line: bytes, surveyed: Survey, is_kept: Predicate, system: System
) -> None:
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(open_part(rotated, system))
        fd = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, system, stack)
        _write(fd, head_line, system)
        for chunk in _in_chunks(filter(is_kept, lines_between(*part))):
            digest.update(chunk)
            _write(fd, chunk, system)
        if digest.hexdigest() != surveyed.sha256:
            raise OSError(None, "the file was changed while it was reduced")
        system.fsync(fd)


def _in_chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    chunk = bytearray()
    for line in lines:
        chunk += line
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def _write(fd: int, data: bytes, system: System) -> None:
    written = system.write(fd, data)
    if written < len(data):
        raise OSError(None, f"took only {written} of {len(data)} bytes; no space left, or a size limit")
