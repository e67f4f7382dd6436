"""A broken trail gets a new chain, and the broken file stays."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.chain import Head, digest_of, link, parse
from kmsd.audit.record import Kind, Record
from kmsd.audit.repairing import Repairs, SetAside
from kmsd.audit.standing import system_record
from kmsd.audit.succession import AuditBrokenError
from kmsd.audit.system import System
from kmsd.audit.trail_check import check_trail
from kmsd.audit.verify import MARK, REPAIR
from kmsd.audit.writer import SyncMode, Trail
from kmsd_client.cli.audit_records import trail_file
from tests.audit.conftest import FaultySystem
from tests.support.written_trail import NAME, Key, Writer, request, signed_trail, system

FIRST, SECOND = "audit.log.000000000001-000000000012", "audit.log.000000000013-000000000024"
KEY = Key()
NOW = 1790000000.125

Break = Callable[[Path], None]


def lay(folder: Path, trail: Writer) -> Path:
    for name, lines in trail.files.items():
        (folder / name).write_bytes(b"".join(lines))
    return folder / NAME


@pytest.fixture
def trail(tmp_path: Path) -> Path:
    """Three files, whole."""
    return lay(tmp_path, signed_trail(KEY))


def repair(trail: Path, calls: System | None = None) -> list[SetAside]:
    repairs = Repairs.open(trail, clock=lambda: NOW, system=calls)
    try:
        done = []
        while (fault := repairs.find()) is not None:
            done.append(repairs.set_aside(fault))
        return done
    finally:
        repairs.close()


def goes_on(trail: Path, *, seq: int) -> None:
    """A daemon continues the trail, and its records are `seq` and so on; the whole of it verifies once it is signed."""
    opened = Trail.open(trail, sync=SyncMode.OS, clock=lambda: NOW)
    try:
        assert opened.head[0] >= seq
        opened.append([request(1)])
        opened.signer = KEY
        opened.checkpoint()
    finally:
        opened.close()
    check_trail([trail_file(path) for path in sorted(trail.parent.iterdir())], public_key=KEY.public)


def rewrite(name: str, change: Callable[[list[bytes]], list[bytes]]) -> Break:
    def broken(folder: Path) -> None:
        path = folder / name
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return broken


def replaced(name: str, data: bytes) -> Break:
    def broken(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return broken


def removed(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def without(*numbers: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [line for number, line in enumerate(lines, 1) if number not in numbers]


def garbled(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[: number - 1], b"\xfe\xff" * 40 + b"\n", *lines[number:]]


def as_older_copy(folder: Path) -> None:
    (folder / NAME).write_bytes((folder / SECOND).read_bytes())


BREAKS: dict[str, tuple[Break, str, int]] = {
    # What is broken, the file that is set aside, and the number the new chain begins with.
    "a line removed": (rewrite(NAME, without(4)), NAME, 40),
    "a line edited": (rewrite(NAME, garbled(4)), NAME, 40),
    "the last lines edited": (rewrite(NAME, lambda lines: [*lines[:-2], b"x\n", b"y\n"]), NAME, 38),
    "garbage": (replaced(NAME, b"garbage, all of it\n" * 9), NAME, 25),
    "garbage without a line": (replaced(NAME, b"garbage"), NAME, 25),
    "an empty file": (replaced(NAME, b""), NAME, 25),
    "no file": (removed(NAME), NAME, 25),
    "an older copy in its place": (as_older_copy, NAME, 25),
    "a number that no trail has": (
        rewrite(NAME, lambda lines: [*lines[:3], lines[3].replace(b'"seq":28', b'"seq":9223372036854775807')]),
        NAME,
        28,
    ),
    "the last rotated file removed": (removed(SECOND), NAME, 40),
    "the first rotated file cut": (rewrite(FIRST, lambda lines: lines[:-3]), FIRST, 40),
    "a rotated file edited in the middle": (rewrite(SECOND, garbled(4)), SECOND, 40),
    "a rotated file that is garbage": (replaced(SECOND, b"garbage\n"), SECOND, 40),
    "an empty rotated file": (replaced(SECOND, b""), SECOND, 40),
}


@pytest.mark.parametrize(("breaks", "name", "seq"), BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_file_is_set_aside_and_a_new_chain_refers_to_it(
    trail: Path, breaks: Break, name: str, seq: int
) -> None:
    """Nothing of the broken file is lost, and the daemon goes on behind the last number that was found."""
    breaks(trail.parent)
    evidence = (trail.parent / name).read_bytes() if (trail.parent / name).exists() else b""

    [done] = repair(trail)
    first = parse(trail.read_bytes().splitlines(keepends=True)[0])

    assert (done.path.name, done.path.read_bytes(), done.first_seq) == (f"{NAME}.broken-1", evidence, seq)
    assert (first.seq, first.event_name, first.prev) == (seq, REPAIR, "0" * 64)
    told = first.additional_event_data or {}
    assert (told["brokenFile"], told["bytes"], told["lastSeq"]) == (f"{NAME}.broken-1", len(evidence), seq - 1)
    assert told["fault"]
    goes_on(trail, seq=seq + 1)
    assert repair(trail) == []


@pytest.mark.parametrize("name", ["a line removed", "no file", "a rotated file edited in the middle"])
def test_a_killed_repair_is_finished_by_the_next(tmp_path: Path, name: str) -> None:
    """Whichever call was its last; no evidence is lost, and none is kept twice."""
    breaks, broken_name, _ = BREAKS[name]
    for last_call in range(1, 200):
        folder = tmp_path / str(last_call)
        folder.mkdir()
        trail = lay(folder, signed_trail(KEY))
        breaks(folder)
        evidence = (folder / broken_name).read_bytes() if (folder / broken_name).exists() else b""
        if not killed_at(trail, last_call):
            break
        repair(trail)

        assert [path.read_bytes() for path in folder.glob("*.broken-*")] == [evidence]
        goes_on(trail, seq=1)
    else:
        pytest.fail("it never ended")
    assert last_call > 10


def killed_at(trail: Path, last_call: int) -> bool:
    """Repair in a child that a call ends, as SIGKILL would; return whether it got that far."""
    child = os.fork()
    if child == 0:
        faulty, count = FaultySystem(), 0

        def at_call(call: str) -> None:
            nonlocal count
            count += call in {"write", "fsync", "rename", "unlink", "link", "open"}
            if count == last_call:
                os._exit(9)

        faulty.at_call = at_call
        try:
            repair(trail, faulty.calls)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


def test_a_whole_trail_is_left_alone(trail: Path) -> None:
    """Also one whose end a crash has left unfinished, which a start of the daemon sees to."""
    before = {path.name: path.read_bytes() for path in trail.parent.iterdir()}
    assert repair(trail) == []

    with trail.open("ab") as stream:
        stream.write(b'{"seq":40,"prev"')
    assert repair(trail) == []
    assert {path.name for path in trail.parent.iterdir()} == set(before)


def test_where_there_is_no_trail_there_is_nothing_to_repair(tmp_path: Path) -> None:
    """And none is made."""
    with pytest.raises(AuditBrokenError, match="there is no trail"):
        repair(tmp_path / NAME)

    assert list(tmp_path.iterdir()) == []


def test_a_running_daemon_keeps_its_trail(tmp_path: Path) -> None:
    """The repair refuses while somebody else writes the file."""
    daemon = Trail.open(tmp_path / NAME, sync=SyncMode.OS, clock=lambda: NOW)
    daemon.append([request(1)])

    with pytest.raises(AuditUnavailableError, match="another process writes it"):
        repair(tmp_path / NAME)
    daemon.close()


def test_several_broken_files_are_set_aside_one_by_one(trail: Path) -> None:
    """Each with a record of its own."""
    rewrite(FIRST, garbled(4))(trail.parent)
    rewrite(NAME, garbled(4))(trail.parent)

    done = repair(trail)

    assert [one.path.name for one in done] == [f"{NAME}.broken-1", f"{NAME}.broken-2"]
    goes_on(trail, seq=done[-1].first_seq)


def test_a_trail_can_be_repaired_again(trail: Path) -> None:
    """The second broken file begins with the first repair."""
    rewrite(NAME, garbled(4))(trail.parent)
    repair(trail)
    goes_on(trail, seq=41)
    rewrite(NAME, garbled(2))(trail.parent)

    [done] = repair(trail)

    assert done.path.name == f"{NAME}.broken-2"
    goes_on(trail, seq=done.first_seq)


def test_what_was_open_stays_open(trail: Path) -> None:
    """Intents of the broken file are found by the next start, and the store's sequence as told before the break."""
    writer = signed_trail(KEY)
    writer.append(system("Stop", storeSequence=7), request(0, "CreateKey", Kind.INTENT, "m-open"))
    writer.append(Record(Kind.SYSTEM, "Stop", None, "", False, details={"storeSequence": 8}))
    lay(trail.parent, writer)
    rewrite(NAME, lambda lines: [*lines[:-1], b"broken\n", lines[-1]])(trail.parent)

    [done] = repair(trail)
    opened = Trail.open(trail, sync=SyncMode.OS, clock=lambda: NOW)

    assert done.open_intents == 1
    assert [intent.request_id for intent in opened.open_intents()] == ["m-open"]
    assert opened.store_sequence == 7
    opened.close()


