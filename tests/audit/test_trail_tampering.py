"""Ways to change a trail or its anchors, each of which is found and named."""

import base64
import copy
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pytest

from kmsd.audit.anchors import AnchorForgedError
from kmsd.audit.chain import GENESIS, Head, digest_of, parse
from kmsd.audit.checkpoint import CHECKPOINT, sign
from kmsd.audit.record import Record, encode
from kmsd.audit.reduced import HeadLine, Reduced, head_line
from kmsd.audit.repair import Repair, begin_anew, survey
from kmsd.audit.trail_files import TrailBrokenError
from tests.support.written_trail import NAME, Files, Key, check, request, signed_trail, system, time_of

KEY, OTHER = Key(1), Key(2)
TRAIL = signed_trail(KEY)
FIRST, SECOND = "audit.log.000000000001-000000000012", "audit.log.000000000013-000000000024"
REDUCED = f"{FIRST}.reduced"


class Case(NamedTuple):
    """Something to change: the files and the anchors, one JSON object a line."""

    files: Files
    anchors: list[bytes]


def fresh() -> Case:
    return Case(copy.deepcopy(TRAIL.files), [msgspec.json.encode(one) + b"\n" for one in TRAIL.anchors])


Change = Callable[[Case], None]


def edits(file: str, line: int, old: str, new: str) -> Change:
    def change(case: Case) -> None:
        text = case.files[file][line - 1]
        assert old.encode() in text
        case.files[file][line - 1] = text.replace(old.encode(), new.encode(), 1)

    return change


def flips(file: str, line: int, part: float) -> Change:
    """One bit of the byte that stands at this part of the line."""

    def change(case: Case) -> None:
        text = bytearray(case.files[file][line - 1])
        text[int(part * (len(text) - 1))] ^= 1
        case.files[file][line - 1] = bytes(text)

    return change


def removes(file: str, *lines: int) -> Change:
    def change(case: Case) -> None:
        case.files[file] = [text for number, text in enumerate(case.files[file], 1) if number not in lines]

    return change


def moves(file: str, source: int, target: int) -> Change:
    def change(case: Case) -> None:
        case.files[file].insert(target - 1, case.files[file].pop(source - 1))

    return change


def cuts(count: int, characters: int = 0) -> Change:
    """The end of the newest file: so many lines, and so many characters of the line before."""

    def change(case: Case) -> None:
        lines = case.files[NAME][: len(case.files[NAME]) - count]
        if characters:
            lines[-1] = lines[-1][:-characters]
        case.files[NAME] = lines

    return change


def drops(file: str) -> Change:
    def change(case: Case) -> None:
        del case.files[file]

    return change


def inserts(line: int, record: Record, *, linked: bool) -> Change:
    def change(case: Case) -> None:
        before = case.files[NAME][line - 2]
        head = Head(parse(before).seq, digest_of(before) if linked else "a" * 64)
        case.files[NAME].insert(line - 1, encode(record, head.seq + 1, head.digest, time_of(head.seq + 1)))

    return change


def copies(source: int, target: int) -> Change:
    return lambda case: case.files[NAME].insert(target - 1, case.files[NAME][source - 1])


def splices(key: Key, file: str, first: int, last: int) -> Change:
    """Lines of another trail, in the place of those with the same numbers."""

    def change(case: Case) -> None:
        case.files[file][first - 1 : last] = signed_trail(key, tag="Decrypt").files[file][first - 1 : last]

    return change


def swaps(one: str, other: str) -> Change:
    def change(case: Case) -> None:
        case.files[one], case.files[other] = case.files[other], case.files[one]

    return change


def rewrites(line: int, *, keep_checkpoints: bool = True, signer: Key | None = None) -> Change:
    """Everything from a line of the newest file on, with right hashes; only the audit key is out of reach."""

    def change(case: Case) -> None:
        lines = case.files[NAME]
        kept, rest = lines[: line - 1], lines[line - 1 :]
        head = Head(parse(kept[-1]).seq, digest_of(kept[-1]))
        for text in rest:
            seq = head.seq + 1
            record = request(seq, "ListKeys")
            if parse(text).event_name == CHECKPOINT and keep_checkpoints:
                old = parse(text).additional_event_data
                new = sign(signer, seq, head.digest, time_of(seq)) if signer else None
                record = system(CHECKPOINT, **({"keyId": KEY.key_id, "signature": new.signature} if new else old or {}))
            written = encode(record, seq, head.digest, time_of(seq))
            head = Head(seq, digest_of(written))
            kept.append(written)
        case.files[NAME] = kept

    return change


