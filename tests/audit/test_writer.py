"""Writing the trail, and refusing when it cannot be written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.record import Kind, Record
from kmsd.audit.verify import MARK, Report, read_lines, verify
from kmsd.audit.writer import MARK_EVERY_BYTES, SyncMode, Trail

if TYPE_CHECKING:
    from tests.audit.conftest import FaultySystem, MakeRecord, OpenTrail

ENOSPC = OSError(errno.ENOSPC, "No space left on device")
EIO = OSError(errno.EIO, "Input/output error")


def check(path: Path) -> Report:
    with path.open("rb") as stream:
        return verify(read_lines(stream))


def append_many(trail: Trail, record: Record) -> None:
    for _ in range(1000):
        trail.append([record] * 3)


def test_a_trail_begins_with_record_one(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """In a file that only its owner reads."""
    trail = open_trail()
    assert trail.head == (0, "0" * 64)

    trail.append([make_record()])

    report = check(path)
    assert trail.head == (report.last_seq, report.last_hash) == (1, report.last_hash)
    assert path.stat().st_mode & 0o777 == 0o600
    assert '"eventTime":"2026-09-21T14:13:20.125Z"' in trail.read_tail(limit=1, max_bytes=1000)[0]


def test_a_batch_is_one_write(open_trail: OpenTrail, make_record: MakeRecord, path: Path, system: FaultySystem) -> None:
    """And one look at the path; an empty batch is none."""
    trail = open_trail(system=system)
    looks = system.counts["lstat"]

    trail.append([make_record()] * 16)
    trail.append([])

    assert (system.counts["write"], system.counts["lstat"] - looks) == (1, 1)
    assert check(path).lines == 16


def test_the_chain_goes_on_after_opening_again(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """One chain over any number of runs."""
    heads = []
    for _ in range(3):
        trail = open_trail()
        trail.append([make_record()])
        heads.append(trail.head)
        trail.close()

    assert [seq for seq, _ in heads] == [1, 2, 3]
    assert (check(path).last_seq, check(path).last_hash) == heads[-1]


def test_only_one_process_writes(open_trail: OpenTrail, path: Path) -> None:
    """A second opener is refused until the first closes."""
    first = open_trail()
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: another process writes it"):
        open_trail()

    first.close()
    open_trail()


@pytest.mark.parametrize("fault", [0, 1, 300, 1200, ENOSPC, EIO], ids=str)
def test_a_write_that_fails_leaves_no_trace(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, system: FaultySystem, fault: int | OSError
) -> None:
    """The error names the file and the reason; seq and prev stay, and appends work again by themselves."""
    trail = open_trail(system=system)
    trail.append([make_record()])
    before, head = path.read_bytes(), trail.head

    system.faults["write"] = fault
    for _ in range(2):
        with pytest.raises(AuditUnavailableError, match=r"audit\.log: (took only|No space|Input/output)"):
            trail.append([make_record()] * 4)

        assert (path.read_bytes(), trail.head) == (before, head)

    del system.faults["write"]
    trail.append([make_record()])
    assert check(path).last_seq == trail.head[0] == 2


def test_what_could_not_be_cut_off_is_cut_off_later(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, system: FaultySystem
) -> None:
    """Nothing is appended behind half a line."""
    trail = open_trail(system=system)
    trail.append([make_record()])
    system.faults = {"write": 100, "ftruncate": EIO}
    with pytest.raises(AuditUnavailableError):
        trail.append([make_record()])

    del system.faults["write"]
    with pytest.raises(AuditUnavailableError, match="bytes and not"):
        trail.append([make_record()])

    del system.faults["ftruncate"]
    trail.append([make_record()])
    assert check(path).last_seq == 2


def test_a_record_that_cannot_be_encoded_harms_nothing(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path
) -> None:
    """Nothing of its batch is written, and the caller hears what every refusal of the trail sounds like."""
    trail = open_trail()

    with pytest.raises(AuditUnavailableError, match=r"audit\.log: a record cannot be written \(ValueError\)"):
        trail.append([make_record(), make_record(request_parameters={"a": 10**5000})])

    trail.append([make_record()])
    assert check(path).last_seq == 1


def test_a_disk_that_cannot_be_read_after_a_refusal_refuses(
    open_trail: OpenTrail, make_record: MakeRecord, system: FaultySystem
) -> None:
    """With the trail's own error, as whoever appends knows no other."""
    trail = open_trail(system=system)
    trail.append([make_record()])
    system.faults["write"] = ENOSPC
    with pytest.raises(AuditUnavailableError):
        trail.append([make_record()])

    system.faults = {"pread": EIO}
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: the last record cannot be read back: Input/output"):
        trail.append([make_record()])

    system.faults = {}
    trail.append([make_record()])
    assert trail.head[0] == 2


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.INTENT])
def test_an_unlinked_file_is_noticed(open_trail: OpenTrail, make_record: MakeRecord, path: Path, kind: Kind) -> None:
    """At the very next append, not some time later."""
    trail = open_trail()
    trail.append([make_record()])
    path.unlink()

    for _ in range(2):
        with pytest.raises(AuditUnavailableError, match="removed or renamed"):
            trail.append([make_record(kind)])
    assert trail.head[0] == 1


