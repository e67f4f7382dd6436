"""Checkpoints in the trail: when they are written, and that they are found again."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.checkpoint import Checkpoint, check
from kmsd.audit.verify import read_lines, verify
from kmsd.audit.writer import CHECKPOINT_EVERY_RECORDS

if TYPE_CHECKING:
    from tests.audit.conftest import AuditKey, FaultySystem, MakeRecord, OpenTrail

ENOSPC = OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_signs_its_own_place(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, audit_key: AuditKey
) -> None:
    """Number, hash of the line before and time of the line are what is signed, and it is told to whoever anchors it."""
    told: list[Checkpoint] = []
    trail = open_trail()
    trail.append([make_record()] * 2)
    trail.signer, trail.on_checkpoint = audit_key, told.append

    checkpoint = trail.checkpoint()

    assert checkpoint is not None
    check(checkpoint, audit_key.public)
    line = json.loads(path.read_bytes().splitlines()[-1])
    assert (line["eventType"], line["eventName"]) == ("ServiceEvent", "SignAuditTrail")
    assert (line["seq"], line["prev"], line["eventTime"]) == (3, checkpoint.prev, checkpoint.event_time)
    assert line["additionalEventData"] == {"keyId": checkpoint.key_id, "signature": checkpoint.signature}
    assert told == [checkpoint]
    with path.open("rb") as stream:
        assert verify(read_lines(stream)).last_seq == 3


def test_there_is_none_without_a_key_or_anything_new(
    open_trail: OpenTrail, make_record: MakeRecord, audit_key: AuditKey
) -> None:
    """A sealed daemon cannot sign, and an idle one does not fill the trail with signatures."""
    trail = open_trail()
    trail.append([make_record()])
    assert trail.checkpoint() is None

    trail.signer = audit_key
    assert trail.checkpoint() is not None
    assert trail.checkpoint() is None
    trail.append([make_record()])
    assert trail.checkpoint() is not None

    trail.signer = None
    trail.append([make_record()])
    assert trail.checkpoint() is None


def test_there_is_one_every_so_many_records(
    open_trail: OpenTrail, make_record: MakeRecord, audit_key: AuditKey
) -> None:
    """Counted from the last one, whoever asked for it; none while there is no key."""
    told: list[Checkpoint] = []
    trail = open_trail(checkpoint_records=10)
    trail.on_checkpoint = told.append
    trail.append([make_record()] * 25)
    trail.signer = audit_key
    for _ in range(9):
        trail.append([make_record()])
    assert told == []

    trail.append([make_record()])
    assert [checkpoint.seq for checkpoint in told] == [36]
    trail.append([make_record()] * 5)
    trail.checkpoint()
    trail.append([make_record()] * 9)
    trail.append([make_record()] * 7)

    assert [checkpoint.seq for checkpoint in told] == [36, 42, 59]
    for checkpoint in told:
        check(checkpoint, audit_key.public)
    assert CHECKPOINT_EVERY_RECORDS == 10_000


def test_a_checkpoint_that_cannot_be_written_is_none(
    open_trail: OpenTrail, make_record: MakeRecord, path: Path, audit_key: AuditKey, system: FaultySystem
) -> None:
    """Whoever asks hears of it, it leaves no trace, and nobody anchors it."""
    told: list[Checkpoint] = []
    trail = open_trail(system=system)
    trail.append([make_record()])
    trail.signer, trail.on_checkpoint = audit_key, told.append
    before = path.read_bytes()

    system.faults["write"] = 100
    with pytest.raises(AuditUnavailableError, match=r"audit\.log: took only 100"):
        trail.checkpoint()
    assert (path.read_bytes(), told, trail.head[0]) == (before, [], 1)

    system.faults.clear()
    assert trail.checkpoint() == told[0]
    assert told[0].seq == 2


def test_a_batch_stands_when_the_checkpoint_behind_it_fails(
    open_trail: OpenTrail, make_record: MakeRecord, audit_key: AuditKey, system: FaultySystem
) -> None:
    """Its records were accepted; the checkpoint is written behind the next batch."""
    told: list[Checkpoint] = []
    trail = open_trail(system=system, checkpoint_records=2)
    trail.signer, trail.on_checkpoint = audit_key, told.append

    trail.append([make_record()])
    writes = system.counts["write"]

    def fill(call: str) -> None:
        if call == "write" and system.counts["write"] == writes + 2:
            raise ENOSPC

    system.at_call = fill
    trail.append([make_record()])
    assert (trail.head[0], told) == (2, [])

    trail.append([make_record()])
    assert (trail.head[0], [checkpoint.seq for checkpoint in told]) == (4, [4])


def test_a_checkpoint_is_found_in_the_trail_it_was_made_in(
    open_trail: OpenTrail, make_record: MakeRecord, audit_key: AuditKey, tmp_path: Path
) -> None:
    """And in no other one, nor in one that was cut off before it, nor with any member changed."""
    trail, other = open_trail(), open_trail(tmp_path / "other.log")
    for each in (trail, other):
        each.append([make_record()] * 3)
        each.signer = audit_key
    trail.append([make_record()])
    checkpoint = trail.checkpoint()
    assert checkpoint is not None
    trail.append([make_record()] * 3)

    assert trail.holds(checkpoint, audit_key)

    assert not other.holds(checkpoint, audit_key)
    changes = ({"seq": 3}, {"seq": 0}, {"prev": "0" * 64}, {"event_time": "2020"}, {"key_id": "0"}, {"signature": ""})
    for change in changes:
        assert not trail.holds(msgspec.structs.replace(checkpoint, **change), audit_key)