def test_a_page_that_cannot_be_read_does_not_stop_it(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left around it is surveyed, and the fault is told."""
    pread, bad = os.pread, trail.stat().st_ino

    def unreadable(fd: int, count: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == bad and offset < 4096:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", unreadable)

    [done] = repair(trail, System(pread=unreadable))

    told = parse(trail.read_bytes().splitlines(keepends=True)[0]).additional_event_data or {}
    assert (done.first_seq, done.size) == (40, done.path.stat().st_size)
    assert told["fault"] == "audit.log cannot be read: Input/output error"


def test_evidence_that_was_changed_is_nothing_to_repair(trail: Path) -> None:
    """It is said, and nothing more is done."""
    rewrite(NAME, garbled(4))(trail.parent)
    repair(trail)
    rewrite(f"{NAME}.broken-1", without(2))(trail.parent)

    with pytest.raises(AuditBrokenError, match=r"broken-1.*nothing that a repair can mend"):
        repair(trail)


@pytest.fixture
def foreign(trail: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    for path in trail.parent.iterdir():
        os.chown(path, 12345, 23456)
    return trail


@pytest.mark.root
@pytest.mark.parametrize("name", ["a line removed", "no file", "a rotated file edited in the middle"])
def test_the_new_file_belongs_to_whom_the_old_one_did(foreign: Path, name: str) -> None:
    """Root repairs what the daemon's user then writes."""
    BREAKS[name][0](foreign.parent)

    [done] = repair(foreign)

    for path in (foreign, done.path):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (12345, 23456)
    assert stat.S_IMODE(foreign.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", "..", "a/b", "\x1b[2J", "x\0"])
def test_names_that_somebody_wrote_into_the_first_line_are_only_compared(trail: Path, name: str) -> None:
    """They lead to no file, stop neither a start's message nor a repair, and no terminal obeys them."""
    before = (trail.parent / SECOND).read_bytes().splitlines(keepends=True)[-1]
    last = parse(before)
    mark = system_record(MARK, {"openIntents": [], "storeSequence": 0, "previousFile": name, "brokenFile": name})
    [line], _ = link(Head(last.seq, digest_of(before)), [mark], last.event_time)
    trail.write_bytes(line)

    with pytest.raises(AuditBrokenError, match="which it continues, is missing") as refused:
        Trail.open(trail, sync=SyncMode.OS, clock=lambda: NOW)
    assert str(refused.value).isprintable()

    repair(trail)
    goes_on(trail, seq=last.seq)
