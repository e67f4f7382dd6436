"""Opening a trail that a kill, a power cut or somebody else left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.record import Kind, Record
from kmsd.audit.succession import AuditBrokenError
from kmsd.audit.verify import Report, read_lines, verify
from kmsd.audit.writer import SyncMode, Trail

if TYPE_CHECKING:
    from tests.audit.conftest import FaultySystem, MakeRecord, OpenTrail

APPEND_FOREVER = """
import sys, pathlib
from kmsd.audit.record import Kind, Record
from kmsd.audit.writer import SyncMode, Trail
trail = Trail.open(pathlib.Path(sys.argv[1]), sync=SyncMode.INTERVAL, clock=lambda: 0.0)
record = Record(Kind.REQUEST, "Encrypt", None, "r", True, request_parameters={"a": "x" * 9000})
while True:
    trail.append([record] * 16)
    print(trail.head[0], flush=True)
"""


def check(path: Path) -> Report:
    with path.open("rb") as stream:
        return verify(read_lines(stream))


def lines_of(count: int) -> list[Record]:
    return [Record(Kind.REQUEST, "Encrypt", None, f"r-{number}", read_only=True) for number in range(count)]


def kept_beside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("audit.log.torn-*"))


@settings(max_examples=80)
@given(data=st.data())
def test_a_trail_cut_anywhere_goes_on_and_loses_no_byte(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whole lines stay, the rest is kept beside the trail, and a record says so."""
    path = tmp_path_factory.mktemp("torn") / "audit.log"
    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0)
    trail.append(lines_of(3))
    trail.close()
    raw = path.read_bytes()
    cut = data.draw(st.integers(0, len(raw)))
    garbage = data.draw(st.sampled_from([b"", b"\0" * 100, b"\0" * 9 + raw[-200:]])) if cut else b""
    left = raw[:cut] + garbage
    path.write_bytes(left)

    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0)
    trail.append(lines_of(1))
    trail.close()

    whole = raw[: raw.rfind(b"\n", 0, cut) + 1]
    torn = left[len(whole) :]
    assert path.read_bytes().startswith(whole)
    assert [kept.read_bytes() for kept in kept_beside(path)] == ([torn] if torn else [])
    assert check(path).lines == whole.count(b"\n") + bool(torn) + 1
    if torn:
        record = json.loads(path.read_bytes()[len(whole) :].splitlines()[0])
        assert (record["eventType"], record["eventName"]) == ("ServiceEvent", "RecoverAuditTrail")
        assert record["additionalEventData"] == {
            "tornBytes": len(torn),
            "tornSha256": hashlib.sha256(torn).hexdigest(),
            "keptAs": kept_beside(path)[0].name,
        }


def test_a_crash_between_keeping_and_cutting_keeps_both(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, system: FaultySystem
) -> None:
    """The first copy is not overwritten, and nothing is lost when the disk fails on the way."""
    trail = open_trail()
    trail.append([make_record()])
    trail.close()
    with path.open("ab") as stream:
        stream.write(b'{"seq":2')
    system.faults["ftruncate"] = OSError(errno.EIO, "Input/output error")
    for _ in range(2):
        with pytest.raises(AuditUnavailableError, match=r"audit\.log: Input/output error"):
            open_trail(system=system)

    trail = open_trail()

    assert [kept.name for kept in kept_beside(path)] == [f"audit.log.torn-2{suffix}" for suffix in ("", "-2", "-3")]
    assert {kept.read_bytes() for kept in kept_beside(path)} == {b'{"seq":2'}
    assert kept_beside(path)[0].stat().st_mode & 0o777 == 0o600
    assert trail.head[0] == check(path).last_seq == 2


def test_a_recovery_that_cannot_be_recorded_does_not_open(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, system: FaultySystem
) -> None:
    """And lets go of the file, so that the next attempt can have it."""
    trail = open_trail()
    trail.append([make_record()])
    trail.close()
    os.truncate(path, path.stat().st_size - 1)
    system.faults["write"] = OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AuditUnavailableError, match="No space left"):
        open_trail(system=system)

    assert open_trail().head[0] == 0


@pytest.mark.parametrize(
    "content", [b"root:x:0:0", b'{"seq":2,"prev":"', b'{"seq":1,"prev":"1', b"x" * 10_000, b"\0\1" * 3000]
)
def test_a_file_that_is_no_trail_is_left_alone(open_trail: OpenTrail, path: Path, content: bytes) -> None:
    """A wrong path in the configuration must not cost anybody a file."""
    path.write_bytes(content)

    with pytest.raises(AuditBrokenError, match="not an audit trail"):
        open_trail()

    assert path.read_bytes() == content
    assert kept_beside(path) == []


@pytest.mark.parametrize("content", [b"root:x:0:0\n", b"\n", b'{"seq":1}\n', b"a\0b\n"])
def test_a_foreign_file_with_lines_is_left_alone(open_trail: OpenTrail, path: Path, content: bytes) -> None:
    """Whole lines are no torn end."""
    path.write_bytes(content)

    with pytest.raises(AuditBrokenError):
        open_trail()

    assert path.read_bytes() == content


def test_an_edited_trail_is_not_continued(open_trail: OpenTrail, path: Path) -> None:
    """The error says where, and the lock is free for a repaired file."""
    trail = open_trail()
    trail.append(lines_of(5))
    trail.close()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"r-2"', b'"r-9"'))
    with pytest.raises(AuditBrokenError, match=r"audit\.log: line 3, seq 3: edited"):
        open_trail()

    path.write_bytes(whole)

    assert open_trail().head[0] == 5


def test_what_an_earlier_process_wrote_is_synced(open_trail: OpenTrail, path: Path, system: FaultySystem) -> None:
    """Its open intents are acted upon, so they must not vanish in a power cut."""
    system.faults["fdatasync"] = OSError(errno.EIO, "Input/output error")

    with pytest.raises(AuditUnavailableError, match="Input/output error"):
        open_trail(system=system)


def test_a_killed_writer_loses_nothing_it_had_accepted(open_trail: OpenTrail, path: Path) -> None:
    """SIGKILL in the middle of writing, several times over."""
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", APPEND_FOREVER, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(20)]
            process.send_signal(signal.SIGKILL)
            said += process.stdout.readlines()
        accepted = int([line for line in said if line.endswith(b"\n")][-1])

        trail = open_trail()

        assert trail.head[0] >= accepted
        assert (check(path).last_seq, check(path).last_hash) == trail.head
        trail.close()


def test_what_an_earlier_process_left_is_written_again_and_synced(
    tmp_path: Path, system: FaultySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the chain goes on: if its last sync failed, the kernel holds the lines for clean and lost."""
    path = tmp_path / "audit.log"
    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0)
    trail.append(lines_of(3))
    trail.close()
    written = bytearray()
    synced: list[bytes] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        assert offset == len(written)
        written.extend(data)
        return real(fd, data, offset)

    def note_sync(call: str) -> None:
        if call == "fdatasync":
            synced.append(bytes(written))

    monkeypatch.setattr(os, "pwrite", pwrite)
    system.at_call = note_sync
    left = path.read_bytes()
    Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0, system=system.calls).close()

    assert synced[0] == left