def strips_checkpoints(case: Case) -> None:
    """From every file, with right hashes again."""
    head = GENESIS
    for name in (FIRST, SECOND, NAME):
        lines = []
        for text in case.files[name]:
            if parse(text).event_name != CHECKPOINT:
                line = encode(request(head.seq + 1, "ListKeys"), head.seq + 1, head.digest, time_of(head.seq + 1))
                head = Head(head.seq + 1, digest_of(line))
                lines.append(line)
        first, last = parse(lines[0]).seq, parse(lines[-1]).seq
        del case.files[name]
        case.files[name if name == NAME else f"{NAME}.{first:012d}-{last:012d}"] = lines


def older_copy(case: Case) -> None:
    """The newest rotated file as it was before its last record."""
    case.files[SECOND] = case.files[SECOND][:-1]


def older_copy_renamed(case: Case) -> None:
    """The same under the name that fits it."""
    lines = case.files.pop(SECOND)[:-1]
    case.files["audit.log.000000000013-000000000023"] = lines


def renames(old: str, new: str) -> Change:
    def change(case: Case) -> None:
        case.files[new] = case.files.pop(old)

    return change


def anchor(place: int, **members: object) -> Change:
    def change(case: Case) -> None:
        noted = msgspec.structs.replace(TRAIL.anchors[place], **members)
        case.anchors[place] = msgspec.json.encode(noted) + b"\n"

    return change


def foreign_anchor(key: Key) -> Change:
    """One of another trail."""
    return lambda case: case.anchors.append(msgspec.json.encode(signed_trail(key, tag="Decrypt").anchors[2]) + b"\n")


def mangles_anchor(case: Case) -> None:
    case.anchors[1] = case.anchors[1].replace(b'"seq":23', b'"seq":"x"')


def reduced(then: Change) -> Change:
    """The first file reduced by retention, and then changed."""

    def change(case: Case) -> None:
        trail = signed_trail(KEY)
        trail.reduce(FIRST)
        case.files.clear()
        case.files.update(trail.files)
        then(case)

    return change


def head_says(key: Key | None = None, **members: object) -> Change:
    """The head line of the reduced file changed, and perhaps signed by another key."""

    def change(case: Case) -> None:
        told = msgspec.json.decode(case.files[REDUCED][0], type=HeadLine)
        part = msgspec.structs.replace(msgspec.json.decode(told.reduced, type=Reduced), **members)
        if key:
            case.files[REDUCED][0] = head_line(key, part, told.sha256)
        else:
            changed = msgspec.structs.replace(told, reduced=msgspec.Raw(msgspec.json.encode(part)))
            case.files[REDUCED][0] = msgspec.json.encode(changed) + b"\n"

    return change


def hides_by_repair(*, keep: bool, signer: Key | None = None) -> Change:
    """The end cut off, and a repair forged that claims that it was broken."""

    def change(case: Case) -> None:
        lines = case.files.pop(NAME)[:3]
        found = survey(lines)
        assert found.last is not None
        repair = Repair(f"{NAME}.broken-1", NAME, found.size, found.sha256, *found.last, "a power cut")
        anew = begin_anew(repair, found, time_of(100))
        if signer is not None:
            last = Head(parse(anew[-1]).seq, digest_of(anew[-1]))
            new = sign(signer, last.seq + 1, last.digest, time_of(101))
            record = system(CHECKPOINT, keyId=KEY.key_id, signature=new.signature)
            anew.append(encode(record, new.seq, new.prev, new.event_time))
        case.files[NAME] = anew
        if keep:
            case.files[f"{NAME}.broken-1"] = lines

    return change


