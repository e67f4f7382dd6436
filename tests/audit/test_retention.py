"""Reducing old files: what used keys goes, what administered them stays, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.anchors import Anchor
from kmsd.audit.checkpoint import Checkpoint
from kmsd.audit.files import RotatedFile, rotated_files
from kmsd.audit.record import Kind, Record
from kmsd.audit.retention import Retention, is_management
from kmsd.audit.rotation import Rotation
from kmsd.audit.trail_check import check_trail
from kmsd.audit.trail_files import TrailFile
from kmsd.audit.writer import SyncMode, Trail
from kmsd.processes import harden_process
from kmsd.processes.confinement import Confinement
from kmsd.processes.landlock import Reach
from kmsd.processes.profiles import daemon_calls
from tests.processes.test_sandbox import in_child

if TYPE_CHECKING:
    from tests.audit.conftest import AuditKey, FaultySystem, MakeRecord, OpenTrail

EIO = OSError(errno.EIO, "Input/output error")
AT_ONCE = Rotation(max_bytes=1, max_seconds=0)
ALL = Retention(keep_bytes=1)


def record(kind: Kind, name: str, request_id: str, *, read_only: bool = True) -> Record:
    return Record(kind, name, None, request_id, read_only=read_only)


MIXED = [
    record(Kind.REQUEST, "Encrypt", "drop-1"),
    record(Kind.INTENT, "CreateKey", "keep-1", read_only=False),
    record(Kind.OUTCOME, "CreateKey", "keep-1", read_only=False),
    record(Kind.REQUEST, "GenerateRandom", "drop-2"),
    record(Kind.BEGIN, "EncryptFile", "drop-3"),
    record(Kind.END, "EncryptFile", "drop-3"),
    record(Kind.REQUEST, "GetAuditRecords", "keep-2"),
    record(Kind.REQUEST, "DescribeKey", "keep-3"),
    record(Kind.REQUEST, "CreateAlias", "keep-4", read_only=False),
    record(Kind.SYSTEM, "Encrypt", "keep-5"),
    record(Kind.REQUEST, "OperationOfALaterVersion", "keep-6"),
]
KEPT = ["keep-1", "keep-1", "keep-2", "keep-3", "keep-4", "keep-5", "keep-6"]


async def begin(trail: Trail, key: AuditKey | None) -> RotatedFile:
    """Give a trail one rotated file and return it."""
    trail.append(MIXED)
    await trail.maintain()
    trail.signer = key
    return rotated_files_of(trail)[0]


def rotated_files_of(trail: Trail) -> list[RotatedFile]:
    return rotated_files(trail._path)


def read(file: RotatedFile) -> bytes:
    return file.path.read_bytes()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def requests_in(lines: list[str]) -> list[str]:
    return [found["requestID"] for found in map(json.loads, lines) if found["requestID"]]


async def test_a_reduced_file_has_what_administered_keys(
    open_trail: OpenTrail, audit_key: AuditKey, path: Path
) -> None:
    """Verbatim, behind a head line by which the audit key vouches for it; a record of the trail says what was done."""
    trail = open_trail(rotation=AT_ONCE, retention=ALL)
    whole = await begin(trail, audit_key)
    lines = read(whole).splitlines(keepends=True)
    head = hashlib.sha256(lines[-1]).hexdigest()

    assert await trail.maintain() is None

    [reduced] = rotated_files(path)
    assert names_in(path.parent)[:2] == ["audit.log", "audit.log.000000000001-000000000011.reduced"]
    assert (reduced.first, reduced.last, reduced.is_reduced) == (1, 11, True)
    first, *kept = read(reduced).splitlines(keepends=True)
    assert kept == [line for line in lines if b'"keep-' in line]
    said = json.loads(first)
    facts = {"firstSeq": 1, "lastSeq": 11, "prev": "0" * 64, "lastHash": head, "kept": 7, "dropped": 4}
    sha256 = hashlib.sha256(b"".join(kept)).hexdigest()
    assert said == {"reduced": facts, "sha256": sha256, "keyId": audit_key.key_id, "signature": said["signature"]}
    text = first[first.index(b":") + 1 : first.index(b"}") + 1]
    signed = b"kmsd-audit-reduced/1\n" + text + b"\n" + sha256.encode() + b"\n"
    Ed25519PublicKey.from_public_bytes(audit_key.public).verify(base64.b64decode(said["signature"]), signed)
    last = json.loads(trail.read_tail(limit=1, max_bytes=10_000)[0])
    assert (last["eventType"], last["eventName"]) == ("ServiceEvent", "ReduceAuditFile")
    assert last["additionalEventData"] == {"file": whole.path.name, "kept": 7, "dropped": 4, "sha256": sha256}


async def test_a_reduced_file_is_read_like_any_other(
    open_trail: OpenTrail, make_record: MakeRecord, audit_key: AuditKey
) -> None:
    """What was kept has its numbers, checkpoints are found in it, and a start accepts it."""
    trail = open_trail(rotation=AT_ONCE, retention=ALL)
    trail.signer = audit_key
    trail.append(MIXED)
    first = trail.checkpoint()
    assert first is not None
    await trail.maintain()
    assert rotated_files_of(trail)[0].is_reduced
    trail.append([make_record(request_id="new")])
    lines = trail.read(after_seq=0, limit=100, max_bytes=1 << 20)

    assert requests_in(lines) == [*KEPT, "new"]
    assert [json.loads(line)["seq"] for line in lines][:4] == [2, 3, 7, 8]
    assert trail.read(after_seq=7, limit=2, max_bytes=1 << 20) == lines[3:5]
    for count in range(1, len(lines) + 1):
        assert trail.read_tail(limit=count, max_bytes=1 << 20) == lines[-count:]
    assert trail.holds(first, audit_key)
    trail.close()
    trail = open_trail()
    assert trail.holds(first, audit_key)
    assert trail.fault_behind(first, audit_key) is None
    assert "is not signed" in str(trail.fault_behind(first, type(audit_key)()))
    assert trail.read(after_seq=0, limit=100, max_bytes=1 << 20) == lines


async def test_whatever_is_left_verifies_off_line(open_trail: OpenTrail, audit_key: AuditKey, path: Path) -> None:
    """Whole files and reduced ones, with the audit key's public part and every anchor that was told."""
    told: list[Checkpoint] = []
    trail = open_trail(rotation=AT_ONCE, retention=Retention(keep_bytes=20_000))
    trail.signer, trail.on_checkpoint = audit_key, told.append
    for _ in range(12):
        trail.append(MIXED)
        await trail.maintain()
    trail.checkpoint()
    forms = [file.is_reduced for file in rotated_files(path)]
    assert True in forms
    assert False in forms
    files = [TrailFile(str(file), functools.partial(lines_of, file)) for file in path.parent.iterdir()]

    anchors = [Anchor("journal", number, checkpoint) for number, checkpoint in enumerate(told)]
    report = check_trail(files, public_key=audit_key.public, anchors=anchors)

    assert (report.last_seq, report.last_hash) == trail.head
    assert (report.anchors, report.unsigned, report.notes) == (len(told), 0, ())
    assert report.dropped == 4 * forms.count(True)


