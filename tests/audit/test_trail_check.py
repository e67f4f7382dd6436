"""Checking a whole trail off-line: what raises no alarm, and what is reported (what does: test_trail_tampering.py)."""

import msgspec
import pytest

from kmsd.audit.chain import digest_of
from kmsd.audit.trail_files import TrailBrokenError
from tests.support.written_trail import NAME, Key, Writer, check, signed_trail

KEY = Key()
FIRST, SECOND = "audit.log.000000000001-000000000012", "audit.log.000000000013-000000000024"


@pytest.fixture
def trail() -> Writer:
    return signed_trail(KEY)


def noted(trail: Writer) -> list[bytes]:
    return [msgspec.json.encode(one) + b"\n" for one in trail.anchors]


def break_and_repair(trail: Writer) -> None:
    """Record 32 becomes garbage; the new chain begins with record 40."""
    trail.files[NAME][7] = b"garbage\n"
    trail.repair()


def as_the_daemon_gives_it(trail: Writer) -> list[bytes]:
    """The records of all files that it reads, one behind the other."""
    names = sorted(name for name in trail.files if name != NAME and "broken" not in name)
    lines = [line for name in [*names, NAME] for line in trail.files[name]]
    return [line for line in lines if line.startswith(b'{"seq":')]


def test_the_report_tells_what_was_verified(trail: Writer) -> None:
    """And where the trail ends, to compare with a head noted elsewhere."""
    report = check(trail.files, key=KEY, anchors=noted(trail))

    assert (report.files, report.lines, report.dropped, report.first_seq, report.last_seq) == (3, 39, 0, 1, 39)
    assert report.last_hash == digest_of(trail.files[NAME][-1])
    assert (report.checkpoints, report.unchecked, report.signed, report.unsigned) == (4, 0, trail.anchors[-1], 3)
    assert (report.anchors, report.open_intents, report.notes) == (4, (), ())


def test_an_empty_trail_is_whole() -> None:
    """With a key as well: nothing is there to be signed."""
    report = check({NAME: []}, key=KEY)

    assert (report.lines, report.last_seq, report.unsigned) == (0, 0, 0)


def test_files_that_hold_nothing_of_the_chain_are_passed_over(trail: Writer) -> None:
    """And named: they come with a glob."""
    others = [f"{NAME}.torn-7", f"{NAME}.torn-7-2", f"{NAME}.next", f"{FIRST}.reducing", f"{NAME}.broken-3"]
    trail.files.update({name: [b"anything"] for name in others})

    report = check(trail.files, key=KEY)

    assert report.files == 3
    assert [note.partition(":")[0] for note in report.notes] == others


def test_open_intents_are_told_across_files(trail: Writer) -> None:
    """An intent of one file may be settled in the next."""
    trail.mutation()
    settled = trail.files[NAME].pop()
    assert len(check(trail.files).open_intents) == 1

    trail.files[NAME].append(settled)
    assert check(trail.files).open_intents == ()


def test_retention_raises_no_alarm(trail: Writer) -> None:
    """The signed head line stands for what was dropped; anchors are found among what was kept."""
    trail.reduce(FIRST)
    trail.reduce(SECOND)

    report = check(trail.files, key=KEY, anchors=noted(trail))

    assert (report.lines, report.dropped, report.anchors, report.notes) == (4 + 2 + 15, 8 + 10, 4, ())
    assert all("no key is given to verify that" in note for note in check(trail.files).notes)


def test_a_file_that_is_there_whole_and_reduced_counts_whole(trail: Writer) -> None:
    """As a crash of the daemon leaves it."""
    whole = trail.files[FIRST]
    name = trail.reduce(FIRST)
    trail.files[FIRST] = whole

    report = check(trail.files, key=KEY)

    assert (report.lines, report.notes) == (39, (f"{name}: passed over: the whole file is there as well",))


def test_a_part_of_a_trail_is_taken_at_its_word(trail: Writer) -> None:
    """When that is asked for; what the anchors show of the rest is left open."""
    del trail.files[FIRST]

    report = check(trail.files, key=KEY, anchors=noted(trail), is_part=True)

    assert (report.first_seq, report.anchors) == (13, 3)
    assert "is for record 12, and the files begin with 13" in report.notes[0]


