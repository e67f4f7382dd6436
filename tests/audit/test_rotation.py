"""Going on in a new file, with one chain over all of them, whatever fails or is killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.files import rotated_files
from kmsd.audit.record import Kind, Record
from kmsd.audit.repair import Repair, begin_anew, survey
from kmsd.audit.rotation import Rotation
from kmsd.audit.succession import AuditBrokenError
from kmsd.audit.syncing import REFUSE_AFTER_SECONDS
from kmsd.audit.verify import Report, verify
from kmsd.audit.writer import SyncMode, Trail

if TYPE_CHECKING:
    from tests.audit.conftest import AuditKey, FaultySystem, MakeRecord, OpenTrail

EIO = OSError(errno.EIO, "Input/output error")

AT_ONCE = Rotation(max_bytes=1, max_seconds=0)
NAMES = itertools.count()


def files_of(path: Path) -> list[Path]:
    return [*(rotated.path for rotated in rotated_files(path)), path]


def lines_of(path: Path) -> list[bytes]:
    return [line for file in files_of(path) for line in file.read_bytes().splitlines(keepends=True)]


def check(path: Path) -> Report:
    """Verify all files as one chain, each with the records that its name says."""
    for rotated in rotated_files(path):
        seqs = [json.loads(line)["seq"] for line in rotated.path.read_bytes().splitlines()]
        assert (rotated.first, rotated.last) == (seqs[0], seqs[-1])
    return verify(lines_of(path))


def requests_in(path: Path) -> list[str]:
    records = map(json.loads, lines_of(path))
    return [record["requestID"] for record in records if record["eventType"] != "ServiceEvent"]


def named(name: str) -> Record:
    return Record(Kind.REQUEST, "Encrypt", None, name, read_only=True)


async def rotate(trail: Trail, path: Path) -> None:
    before = len(files_of(path))
    await trail.maintain()
    assert len(files_of(path)) == before + 1


async def test_a_large_file_is_followed_by_another(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """The old one is named by its numbers, and the chain goes on in the new one."""
    trail = open_trail(rotation=Rotation(max_bytes=5000, max_seconds=0))
    trail.append([make_record()] * 3)
    await trail.maintain()
    assert files_of(path) == [path]

    trail.append([make_record()] * 30)
    await trail.maintain()
    trail.append([make_record()])

    assert [file.name for file in files_of(path)] == ["audit.log.000000000001-000000000033", "audit.log"]
    assert (check(path).last_seq, check(path).last_hash) == trail.head == (35, check(path).last_hash)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files_of(path))
    mark = json.loads(lines_of(path)[33])
    assert (mark["seq"], mark["eventType"], mark["eventName"]) == (34, "ServiceEvent", "MarkAuditTrail")
    assert mark["additionalEventData"] == {
        "openIntents": [],
        "storeSequence": 0,
        "previousFile": "audit.log.000000000001-000000000033",
    }


async def test_an_old_file_is_followed_by_another(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """By the time of its first record, also after a start; one that has only its mark is left."""
    now = 1_790_000_000.0
    rotation = Rotation(max_bytes=0, max_seconds=3600)
    trail = open_trail(rotation=rotation, clock=lambda: now)
    trail.append([make_record()] * 2)
    now += 3599
    await trail.maintain()
    assert files_of(path) == [path]
    trail.close()

    trail = open_trail(rotation=rotation, clock=lambda: now)
    now += 1
    await rotate(trail, path)

    now += 3600
    await trail.maintain()
    assert len(files_of(path)) == 2
    trail.append([make_record()])
    await rotate(trail, path)


async def test_no_file_is_rotated_when_nothing_says_so(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path
) -> None:
    """Zero is never."""
    now = 0.0
    trail = open_trail(rotation=Rotation(max_bytes=0, max_seconds=0), clock=lambda: now)
    trail.append([make_record()] * 100)
    now += 1e9

    await trail.maintain()

    assert files_of(path) == [path]


async def test_a_start_goes_on_in_the_newest_file(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """Its mark tells what the files before have left open, and how far the store was."""
    trail = open_trail(rotation=AT_ONCE)
    trail.append([make_record(Kind.INTENT, request_id="a"), make_record(Kind.INTENT, request_id="b")])
    trail.append([make_record(Kind.OUTCOME, request_id="a", details={"storeSequence": 7})])
    trail.append([make_record(Kind.OUTCOME, request_id="x", details={"storeSequence": 6})])
    assert trail.store_sequence == 7
    await rotate(trail, path)
    await rotate_more(trail, make_record, path)
    head = trail.head
    trail.close()

    trail = open_trail()

    assert trail.head == head
    assert [intent.request_id for intent in trail.open_intents()] == ["b"]
    assert trail.store_sequence == 7
    trail.append([make_record()])
    assert check(path).last_seq == head[0] + 1


async def rotate_more(trail: Trail, make_record: MakeRecord, path: Path) -> None:
    for _ in range(3):
        trail.append([make_record()] * 3)
        await rotate(trail, path)


async def test_reading_goes_over_all_files(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """From any number on, and from the end, as if they were one."""
    trail = open_trail(rotation=AT_ONCE)
    trail.append([make_record()] * 5)
    await rotate_more(trail, make_record, path)
    lines = [line.decode().rstrip("\n") for line in lines_of(path)]
    assert len(lines) == 17

    for after in range(19):
        assert trail.read(after_seq=after, limit=100, max_bytes=1 << 20) == lines[after:]
        assert trail.read(after_seq=after, limit=3, max_bytes=1 << 20) == lines[after:][:3]
    for count in range(1, 19):
        assert trail.read_tail(limit=count, max_bytes=1 << 20) == lines[-count:]


async def test_rotation_signs_before_and_after(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, audit_key: AuditKey
) -> None:
    """Each file vouches for itself, and for the ones before it should they be put elsewhere."""
    trail = open_trail(rotation=AT_ONCE)
    trail.append([make_record()] * 3)
    trail.signer = audit_key
    first = trail.checkpoint()
    assert first is not None
    trail.append([make_record()])
    await rotate(trail, path)

    names = [[json.loads(line)["eventName"] for line in file.read_bytes().splitlines()] for file in files_of(path)]
    assert names == [
        ["Encrypt"] * 3 + ["SignAuditTrail", "Encrypt", "SignAuditTrail"],
        ["MarkAuditTrail", "SignAuditTrail"],
    ]
    assert trail.holds(first, audit_key)
    assert trail.fault_behind(first, audit_key) is None

    files_of(path)[0].unlink()
    assert trail.holds(first, audit_key)
    assert trail.fault_behind(first, audit_key) is None
    assert not trail.holds(first, type(audit_key)())


async def test_what_is_appended_while_rotation_waits_is_in_the_old_file(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, system: FaultySystem
) -> None:
    """And whoever waits for its sync hears of it."""
    hang = threading.Event()
    trail = open_trail(rotation=AT_ONCE, system=system)
    trail.append([named("1"), named("2")])
    system.hang = hang
    rotation = asyncio.create_task(trail.maintain())
    await asyncio.sleep(0.01)
    trail.append([named("3")])
    waiting = [asyncio.create_task(trail.sync()) for _ in range(3)]
    await asyncio.sleep(0)
    hang.set()

    await asyncio.gather(rotation, *waiting)

    assert b'"requestID":"3"' in files_of(path)[0].read_bytes()
    assert requests_in(path) == ["1", "2", "3"]
    await trail.sync()


async def test_rotation_leaks_no_descriptor(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """The syncer closes a file when it is done with it."""
    trail = open_trail(rotation=AT_ONCE, sync=SyncMode.INTERVAL)
    trail.append([make_record()] * 2)
    await trail.sync()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts, and opens nothing of its own for long

    for _ in range(5):
        await rotate(trail, path)
        trail.append([make_record()])
        await trail.sync()
    await trail.sync()

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


async def test_a_stuck_disk_is_not_rotated(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, system: FaultySystem
) -> None:
    """The daemon's loop never waits for it; all goes on when the disk does."""
    hang = threading.Event()
    trail = open_trail(rotation=AT_ONCE, system=system)
    trail.append([make_record()] * 2)
    system.hang, before = hang, system.counts["fdatasync"]
    waiting = asyncio.create_task(trail.sync())
    await system.sync_begins(before)
    system.late = REFUSE_AFTER_SECONDS + 0.1
    try:
        with pytest.raises(AuditUnavailableError, match="a sync has not returned"):
            await trail.maintain()
        assert files_of(path) == [path]
    finally:
        hang.set()
    await waiting

    await rotate(trail, path)
    assert check(path).last_seq == trail.head[0]