def lines_of(path: Path) -> Iterator[bytes]:
    return iter(path.read_bytes().splitlines(keepends=True))


async def test_nothing_is_reduced_without_the_audit_key(open_trail: OpenTrail, path: Path) -> None:
    """Nobody could vouch for it."""
    trail = open_trail(rotation=AT_ONCE, retention=ALL)
    whole = await begin(trail, None)

    await trail.maintain()

    assert rotated_files(path) == [whole]


async def test_everything_is_kept_by_default(open_trail: OpenTrail, audit_key: AuditKey, path: Path) -> None:
    """Dropping records is a decision."""
    now = 0.0
    trail = open_trail(rotation=AT_ONCE, clock=lambda: now)
    whole = await begin(trail, audit_key)
    now = 1e9

    await trail.maintain()

    assert whole in rotated_files(path)
    assert not any(file.is_reduced for file in rotated_files(path))


async def test_the_oldest_files_are_reduced_by_age(open_trail: OpenTrail, audit_key: AuditKey, path: Path) -> None:
    """Of their last record, one file a call."""
    now = 0.0
    trail = open_trail(rotation=AT_ONCE, retention=Retention(keep_seconds=100), clock=lambda: now)
    for _ in range(3):
        trail.append(MIXED)
        await trail.maintain()
        now += 60
    trail.signer = audit_key
    assert [file.is_reduced for file in rotated_files(path)] == [False, False, False]

    await trail.maintain()
    assert [file.is_reduced for file in rotated_files(path)][:3] == [True, False, False]
    now += 30
    await trail.maintain()
    await trail.maintain()
    assert [file.is_reduced for file in rotated_files(path)][:3] == [True, True, False]