def test_a_renamed_file_is_noticed_and_goes_on_when_it_is_back(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path
) -> None:
    """What was written into it meanwhile was refused, and is taken back."""
    trail = open_trail()
    trail.append([make_record()])
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(AuditUnavailableError, match="removed or renamed"):
        trail.append([make_record()])
    path.write_bytes(b"")
    with pytest.raises(AuditUnavailableError, match="replaced"):
        trail.append([make_record()])
    assert path.read_bytes() == b""

    path.with_name("elsewhere").rename(path)

    trail.append([make_record()])
    assert check(path).last_seq == 2


@pytest.mark.parametrize("left", [0, 1, 200])
@pytest.mark.parametrize("records", [1, 2, 5])
def test_a_truncated_file_is_noticed(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, left: int, records: int
) -> None:
    """Also when the next batch makes it longer than it was; it is not taken for whole by its size."""
    trail = open_trail()
    trail.append([make_record()] * 2)
    os.truncate(path, left)

    for _ in range(3):
        with pytest.raises(AuditUnavailableError, match="truncated"):
            trail.append([make_record()] * records)
    assert trail.head[0] == 2


def test_a_foreign_write_is_noticed_and_nothing_is_cut(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path
) -> None:
    """What another program wrote may be evidence."""
    trail = open_trail()
    trail.append([make_record()])
    with path.open("ab") as stream:
        stream.write(b"foreign\n")

    for _ in range(2):
        with pytest.raises(AuditUnavailableError, match="another program"):
            trail.append([make_record()])

    assert b"foreign\n" in path.read_bytes()


def test_a_closed_trail_takes_nothing(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """Its descriptor's number may already mean another file."""
    trail = open_trail()
    trail.close()
    trail.close()

    with pytest.raises(AuditUnavailableError):
        trail.append([make_record()])
    assert path.read_bytes() == b""


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "missing folder"])
def test_what_is_no_regular_file_is_refused(open_trail: OpenTrail, path: Path, kind: str) -> None:
    """And to open it does not hang."""
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_name("target"))
    else:
        path = path / "audit.log"

    with pytest.raises(AuditUnavailableError, match=str(path)):
        open_trail(path)


def test_open_intents_are_found_again(open_trail: OpenTrail, make_record: MakeRecord) -> None:
    """For start-up to complete them."""
    trail = open_trail()
    trail.append([make_record(Kind.INTENT, request_id="a"), make_record(Kind.INTENT, request_id="b")])
    trail.append([make_record(Kind.BEGIN, request_id="c"), make_record(Kind.OUTCOME, request_id="a")])
    assert trail.open_intents() == ()
    trail.close()

    found = open_trail().open_intents()

    assert [(intent.seq, intent.kind, intent.request_id) for intent in found] == [
        (2, Kind.INTENT, "b"),
        (3, Kind.BEGIN, "c"),
    ]
    assert found[0].actor == make_record().actor