async def fill_and_rotate(path: Path, system: FaultySystem, at_call: Callable[[str], None]) -> Trail:
    """Make a trail of two files and rotate once more, with `at_call` being told the calls of that."""
    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0, rotation=AT_ONCE, system=system.calls)
    trail.append([named("1"), named("2")])
    await trail.maintain()
    trail.append([named("3"), named("4")])
    await trail.sync()
    system.at_call = at_call
    with contextlib.suppress(AuditUnavailableError):
        await trail.maintain()
    return trail


class Countdown:
    """Calls `then` at the n-th call."""

    def __init__(self, calls: int, then: Callable[[], None]) -> None:
        self.left = calls
        self.then = then

    def __call__(self, _call: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.then()


async def test_whatever_call_fails_the_trail_goes_on(tmp_path: Path, make_system: type[FaultySystem]) -> None:
    """In the old file or the new one, at once or after the next look; nothing is lost, and nothing is there twice."""

    def fail() -> None:
        raise EIO

    for number in itertools.count(1):
        path = tmp_path / f"{number}" / "audit.log"
        path.parent.mkdir()
        system = make_system()
        countdown = Countdown(number, fail)
        trail = await fill_and_rotate(path, system, countdown)
        system.at_call = None
        accepted = await append_until_all_is_well(trail)
        trail.close()
        assert requests_in(path) == ["1", "2", "3", "4", *accepted]
        assert check(path).last_seq == trail.head[0]
        assert len(files_of(path)) >= 3
        assert not path.with_name("audit.log.next").exists()
        Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0).close()
        if countdown.left > 0:
            break
    assert number > 10