async def test_the_oldest_files_are_reduced_by_size(open_trail: OpenTrail, audit_key: AuditKey, path: Path) -> None:
    """Until all files together are small enough."""
    trail = open_trail(rotation=Rotation(max_bytes=5000), retention=Retention(keep_bytes=18_000))
    for _ in range(3):
        trail.append([*MIXED, *[MIXED[0]] * 25])
        await trail.maintain()
    trail.signer = audit_key
    assert total_bytes(path) > 20_000

    for _ in range(5):
        await trail.maintain()

    assert total_bytes(path) <= 18_000
    assert [file.is_reduced for file in rotated_files(path)] == [True, True, False]


def total_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir())


async def test_whoever_opens_the_trail_says_what_is_kept(
    open_trail: OpenTrail, audit_key: AuditKey, path: Path
) -> None:
    """The predicate is asked with each line."""
    trail = open_trail(rotation=AT_ONCE, retention=Retention(keep_bytes=1, is_management=lambda line: b"drop" in line))
    await begin(trail, audit_key)
    await trail.maintain()

    kept = trail.read(after_seq=0, limit=11, max_bytes=1 << 20)
    assert requests_in(kept)[:4] == ["drop-1", "drop-2", "drop-3", "drop-3"]
    assert is_management(b"no record\n")


def test_a_credential_that_was_handed_out_is_a_use_of_a_key() -> None:
    """There is one for each start of a unit; who kept it stays for ever."""
    assert not is_management(b'{"eventType":"ApiCall","eventName":"GetCredential","readOnly":true}\n')
    assert is_management(b'{"eventType":"ApiCallOutcome","eventName":"CreateCredential","readOnly":false}\n')


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda data: data.replace(b'"drop-1"', b'"drop-9"'), "edited"),
        (lambda data: data[data.index(b"\n") + 1 :], "has the records 2 to 11"),
        (lambda data: data[: data.rindex(b"\n", 0, -1) + 1], "has the records 1 to 10"),
        (lambda data: data.replace(b'"keep-6"', b'"keep-7"'), "one of the two was changed"),
        (lambda _data: b"", "line 1"),
        (lambda _data: b"mine\nmine\n", "line 1"),
    ],
    ids=["edited", "beheaded", "cut", "last edited", "emptied", "foreign"],
)
async def test_a_changed_file_is_left_as_it_is(
    open_trail: OpenTrail, audit_key: AuditKey, path: Path, spoil: Callable[[bytes], bytes], fault: str
) -> None:
    """It is evidence. Whoever maintains the trail is told, and so is the trail, once; the next file is reduced."""
    trail = open_trail(rotation=AT_ONCE, retention=ALL)
    whole = await begin(trail, None)
    trail.append(MIXED)
    await trail.maintain()
    whole.path.write_bytes(spoil(read(whole)))
    spoiled = read(whole)
    trail.signer = audit_key

    told = [await trail.maintain() for _ in range(3)]

    assert [fault in (said or "") for said in told] == [True, False, False]
    assert f"{whole.path}" in (told[0] or "")
    assert read(whole) == spoiled
    assert [file.is_reduced for file in rotated_files(path)][:2] == [False, True]
    names = [json.loads(line) for line in trail.read(after_seq=whole.last, limit=100, max_bytes=1 << 20)]
    [broken] = [found for found in names if found["eventName"] == "AuditFileBroken"]
    assert broken["additionalEventData"] == {"file": whole.path.name, "fault": told[0]}


async def test_a_key_that_is_gone_meanwhile_signs_nothing(
    open_trail: OpenTrail, audit_key: AuditKey, path: Path
) -> None:
    """Sealing does not wait for this."""

    def seal(_line: bytes) -> bool:
        trail.signer = None
        return True

    trail = open_trail(rotation=AT_ONCE, retention=Retention(keep_bytes=1, is_management=seal))
    whole = await begin(trail, audit_key)

    await trail.maintain()

    assert whole in rotated_files(path)


