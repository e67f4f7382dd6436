"""Uses of keys as the audit trail tells them, so that a kill does not make a key look unused.

What counts is a record of a use that was done: a request that was answered, a mutation whose outcome is known, and a
file at its end, however it ended, if a worker had its key. A file that was counted when it began, and ends behind the
last flush, is counted twice after a kill: too many uses keep a key, too few destroy it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kmsd.api import OPERATIONS
from kmsd.api.credentials import CREATE_CREDENTIAL, GET_CREDENTIAL
from kmsd.api.operation import Cost
from kmsd.api.symmetric import REENCRYPT
from kmsd.audit.chain import GENESIS, parse_time
from kmsd.audit.record import Kind, Resource
from kmsd.service.key_use import Counted

# What the records of uses of keys are named.
USES = frozenset(
    {
        *(one.name for one in OPERATIONS if one.usage is not None and one.cost in {Cost.CRYPTOGRAPHY, Cost.FILE}),
        CREATE_CREDENTIAL.name,
        GET_CREDENTIAL.name,
    }
)
_DONE = frozenset({Kind.REQUEST, Kind.OUTCOME, Kind.END})


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    """What tells of a file that failed whether a worker had its key: the worker's report, or that it was killed."""

    plaintext_bytes: int | None = None
    settled_at_start: bool = False


class _Line(msgspec.Struct, frozen=True, rename="camel"):
    """The members of a line that tell of a use."""

    seq: int
    prev: str
    event_time: str
    event_type: str
    event_name: str
    request_id: str = msgspec.field(name="requestID")
    resources: tuple[Resource, ...] = ()
    error_code: str | None = None
    additional_event_data: _Details | None = None


_DECODER = msgspec.json.Decoder(_Line)


def continues(lines: Sequence[str], digest: str) -> bool:
    """Return whether the first of these lines continues the one with this hash."""
    try:
        return bool(lines) and _DECODER.decode(lines[0]).prev == digest
    except msgspec.DecodeError:
        return False


class Page:
    """Uses by key id, in lines of the trail that stand behind record `after` and not behind record `until`.

    `last` is the last record that need not be looked at again. `gap`: not every record that there was is among them,
    because some are not there, were no records, or were left behind where an administrator began a new chain.
    """

    def __init__(self, lines: Sequence[str], after: int, until: int) -> None:
        self.uses: dict[str, Counted] = {}
        self.last = after
        self.gap = False
        for text in lines:
            try:
                line = _DECODER.decode(text)
                seconds = parse_time(line.event_time)
            except (msgspec.DecodeError, ValueError):
                self.gap, self.last = True, until
                return
            if line.seq != self.last + 1 or (line.prev == GENESIS.digest and line.seq > 1):
                self.gap = True
            self.last = min(line.seq, until)
            if line.seq > until:
                return
            if line.event_name in USES and line.event_type in _DONE and _is_use(line):
                self._count(line, seconds)
        if not lines:
            self.gap, self.last = True, until

    def _count(self, line: _Line, seconds: float) -> None:
        keys = {one.arn.rpartition("/")[2] for one in line.resources}
        # Under one and the same key it is a decryption and an encryption all the same.
        times = 2 if line.event_name == REENCRYPT.name and len(keys) == 1 else 1
        for key_id in keys:
            counted = self.uses.setdefault(key_id, Counted())
            counted.count(line.event_name, line.request_id, seconds, times)


def _is_use(line: _Line) -> bool:
    if line.error_code is None:
        return True
    details = line.additional_event_data
    had_key = details is not None and (details.settled_at_start or details.plaintext_bytes is not None)
    return line.event_type == Kind.END and had_key