async def append_until_all_is_well(trail: Trail) -> list[str]:
    """Append and maintain as a service does, and return what was accepted."""
    accepted = []
    for attempt in range(100):
        try:
            trail.append([named(f"{attempt}.")])
            accepted.append(f"{attempt}.")
            await trail.maintain()
        except AuditUnavailableError:
            await asyncio.sleep(0.01)  # a failed sync is tried again by itself
        else:
            return accepted
    raise AssertionError("the trail never took a record again")


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def cut(path: Path) -> None:
    if path.exists():
        os.truncate(path, 100)


def exchange(path: Path) -> None:
    if path.exists():
        path.rename(path.with_name("elsewhere"))
        path.write_bytes(b"mine")


@pytest.mark.parametrize("meddle", [remove, cut, exchange])
async def test_whoever_meddles_during_a_rotation_is_noticed(
    tmp_path: Path, make_system: type[FaultySystem], meddle: Callable[[Path], None]
) -> None:
    """At the next append or the next start; what was accepted is there, and a foreign file is no rotated file."""
    for number in itertools.count(1):
        path = tmp_path / f"{number}" / "audit.log"
        path.parent.mkdir()
        system = make_system()
        countdown = Countdown(number, functools.partial(meddle, path))
        trail = await fill_and_rotate(path, system, countdown)
        system.at_call = None
        if countdown.left > 0:
            trail.close()
            break
        with contextlib.suppress(AuditUnavailableError):
            trail.append([named("5")])
            assert b'"requestID":"5"' in path.read_bytes()
        trail.close()
        assert not any(file.path.read_bytes() == b"mine" for file in rotated_files(path))
        with contextlib.suppress(AuditBrokenError):
            trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0)
            trail.close()
            assert check(path).last_seq == trail.head[0]
    assert number > 10


def test_a_kill_at_any_call_loses_nothing(tmp_path: Path, make_system: type[FaultySystem]) -> None:
    """A start finishes what was begun, or takes it back, and the chain goes on."""
    for number in itertools.count(1):
        path = tmp_path / f"{number}" / "audit.log"
        path.parent.mkdir()
        child = os.fork()
        if child == 0:
            asyncio.run(fill_and_rotate(path, make_system(), Countdown(number, lambda: os._exit(9))))
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert killed in {0, 9}

        trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0)
        trail.append([named("5")])
        trail.close()

        assert requests_in(path) == ["1", "2", "3", "4", "5"]
        assert check(path).last_seq == trail.head[0]
        assert not path.with_name("audit.log.next").exists()
        if not killed:
            break
    assert number > 10


