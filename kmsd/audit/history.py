"""Read a trail across its files, and see whether a checkpoint stands in it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from kmsd.api.errors import IntegrityError, LimitExceededError
from kmsd.audit.active import ActiveFile
from kmsd.audit.chain import GENESIS, MAX_READ_LINE_BYTES, Head, MalformedLineError, parse, seq_of
from kmsd.audit.checkpoint import CHECKPOINT, Checkpoint, Signer, sign
from kmsd.audit.files import RotatedFile, open_part, rotated_files
from kmsd.audit.reading import START_BYTES, Part, lines_between, offset_near, read_after, read_last
from kmsd.audit.record import Kind
from kmsd.audit.reduced import head_line
from kmsd.audit.reduced_check import check_reduced
from kmsd.audit.since import seq_before
from kmsd.audit.system import System, unavailable
from kmsd.audit.verify import ChainBrokenError, Fault, Walk

# What every checkpoint has near its start; a line that has it elsewhere is told apart when it is parsed.
_IN_CHECKPOINT = f'"{CHECKPOINT}"'.encode("ascii")
_NAME_WITHIN_BYTES = 256


class History:
    """The lines of all files of a trail; `active` returns the file that is being written."""

    def __init__(self, path: Path, active: Callable[[], ActiveFile], system: System) -> None:
        self._path = path
        self._active = active
        self._system = system

    def read(self, *, after_seq: int, limit: int, max_bytes: int) -> list[str]:
        """Return lines behind a number, as `kmsd.audit.reading.read_after` does; raises AuditUnavailableError too.

        Of a file that retention has reduced come the lines that were kept.
        """
        try:
            with contextlib.closing(self._parts(after_seq)) as parts:
                return read_after(parts, after_seq=after_seq, limit=limit, max_bytes=max_bytes)
        except OSError as exc:
            raise unavailable(self._path, exc) from exc

    def read_tail(self, *, limit: int, max_bytes: int) -> list[str]:
        """Return the last lines, oldest first; bounds and errors as in `read`."""
        try:
            with contextlib.closing(self._parts_backwards()) as parts:
                return read_last(parts, limit=limit, max_bytes=max_bytes)
        except OSError as exc:
            raise unavailable(self._path, exc) from exc

    @property
    def reduced_until(self) -> int:
        """The last record of the files that retention has reduced, 0 if there are none."""
        try:
            return max((one.last for one in self._rotated() if one.is_reduced), default=0)
        except OSError as exc:
            raise unavailable(self._path, exc) from exc

    def seq_before(self, event_time: str) -> int:
        """Return a number behind which all records of `event_time` and later stand, if the clock never stepped back."""
        try:
            with contextlib.closing(self._parts_backwards()) as parts:
                return next((found for part in parts if (found := seq_before(*part, event_time)) is not None), 0)
        except OSError as exc:
            raise unavailable(self._path, exc) from exc

    def holds(self, checkpoint: Checkpoint, signer: Signer) -> bool:
        """Return whether exactly this checkpoint stands in the trail; raises AuditUnavailableError when it cannot tell.

        One older than all files that are still here cannot be looked up. It is vouched for by the next checkpoint that
        is here, if `signer` signed that one: whoever has cut off or rewritten the trail cannot make it.
        """
        return self._nearest(checkpoint, signer) is not None

    def fault_behind(self, checkpoint: Checkpoint, signer: Signer) -> str | None:
        """Return why what stands behind a checkpoint that the trail holds does not continue it, None if all of it does.

        A new chain that a repair began does not. Raises AuditUnavailableError when it cannot tell.
        """
        nearest = self._nearest(checkpoint, signer)
        if nearest is None:
            return "it is not there"
        walk = Walk(Head(nearest.seq - 1, nearest.prev))
        try:
            for rotated in self._rotated():
                if rotated.last >= nearest.seq:
                    _go_along(walk, rotated, signer, self._system)
            _follow(walk, self._active().part)
        except ChainBrokenError as exc:
            return str(exc)
        except OSError as exc:
            raise unavailable(self._path, exc) from exc
        return None

    def _nearest(self, checkpoint: Checkpoint, signer: Signer) -> Checkpoint | None:
        """Return the checkpoint itself, or the one that vouches for it, if either is there."""
        try:
            found = self.read(after_seq=checkpoint.seq - 1, limit=1, max_bytes=MAX_READ_LINE_BYTES)
            if found and _as_checkpoint(found[0].encode("ascii") + b"\n") == checkpoint:
                return checkpoint
            oldest = next((rotated.first for rotated in self._rotated()), self._active().first_seq)
            return self._vouching(signer) if 0 < checkpoint.seq < oldest else None
        except (IntegrityError, LimitExceededError):
            return None
        except OSError as exc:
            raise unavailable(self._path, exc) from exc

    def _vouching(self, signer: Signer) -> Checkpoint | None:
        """Return the first checkpoint that is here, if it was signed."""
        # Ed25519 is deterministic (RFC 8032, 5.1.6): signing again is checking.
        for part in self._parts(0):
            for line in lines_between(*part):
                if _IN_CHECKPOINT in line[:_NAME_WITHIN_BYTES]:
                    found = _as_checkpoint(line)
                    if found is not None:
                        is_signed = sign(signer, found.seq, found.prev, found.event_time) == found
                        return found if is_signed else None
        return None

    def _parts(self, after_seq: int) -> Generator[Part, None, None]:
        active = self._active()
        if after_seq + 1 < active.first_seq:
            for rotated in self._rotated():
                if rotated.last > after_seq:
                    with open_part(rotated, self._system) as part:
                        yield part
        yield active.part

    def _parts_backwards(self) -> Generator[Part, None, None]:
        yield self._active().part
        for rotated in reversed(self._rotated()):
            with open_part(rotated, self._system) as part:
                yield part

    def _rotated(self) -> list[RotatedFile]:
        return rotated_files(self._path)


def _go_along(walk: Walk, rotated: RotatedFile, signer: Signer, system: System) -> None:
    """Go on to the end of a rotated file; raises ChainBrokenError."""
    with open_part(rotated, system) as part:
        if not rotated.is_reduced:
            _follow(walk, part)
            return
        content, lines = hashlib.sha256(), lines_between(part.fd, 0, part.stop)
        first = next(lines, b"")

        def observed() -> Iterator[bytes]:
            yield first
            for line in lines:
                content.update(line)
                yield line

        reduced, _ = check_reduced(observed(), None)
        if head_line(signer, reduced, content.hexdigest()) != first:
            what = f"what retention left in {rotated.path.name} is not signed"
            raise ChainBrokenError(1, reduced.first_seq, Fault.FORGED, what)
        before, head = Head(reduced.first_seq - 1, reduced.prev), walk.head or GENESIS
        if head != before and not reduced.first_seq <= head.seq <= reduced.last_seq:
            raise ChainBrokenError(1, reduced.first_seq, Fault.EDITED, "it does not continue the file before it")
        walk.jump(Head(reduced.last_seq, reduced.last_hash), forget=False)


def _follow(walk: Walk, part: Part) -> None:
    """Go on to the end of a file of which some records may be behind already; raises ChainBrokenError."""
    seq = (walk.head or GENESIS).seq
    lines = lines_between(part.fd, offset_near(part, seq), part.stop)
    for _ in walk.follow(itertools.dropwhile(lambda line: (seq_of(line[:START_BYTES]) or seq + 1) <= seq, lines)):
        pass


def _as_checkpoint(line: bytes) -> Checkpoint | None:
    """Return the checkpoint that a line is, None for any other line."""
    try:
        record = parse(line)
    except MalformedLineError:
        return None
    details = record.additional_event_data or {}
    key_id, signature = details.get("keyId"), details.get("signature")
    if record.event_type != Kind.SYSTEM or record.event_name != CHECKPOINT:
        return None
    if not isinstance(key_id, str) or not isinstance(signature, str):
        return None
    return Checkpoint(record.seq, record.prev, record.event_time, key_id, signature)
