"""Trails as kmsd writes them, made in memory by the pure functions of `kmsd.audit` alone."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsd.audit.anchors import Anchor, read_anchors
from kmsd.audit.chain import GENESIS, Head, digest_of, link, parse
from kmsd.audit.checkpoint import CHECKPOINT, Checkpoint, key_id_of, sign
from kmsd.audit.record import Actor, Kind, Record
from kmsd.audit.reduced import Reduced, head_line
from kmsd.audit.repair import Repair, begin_anew, survey
from kmsd.audit.trail_check import TrailReport, check_trail
from kmsd.audit.trail_files import TrailFile
from kmsd.audit.verify import MARK, read_lines

Files = dict[str, list[bytes]]

NAME = "audit.log"


class Key:
    """An audit key; each has a seed of its own, so that tests do the same each time."""

    def __init__(self, seed: int = 1) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = key_id_of(self.public)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def time_of(seq: int) -> str:
    """Record N is written N seconds after midnight."""
    return f"2026-09-21T{seq // 3600:02d}:{seq // 60 % 60:02d}:{seq % 60:02d}.125Z"


class Writer:
    """Writes a trail: files in `files`, checkpoints in `anchors`."""

    def __init__(self, key: Key, *, tag: str = "Encrypt") -> None:
        self.key = key
        self.tag = tag
        self.files: Files = {NAME: []}
        self.head: Head = GENESIS
        self.anchors: list[Checkpoint] = []

    def append(self, *records: Record) -> None:
        for record in records:
            lines, self.head = link(self.head, [record], time_of(self.head.seq + 1))
            self.files[NAME] += lines

    def requests(self, count: int) -> None:
        for _ in range(count):
            self.append(request(self.head.seq + 1, self.tag))

    def mutation(self, name: str = "CreateKey") -> None:
        self.append(request(0, name, Kind.INTENT, f"m-{self.head.seq}"))
        self.append(request(0, name, Kind.OUTCOME, f"m-{self.head.seq - 1}"))

    def checkpoint(self) -> Checkpoint:
        seq = self.head.seq + 1
        signed = sign(self.key, seq, self.head.digest, time_of(seq))
        self.append(system(CHECKPOINT, keyId=signed.key_id, signature=signed.signature))
        self.anchors.append(signed)
        return signed

    def rotate(self) -> str:
        lines = self.files[NAME]
        name = f"{NAME}.{parse(lines[0]).seq:012d}-{self.head.seq:012d}"
        self.files[name] = lines
        self.files[NAME] = []
        self.append(system(MARK, openIntents=[], storeSequence=0, previousFile=name))
        return name

    def reduce(self, name: str) -> str:
        """Leave of a rotated file what retention does."""
        lines = self.files.pop(name)
        kept = [line for line in lines if parse(line).event_type not in {Kind.REQUEST, Kind.BEGIN, Kind.END}]
        first, last = parse(lines[0]), parse(lines[-1])
        part = Reduced(first.seq, last.seq, first.prev, digest_of(lines[-1]), len(kept), len(lines) - len(kept))
        head = head_line(self.key, part, hashlib.sha256(b"".join(kept)).hexdigest())
        self.files[f"{name}.reduced"] = [head, *kept]
        return f"{name}.reduced"

    def repair(self, number: int = 1, *, at: str | None = None) -> str:
        """Begin a new chain, whatever the file has come to hold."""
        name = f"{NAME}.broken-{number}"
        lines = self.files[NAME]
        self.files[name] = lines
        found = survey(lines)
        last = found.last or self.head
        repair = Repair(name, NAME, found.size, found.sha256, last.seq, last.digest, "line 2: edited")
        self.files[NAME] = begin_anew(repair, found, at or time_of(last.seq + 1))
        self.head = Head(parse(self.files[NAME][-1]).seq, digest_of(self.files[NAME][-1]))
        return name


def request(number: int, name: str = "Encrypt", kind: Kind = Kind.REQUEST, request_id: str = "") -> Record:
    actor = Actor(uid=1000, gid=1000, user="alice", pid=4242, unit="web.service", exe="/usr/bin/web")
    parameters = {"keyId": "alias/app", "encryptionContext": {"purpose": f"p-{number}"}}
    key = "arn:aws:kms:local-host-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    return Record(kind, name, actor, request_id or f"r-{number}", True, (key,), parameters, decision="key policy")


def system(name: str, **details: Any) -> Record:
    return Record(Kind.SYSTEM, name, None, "", False, details=details)


def signed_trail(key: Key, *, tag: str = "Encrypt") -> Writer:
    """Three files: records 1 to 12, 13 to 24, and 25 to 39, with checkpoints 12, 23, 30 and 36."""
    trail = Writer(key, tag=tag)
    trail.append(system("Start", configuration="00"))
    trail.requests(8)
    trail.mutation()
    trail.checkpoint()
    trail.rotate()
    trail.requests(9)
    trail.checkpoint()
    trail.requests(1)
    trail.rotate()
    trail.requests(4)
    trail.checkpoint()
    trail.requests(5)
    trail.checkpoint()
    trail.requests(3)
    return trail


def check(
    files: Mapping[str, Sequence[bytes]],
    *,
    key: Key | None = None,
    anchors: Iterable[bytes] = (),
    is_part: bool = False,
    sparse_until: int = 0,
) -> TrailReport:
    """Check the files off-line, as they would lie on a disk."""
    whole = [TrailFile(name, partial(_read, lines), sparse_until) for name, lines in files.items()]
    noted: list[Anchor] = list(read_anchors("anchors", anchors, key.public)) if key else []
    return check_trail(whole, public_key=key.public if key else None, anchors=noted, is_part=is_part)


def _read(lines: Sequence[bytes]) -> Iterator[bytes]:
    return read_lines(io.BytesIO(b"".join(lines)))