def repaired(then: Change) -> Change:
    """Broken, repaired and accepted, and then changed."""

    def change(case: Case) -> None:
        trail = signed_trail(KEY)
        trail.files[NAME][7] = b"garbage\n"
        trail.repair()
        trail.requests(2)
        trail.checkpoint()
        case.files.clear()
        case.files.update(trail.files)
        then(case)

    return change


def repairs_in_the_middle(case: Case) -> None:
    """A forged repair as line 4 of the newest file, and nothing of what was behind it."""
    kept = case.files[NAME][:3]
    found = survey(kept)
    assert found.last is not None
    repair = Repair(f"{NAME}.broken-1", NAME, found.size, found.sha256, *found.last, "a power cut")
    case.files[NAME] = [*kept, *begin_anew(repair, found, time_of(100))]


MOVED = base64.b64encode(KEY.sign(b"else")).decode()

CASES: dict[str, tuple[Change, str]] = {
    # Members of a record. Line 4 of the newest file is record 28.
    "seq": (edits(NAME, 4, '"seq":28', '"seq":29'), "audit.log, line 4, seq 28: edited: its seq says 29"),
    "prev": (edits(NAME, 4, '"prev":"', '"prev":"0'), "audit.log, line 4, seq 28: edited"),
    "event time": (edits(NAME, 4, "T00:00:28", "T00:00:27"), "audit.log, line 4, seq 28: edited"),
    "event type": (edits(NAME, 4, '"ApiCall"', '"FileEnd"'), "audit.log, line 4, seq 28: edited"),
    "event name": (edits(NAME, 4, "Encrypt", "Decrypt"), "audit.log, line 4, seq 28: edited"),
    "user": (edits(NAME, 4, '"uid":1000', '"uid":1001'), "audit.log, line 4, seq 28: edited"),
    "encryption context": (edits(NAME, 4, "p-28", "p-29"), "audit.log, line 4, seq 28: edited"),
    "outcome": (edits(NAME, 4, ',"additional', ',"errorCode":"X","additional'), "audit.log, line 4, seq 28: edited"),
    "member of a rotated file": (edits(FIRST, 5, "p-5", "p-6"), f"{FIRST}, line 5, seq 5: edited"),
    "last line of a rotated file": (
        edits(SECOND, 12, "p-24", "p-42"),
        "audit.log, line 1, seq 25: edited: its prev is not the hash of record 24, the last of " + SECOND,
    ),
    # One bit in each region of a line.
    **{
        f"bit at {part:.0%} of a line": (flips(NAME, 4, part), "audit.log, line 4, seq (27|28): (edited|inserted)")
        for part in (0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.99)
    },
    "line feed": (flips(NAME, 4, 1), "audit.log, line 4, seq 28: edited"),
    # Lines that are gone.
    "first line of all": (removes(FIRST, 1), f"{FIRST}, line 1, seq 1: removed: its name tells of records 1 to 12"),
    "first line of the newest": (
        removes(NAME, 1),
        f"line 1, seq 25: removed: record 25 is missing between {SECOND} and",
    ),
    "middle line": (removes(NAME, 4), "audit.log, line 4, seq 28: removed: record 28 is missing"),
    "middle lines": (removes(NAME, 4, 5), "audit.log, line 4, seq 28: removed: records 28 to 29 are missing"),
    "last line of a rotated one": (removes(SECOND, 12), f"{SECOND}, line 12, seq 24: cut off: its name tells of"),
    "a line of nobody's file": (removes(FIRST, 2), f"{FIRST}, line 2, seq 2: removed: record 2 is missing"),
    # The end.
    "tail behind the last checkpoint's anchor": (
        cuts(4),
        "audit.log, line 12, seq 36: cut off: .* ends at seq 35, but",
    ),
    "tail in the middle of a line": (cuts(1, 10), "audit.log, line 14, seq 38: torn"),
    "tail at a checkpoint": (
        cuts(9),
        "audit.log, line 7, seq 31: cut off: the trail ends at seq 30, but the anchor of",
    ),
    "all of the newest file": (drops(NAME), f"{SECOND}, line 13, seq 25: cut off: the trail ends at seq 24"),
    "newest file emptied": (cuts(15), f"{SECOND}, line 13, seq 25: cut off: the trail ends at seq 24"),
    # Lines too many, or elsewhere.
    "insertion": (inserts(4, request(0, "GetKey"), linked=False), "audit.log, line 4, seq 28: inserted"),
    "linked insertion": (inserts(4, request(0, "GetKey"), linked=True), "audit.log, line 5, seq 28: inserted"),
    "duplicate": (copies(4, 5), "audit.log, line 5, seq 28: inserted"),
    "neighbours swapped": (moves(NAME, 4, 5), "audit.log, line 4, seq 29: reordered: record 28 comes later"),
    "line moved far": (moves(NAME, 3, 12), "audit.log, line 3, seq 28: reordered: record 27 comes later"),
    "splice of another key": (splices(OTHER, NAME, 4, 5), "audit.log, line (3|4), seq (27|28): edited"),
    "splice of the same key": (splices(KEY, NAME, 4, 8), "audit.log, line (3|4), seq (27|28): edited"),
    "spliced end": (splices(KEY, NAME, 4, 15), "audit.log, line (3|4), seq (27|28): edited"),
    # Whole files.
    "contents of two files swapped": (swaps(FIRST, SECOND), f"{SECOND}, line 1, seq 13: edited: its name tells of"),
    "first file removed": (
        drops(FIRST),
        f"{SECOND}, line 1, seq 1: removed: records 1 to 12 are missing: what was before",
    ),
    "middle file removed": (
        drops(SECOND),
        f"seq 13: removed: records 13 to 24 are missing between {FIRST} and audit.log",
    ),
    "older copy": (older_copy, f"{SECOND}, line 12, seq 24: cut off: its name tells of records to 24"),
    "older copy renamed": (older_copy_renamed, "audit.log, line 1, seq 24: removed: record 24 is missing between"),
    "file of another trail": (
        splices(KEY, SECOND, 1, 12),
        f"{SECOND}, line 1, seq 13: edited: its prev is not the hash",
    ),
    "file twice": (lambda case: case.files.update(copy=case.files[NAME]), "seq 25: inserted: it begins with record 25"),
    # Checkpoints.
    "checkpoint of another key": (
        edits(NAME, 6, KEY.key_id, OTHER.key_id),
        f"audit.log, line 6, seq 30: forged: the checkpoint: it is signed by the key {OTHER.key_id}",
    ),
    "signature of a checkpoint": (
        edits(NAME, 6, TRAIL.anchors[2].signature, MOVED),
        "audit.log, line 6, seq 30: (forged|edited)",
    ),
    "checkpoint moved": (moves(NAME, 6, 8), "audit.log, line 6, seq 31: reordered: record 30 comes later"),
    "checkpoint removed": (removes(NAME, 6), "audit.log, line 6, seq 30: removed"),
    "written anew from a line on": (rewrites(4), "audit.log, line 6, seq 30: forged: the checkpoint: its signature is"),
    "written anew and signed by another": (rewrites(4, signer=OTHER), "audit.log, line 6, seq 30: forged"),
    "written anew without checkpoints": (
        rewrites(4, keep_checkpoints=False),
        "audit.log, line 6, seq 30: edited: the anchor of .* shows a checkpoint as record 30, and the trail has no",
    ),
    "all checkpoints stripped": (strips_checkpoints, "forged: no record is signed by this key"),
    # Anchors.
    "anchor's number": (anchor(2, seq=31), "anchors, line 3: forged: the anchor of .* for record 31: its signature"),
    "anchor's time": (anchor(2, event_time=time_of(31)), "anchors, line 3: forged"),
    "anchor's hash": (anchor(2, prev="0" * 64), "anchors, line 3: forged"),
    "anchor of another key": (foreign_anchor(OTHER), "anchors, line 5: forged: .* signed by the key " + OTHER.key_id),
    "anchor of another trail": (foreign_anchor(KEY), "audit.log, line 6, seq 30: edited: .* the trail has another"),
    "anchor mangled": (mangles_anchor, "anchors, line 2: forged: it is not an anchor as kmsd writes them"),
    # What retention left. Of the first file: Start, the mutation and the checkpoint.
    "line of a reduced file": (
        reduced(edits(REDUCED, 3, "CreateKey", "DeleteKey")),
        f"{REDUCED}, line (3|4), seq (10|11): edited",
    ),
    "line less in a reduced file": (
        reduced(removes(REDUCED, 3)),
        f"{REDUCED}, line 4, seq 12: removed: 3 records are left",
    ),
    "line more in a reduced file": (
        reduced(lambda case: case.files[REDUCED].append(case.files[NAME][1])),
        f"{REDUCED}, line 6, seq 26: reordered: only records 13 to 12 can follow",
    ),
    "lines of a reduced file swapped": (reduced(moves(REDUCED, 3, 4)), f"{REDUCED}, line 4, seq 10: reordered"),
    "head of a reduced file": (reduced(head_says(dropped=9)), f"{REDUCED}, line 1, seq 1: forged: what retention left"),
    "reduced by somebody else": (reduced(head_says(OTHER)), f"{REDUCED}, line 1, seq 1: forged: .* is not signed"),
    "head line mangled": (reduced(edits(REDUCED, 1, '"kept"', '"keep"')), f"{REDUCED}, line 1, seq 0: edited"),
    "reduced file removed": (reduced(drops(REDUCED)), f"{SECOND}, line 1, seq 1: removed: records 1 to 12 are missing"),
    # Repairs that nobody made.
    "repair forged": (hides_by_repair(keep=False), "audit.log, line 1, seq 28: forged: .* nothing behind it is signed"),
    "repair forged beside its file": (hides_by_repair(keep=True), "audit.log, line 1, seq 28: forged: a repair began"),
    "repair signed by another": (
        hides_by_repair(keep=True, signer=OTHER),
        "audit.log, line 3, seq 30: forged: the checkpoint: its signature",
    ),
    "repair forged in the middle": (repairs_in_the_middle, "audit.log, line 4, seq 28: forged: a repair began"),
    "file that a repair set aside": (
        repaired(edits(f"{NAME}.broken-1", 4, "p-28", "p-29")),
        "audit.log.broken-1, line 1, seq 25: edited: it is not the file that the repair behind record 39 set aside",
    ),
    "number of a repair": (
        repaired(edits(NAME, 1, '"lastSeq":39', '"lastSeq":38')),
        "audit.log, line 1, seq 40: edited",
    ),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES.keys())