async def test_a_file_that_cannot_be_put_back_at_once_is_put_back_later(
    open_trail: OpenTrail, path: Path, system: FaultySystem
) -> None:
    """Until then nothing is accepted, and the file is named."""
    trail = open_trail(rotation=AT_ONCE, system=system)
    trail.append([named("1"), named("2")])

    def fail_behind_the_first(call: str) -> None:
        if call == "rename" and system.counts["rename"] > 1:
            raise EIO

    system.at_call = fail_behind_the_first
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: cannot be rotated: Input/output error"):
        await trail.maintain()
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: the file was removed or renamed"):
        trail.append([named("3")])
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: cannot be put back: Input/output error"):
        await trail.maintain()

    system.at_call = None
    await trail.maintain()
    trail.append([named("4")])

    assert requests_in(path) == ["1", "2", "4"]
    assert check(path).last_seq == trail.head[0]


async def test_a_file_in_the_way_is_never_overwritten(
    open_trail: OpenTrail, path: Path, make_record: MakeRecord
) -> None:
    """Neither where the old file would go, nor where it would be put back."""
    trail = open_trail(rotation=AT_ONCE)
    trail.append([make_record()] * 2)
    other = path.with_name("audit.log.000000000001-000000000002")
    other.write_bytes(b"mine")
    with pytest.raises(AuditUnavailableError, match="000000000002 is there already"):
        await trail.maintain()

    assert other.read_bytes() == b"mine"
    trail.append([make_record()])
    assert trail.head[0] == 3


def replace(path: Path, content: bytes) -> None:
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(content)


async def test_a_file_that_was_replaced_is_not_rotated(
    open_trail: OpenTrail, path: Path, make_record: MakeRecord
) -> None:
    """It is not the trail's."""
    trail = open_trail(rotation=AT_ONCE)
    trail.append([make_record()] * 2)
    replace(path, b"mine")

    with pytest.raises(AuditUnavailableError, match="replaced by another"):
        await trail.maintain()

    assert (lines_of(path), files_of(path)) == ([b"mine"], [path])