def test_a_repair_counts_once_it_was_accepted(trail: Writer) -> None:
    """That is when something behind it is signed."""
    break_and_repair(trail)
    trail.requests(1)
    with pytest.raises(TrailBrokenError, match=r"line 1, seq 40: forged: .* nobody accepted it so far"):
        check(trail.files, key=KEY)

    trail.checkpoint()
    report = check(trail.files, key=KEY)

    assert report.notes[0].startswith(f"set aside by a repair: {NAME}.broken-1, line 8, seq 32: edited: not a record")
    assert "a new chain begins with record 40 (2026-09-21T00:00:40.125Z) after a repair" in report.notes[1]


def test_without_the_key_a_repair_needs_its_broken_file(trail: Writer) -> None:
    """Nothing else speaks for it then."""
    break_and_repair(trail)
    trail.checkpoint()
    assert len(check(trail.files).notes) == 2

    del trail.files[f"{NAME}.broken-1"]
    with pytest.raises(TrailBrokenError, match=r"forged: .* audit\.log\.broken-1 is not among the files"):
        check(trail.files)
    assert "(not given)" in check(trail.files, key=KEY).notes[0]


def test_a_repair_does_not_excuse_what_was_before_it(trail: Writer) -> None:
    """An accepted one would let everybody remove all earlier files unseen, and their anchors with them."""
    break_and_repair(trail)
    trail.checkpoint()
    trail.files = {NAME: trail.files[NAME]}

    with pytest.raises(TrailBrokenError, match=r"line 1, seq 1: removed: records 1 to 39 are missing"):
        check(trail.files, key=KEY, anchors=noted(trail))
    assert check(trail.files, key=KEY, is_part=True).first_seq == 40


def test_anchors_of_a_broken_file_are_met_as_far_as_it_holds(trail: Writer) -> None:
    """Of those behind the fault it is said why they are not."""
    break_and_repair(trail)
    trail.checkpoint()

    report = check(trail.files, key=KEY, anchors=noted(trail))

    assert report.anchors == 4  # 12, 23, 30 and the new one
    assert any("it is for record 36; audit.log.broken-1 is broken before it" in note for note in report.notes)


def test_anchors_of_records_that_a_repair_did_not_find_are_excused_once_it_was_accepted(trail: Writer) -> None:
    """Their numbers are given again; that the end was missing is said."""
    late = noted(trail)[-1]  # of record 36, 00:00:36
    trail.files[NAME] = trail.files[NAME][:5]
    trail.repair(at="2026-09-21T01:00:00.000Z")
    trail.requests(20)
    trail.checkpoint()

    report = check(trail.files, key=KEY, anchors=[late])
    assert report.anchors == 0
    assert "what was behind record 29 was cut off before the repair of 2026-09-21T01:00:00.000Z" in report.notes[-1]


def test_anchors_behind_a_repair_are_not_excused(trail: Writer) -> None:
    """What was cut off after it is missed as ever."""
    late = noted(trail)[-1]  # of record 36, 00:00:36
    trail.files[NAME] = trail.files[NAME][:5]
    trail.repair(at="2026-09-21T00:00:20.000Z")
    trail.checkpoint()

    with pytest.raises(TrailBrokenError, match="seq 33: cut off: the trail ends at seq 32"):
        check(trail.files, key=KEY, anchors=[late])


def test_the_daemon_gives_its_files_as_one(trail: Writer) -> None:
    """Retention and repairs then leave jumps in the middle."""
    trail.reduce(FIRST)
    break_and_repair(trail)
    trail.checkpoint()
    lines = as_the_daemon_gives_it(trail)

    report = check({"trail": lines}, key=KEY, sparse_until=12)

    assert (report.first_seq, report.last_seq, report.dropped) == (1, 42, 8)
    with pytest.raises(TrailBrokenError, match="line 2, seq 2: removed"):
        check({"trail": lines}, key=KEY)


def test_only_what_retention_may_have_dropped_may_be_missing(trail: Writer) -> None:
    """One record more is too many; and that nothing vouches for those is said."""
    lines = as_the_daemon_gives_it(trail)

    report = check({"trail": lines[:2] + lines[3:4] + lines[12:]}, key=KEY, sparse_until=12)
    assert report.dropped == 9
    assert report.notes == (
        "trail: whether retention dropped what is missing, only its signed files show: verify those too",
    )
    with pytest.raises(TrailBrokenError, match="line 5, seq 5: removed: records 5 to 13 are missing"):
        check({"trail": lines[:4] + lines[13:]}, key=KEY, sparse_until=12)