def test_a_changed_trail_is_found_and_named(change: Change, words: str) -> None:
    """With the public key and the anchors, the file, the line and the record concerned are named."""
    case = fresh()
    change(case)

    with pytest.raises((TrailBrokenError, AnchorForgedError), match=words):
        check(case.files, key=KEY, anchors=case.anchors)


def test_an_untouched_trail_raises_no_alarm() -> None:
    """Whatever the order of its files; also after retention, and after a repair that was accepted."""
    case = fresh()
    backwards = dict(reversed(case.files.items()))
    report = check(backwards, key=KEY, anchors=case.anchors)

    assert (report.files, report.lines, report.first_seq, report.last_seq) == (3, 39, 1, 39)
    assert (report.checkpoints, report.anchors, report.unsigned, report.notes) == (4, 4, 3, ())

    for change in (reduced(lambda _: None), repaired(lambda _: None)):
        case = fresh()
        change(case)
        check(case.files, key=KEY, anchors=case.anchors)


def test_every_byte_of_a_signed_trail_counts() -> None:
    """One bit of each eleventh byte of the files, each by itself."""
    whole = fresh()
    for name, lines in whole.files.items():
        text = b"".join(lines)
        signed = text.rindex(b'{"seq":37') if name == NAME else len(text)
        for place in range(0, signed, 11):
            changed = bytearray(text)
            changed[place] ^= 4
            files = {**whole.files, name: bytes(changed).splitlines(keepends=True)}
            with pytest.raises(TrailBrokenError):
                check(files, key=KEY, anchors=whole.anchors)