async def test_a_closed_trail_is_not_rotated(open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> None:
    """Also when it is closed while rotation waits."""
    trail = open_trail(rotation=AT_ONCE)
    trail.append([make_record()] * 2)
    rotation = asyncio.create_task(trail.maintain())
    await asyncio.sleep(0)
    trail.close()
    await rotation

    await trail.maintain()

    assert files_of(path) == [path]


async def test_too_many_open_intents_put_rotation_off(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path
) -> None:
    """A mark that is cut would lose some."""
    trail = open_trail(rotation=AT_ONCE)
    names = [f"{number}" for number in range(2000)]
    trail.append([make_record(Kind.INTENT, request_id=name) for name in names])
    await trail.maintain()
    assert files_of(path) == [path]

    trail.append([make_record(Kind.OUTCOME, request_id=name) for name in names])
    await rotate(trail, path)


class TestStart:
    """What is beside the active file has to be what it continues."""

    @pytest.fixture
    async def files(self, open_trail: OpenTrail, make_record: MakeRecord, path: Path) -> list[Path]:
        trail = open_trail(rotation=AT_ONCE)
        trail.append([make_record()] * 3)
        await rotate(trail, path)
        trail.append([make_record()] * 3)
        await rotate(trail, path)
        trail.append([make_record()] * 3)
        trail.close()
        return files_of(path)

    def test_old_files_may_be_put_elsewhere(self, open_trail: OpenTrail, files: list[Path]) -> None:
        """All of them, or the oldest."""
        files[0].unlink()
        open_trail().close()
        files[1].unlink()

        assert open_trail().head[0] == 11

    def test_a_missing_file_between_others_is_noticed(self, open_trail: OpenTrail, files: list[Path]) -> None:
        """The error names it."""
        files[1].unlink()

        with pytest.raises(AuditBrokenError, match=r"000000000004-000000000007, which it continues, is missing"):
            open_trail()

    @pytest.mark.parametrize("edit", [(b'"r-1"', b'"r-2"'), (b'"seq":7', b'"seq":8'), (b"}\n", b"}")])
    def test_a_changed_end_of_the_file_before_is_noticed(
        self, open_trail: OpenTrail, files: list[Path], edit: tuple[bytes, bytes]
    ) -> None:
        """By its hash, which the active file's first line has."""
        *rest, last = files[1].read_bytes().splitlines(keepends=True)
        files[1].write_bytes(b"".join([*rest, last.replace(*edit)]))

        with pytest.raises(AuditBrokenError, match=r"audit\.log.* (does not continue|is no whole record)"):
            open_trail()

    @pytest.mark.usefixtures("files")
    def test_a_removed_active_file_is_noticed(self, open_trail: OpenTrail, path: Path) -> None:
        """No crash removes it, so no new trail is begun."""
        path.unlink()
        with pytest.raises(AuditBrokenError, match=r"is missing, and audit.log.000000000004-000000000007 is not all"):
            open_trail()

        path.write_bytes(b"")
        with pytest.raises(AuditBrokenError, match=r"is empty, and audit.log.000000000004-000000000007 is not all"):
            open_trail()

    @pytest.mark.usefixtures("files")
    def test_a_trail_begun_anew_beside_old_files_is_noticed(
        self, open_trail: OpenTrail, make_record: MakeRecord, path: Path, tmp_path: Path
    ) -> None:
        """It has numbers that they have."""
        other = open_trail(tmp_path / "other.log")
        other.append([make_record()] * 2)
        other.close()
        (tmp_path / "other.log").rename(path)

        with pytest.raises(AuditBrokenError, match=r"begins with record 1, and audit.log.000000000001"):
            open_trail()

    @pytest.mark.usefixtures("files")
    def test_an_unfinished_rotation_is_finished(self, open_trail: OpenTrail, path: Path) -> None:
        """Also when records are in the next file already: its new name was lost in a power cut, they were not."""
        path.rename(path.with_name("audit.log.next"))

        assert open_trail().head[0] == 11
        assert not path.with_name("audit.log.next").exists()

    def test_a_next_file_that_continues_nothing_is_no_trail(
        self, open_trail: OpenTrail, files: list[Path], path: Path
    ) -> None:
        """The file that it continues is missing."""
        path.rename(path.with_name("audit.log.next"))
        files[1].unlink()

        with pytest.raises(AuditBrokenError, match=r"is missing, and audit\.log\.next continues no rotated file"):
            open_trail()

    @pytest.mark.usefixtures("files")
    def test_a_next_file_of_a_rotation_that_began_is_dropped(self, open_trail: OpenTrail, path: Path) -> None:
        """It holds nothing but its mark, or a part of it."""
        mark = path.read_bytes().splitlines(keepends=True)[0]
        for content in (b"", b"\0" * 10, mark[:5], mark[:100], mark):
            path.with_name("audit.log.next").write_bytes(content)
            open_trail().close()
            assert not path.with_name("audit.log.next").exists()

    @pytest.mark.parametrize("content", [b"mine", b'{"seq":1}\n{"seq":2}\n'])
    @pytest.mark.usefixtures("files")
    def test_a_foreign_next_file_is_left_alone(self, open_trail: OpenTrail, path: Path, content: bytes) -> None:
        """A rotation leaves no such file, so somebody may miss it."""
        path.with_name("audit.log.next").write_bytes(content)

        with pytest.raises(AuditBrokenError, match=r"audit\.log\.next: the file is in the way"):
            open_trail()

        assert path.with_name("audit.log.next").read_bytes() == content

    @pytest.mark.usefixtures("files")
    def test_a_repaired_trail_goes_on(self, open_trail: OpenTrail, path: Path) -> None:
        """Its first line continues nothing and says so; the files before it stay."""
        lines = path.read_bytes().splitlines(keepends=True)
        lines[1] = lines[1].replace(b"alice", b"mallory")
        path.unlink()
        found = survey(lines)
        repair = Repair("audit.log.broken-1", "audit.log", found.size, found.sha256, 11, "0" * 64, "line 2: edited")
        path.write_bytes(b"".join(begin_anew(repair, found, "2026-09-21T14:13:20.125Z")))

        trail = open_trail(rotation=AT_ONCE)

        assert trail.head[0] == 13
        assert len(trail.read(after_seq=0, limit=100, max_bytes=1 << 20)) == 9