def test_marks_carry_open_intents_across_a_long_trail(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path
) -> None:
    """A start reads only from the last mark, and believes no mark that a request wrote into its parameters."""
    forged = {"eventType": "ServiceEvent", "eventName": "MarkAuditTrail", "openIntents": []}
    large = make_record(request_parameters={"a": "x" * 200_000, "b": forged})
    trail = open_trail()
    trail.append(
        [make_record(Kind.INTENT, request_id="a"), make_record(Kind.INTENT, request_id="b", resources=("arn",))]
    )
    for _ in range(MARK_EVERY_BYTES // 200_000 + 2):
        trail.append([large])
    trail.append([make_record(Kind.OUTCOME, request_id="a"), make_record(Kind.BEGIN, request_id="c"), large])
    head = trail.head
    trail.close()
    assert path.read_bytes().count(b'Z","eventType":"ServiceEvent","eventName":"MarkAuditTrail"') == 1

    edited = bytearray(path.read_bytes())
    edited[300] ^= 1
    path.write_bytes(edited)
    trail = open_trail()

    assert [(intent.seq, intent.request_id, intent.resources) for intent in trail.open_intents()] == [
        (2, "b", ("arn",)),
        (head[0] - 1, "c", ()),
    ]
    assert trail.head == head


def test_a_mark_too_long_for_a_line_waits(open_trail: OpenTrail, make_record: MakeRecord) -> None:
    """Cut, it would lose the open intents that a start from it relies on."""
    large = make_record(request_parameters={"a": "x" * 200_000})
    trail = open_trail()
    names = [f"{number}" for number in range(2000)]
    trail.append([make_record(Kind.INTENT, request_id=name) for name in names])
    for _ in range(MARK_EVERY_BYTES // 200_000 + 2):
        trail.append([large])
    settled = names[5:]
    trail.append([make_record(Kind.OUTCOME, request_id=name) for name in settled])
    assert not any(MARK in line for line in trail.read(after_seq=0, limit=10_000, max_bytes=1 << 26))

    for _ in range(MARK_EVERY_BYTES // 200_000 + 2):
        trail.append([large])

    assert any(MARK in line for line in trail.read_tail(limit=100, max_bytes=1 << 26))
    trail.close()
    assert [intent.request_id for intent in open_trail().open_intents()] == names[:5]


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.dictionaries(
                st.sampled_from(["write", "ftruncate", "pread", "fstat", "lstat"]),
                st.sampled_from([ENOSPC, EIO]),
                max_size=3,
            ),
            st.none() | st.integers(0, 1200),
        ),
        max_size=20,
    )
)
def test_whatever_fails_the_file_holds_exactly_what_was_accepted(
    tmp_path_factory: pytest.TempPathFactory,
    make_system: type[FaultySystem],
    steps: list[tuple[int, dict[str, OSError], int | None]],
) -> None:
    """Faults in any order at any call: after them, the accepted records and no others, in one chain."""
    path = tmp_path_factory.mktemp("faults") / "audit.log"
    system = make_system()
    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0, system=system.calls)
    accepted = []
    for step, (count, faults, taken) in enumerate(steps):
        names = [f"{step}.{number}" for number in range(count)]
        system.faults = {**faults, **({} if taken is None or "write" in faults else {"write": taken})}
        try:
            trail.append([Record(Kind.REQUEST, "Encrypt", None, name, read_only=True) for name in names])
        except AuditUnavailableError:
            continue
        accepted += names
    system.faults = {}
    trail.append([Record(Kind.REQUEST, "Encrypt", None, "last", read_only=True)])
    head = trail.head
    trail.close()

    report = check(path)
    assert (report.last_seq, report.last_hash) == head == (len(accepted) + 1, report.last_hash)
    text = path.read_text()
    assert [line.split('"requestID":"')[1].split('"')[0] for line in text.splitlines()] == [*accepted, "last"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.root
def test_a_full_disk_refuses_and_a_freed_one_goes_on(
    open_trail: OpenTrail, make_record: MakeRecord, tiny_disk: Path
) -> None:
    """The real thing: a file system of 64 KiB."""
    path = tiny_disk / "audit.log"
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(20_000))
    trail = open_trail(path)
    with pytest.raises(AuditUnavailableError, match=r"disk/audit\.log: (No space left|took only)"):
        append_many(trail, make_record())
    accepted = trail.head
    assert (check(path).last_seq, check(path).last_hash) == accepted

    ballast.unlink()

    trail.append([make_record()] * 3)
    assert check(path).last_seq == accepted[0] + 3


def test_a_file_size_limit_refuses_and_a_raised_one_goes_on(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path
) -> None:
    """The kernel takes a part of a batch, then says EFBIG."""
    trail = open_trail()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(AuditUnavailableError, match="took only"):
            append_many(trail, make_record())
        accepted = trail.head
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (check(path).last_seq, check(path).last_hash) == accepted

    trail.append([make_record()])
    assert check(path).last_seq == accepted[0] + 1