async def test_a_trail_that_is_closed_meanwhile_keeps_the_whole_file(
    open_trail: OpenTrail, audit_key: AuditKey, path: Path
) -> None:
    """Stopping does not wait for this; the next run does it."""
    trail = open_trail(rotation=AT_ONCE, retention=ALL)
    whole = await begin(trail, audit_key)
    reducing = asyncio.create_task(trail.maintain())
    await asyncio.sleep(0)  # until its thread is at work
    trail.close()

    with pytest.raises(AuditUnavailableError):
        await reducing

    assert whole in rotated_files(path)


def test_the_daemons_confinement_lets_it_rotate_and_reduce(tmp_path: Path, audit_key: AuditKey) -> None:
    """No call, and no path, beyond what its profile and the folder of the trail allow."""
    path = tmp_path / "audit.log"

    async def work() -> None:
        trail = Trail.open(path, sync=SyncMode.INTERVAL, clock=lambda: 0.0, rotation=AT_ONCE, retention=ALL)
        await begin(trail, audit_key)
        await trail.maintain()
        trail.close()

    def confined() -> bool:
        reach = Reach(readable=(Path(sys.base_prefix),), writable=(tmp_path,))
        harden_process()
        Confinement("daemon", daemon_calls, reach=lambda: reach, required=True).enter()
        asyncio.run(work())
        return True

    assert in_child(confined)
    assert rotated_files(path)[0].is_reduced


async def fill_and_reduce(
    path: Path, system: FaultySystem, key: AuditKey, at_call: Callable[[str], None] | None
) -> Trail:
    """Make a trail with one rotated file and reduce that, with `at_call` being told the calls."""
    settings: dict[str, Any] = {"rotation": Rotation(max_bytes=2000), "retention": ALL}
    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0, system=system.calls, **settings)
    await begin(trail, key)
    system.at_call = at_call
    with contextlib.suppress(AuditUnavailableError):
        await trail.maintain()
    system.at_call = None
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


def fail() -> None:
    raise EIO


async def test_whatever_call_fails_the_next_attempt_succeeds(
    tmp_path: Path, make_system: type[FaultySystem], audit_key: AuditKey
) -> None:
    """Until then the whole file is there, or the reduced one."""
    for number in itertools.count(1):
        folder = fresh(tmp_path, number)
        countdown = Countdown(number, fail)
        trail = await fill_and_reduce(folder / "audit.log", make_system(), audit_key, countdown)
        expected = KEPT if rotated_files_of(trail)[0].is_reduced else [found.request_id for found in MIXED]
        assert requests_in(trail.read(after_seq=0, limit=100, max_bytes=1 << 20)) == expected

        await maintain_until_all_is_well(trail)

        trail.close()
        assert names_in(folder) == ["audit.log", "audit.log.000000000001-000000000011.reduced"]
        if countdown.left > 0:
            break
    assert number > 15


def fresh(tmp_path: Path, number: int) -> Path:
    folder = tmp_path / f"{number}"
    folder.mkdir()
    return folder


async def maintain_until_all_is_well(trail: Trail) -> None:
    for _ in range(100):
        try:
            await trail.maintain()
        except AuditUnavailableError:
            await asyncio.sleep(0.01)  # a failed sync is tried again by itself
        else:
            return
    raise AssertionError("the file was never reduced")


def test_a_kill_at_any_call_loses_nothing(tmp_path: Path, make_system: type[FaultySystem], audit_key: AuditKey) -> None:
    """The whole file or the reduced one is there, and the next run goes on."""
    for number in itertools.count(1):
        path = fresh(tmp_path, number) / "audit.log"
        child = os.fork()
        if child == 0:
            asyncio.run(fill_and_reduce(path, make_system(), audit_key, Countdown(number, lambda: os._exit(9))))
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert killed in {0, 9}

        trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0, retention=ALL)
        trail.signer = audit_key
        lines = trail.read(after_seq=0, limit=100, max_bytes=1 << 20)
        assert requests_in(lines) in (KEPT, [found.request_id for found in MIXED])
        asyncio.run(trail.maintain())
        trail.close()

        assert names_in(path.parent) == ["audit.log", "audit.log.000000000001-000000000011.reduced"]
        if not killed:
            break
    assert number > 15
