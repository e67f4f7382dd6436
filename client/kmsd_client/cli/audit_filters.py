"""Which records of the trail are wanted, as a command line says it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kmsd.audit.chain import format_time
from kmsd_client.cli.audit_records import Record, decode, is_settled
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, complain

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DAYS_AGO = {"today": 0, "yesterday": 1}
# How outcomes are asked for that are no error code.
_OK, _ERROR = "ok", "error"
_EXCEPTION = "Exception"


def parse_time(text: str | None, now: dt.datetime) -> dt.datetime | None:
    """Return the time that a text means; without a zone of its own it is meant in the host's."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now - dt.timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if text in _DAYS_AGO:
            day = now.astimezone().date() - dt.timedelta(days=_DAYS_AGO[text])
            return dt.datetime.combine(day, dt.time()).astimezone()
        return dt.datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        hint = "write 2026-09-21, 2026-09-21T14:00:00Z, 30m, 2h, 3d, today or yesterday"
        raise CommandError(f"'{text}' is no time", hint, code=EXIT_USAGE) from None


@dataclass(frozen=True)
class Filter:
    """What a record has to be; what is None or empty does not matter.

    `key` is a key id. A principal is `uid:N`, `user:NAME`, `unit:NAME`, `exe:PATH`, or a bare user's name. An outcome
    is `ok`, `error` or an error code, whose ending "Exception" may be left out.
    """

    key: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    principal: str | None = None
    operation: str | None = None
    outcome: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)

    def among(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, Record]]:
        """Yield the lines that match, each with what it says; what is no record is said and passed over."""
        since = None if self.since is None else format_time(self.since.timestamp())
        until = None if self.until is None else format_time(self.until.timestamp())
        is_theirs = None if self.principal is None else _principal(self.principal)
        for line in lines:
            try:
                record = decode(line)
                wanted = (
                    (since is None or record["eventTime"] >= since)
                    and (until is None or record["eventTime"] <= until)
                    and (self.key is None or self._is_about_key(record))
                    and (is_theirs is None or is_theirs(record.get("userIdentity") or {}))
                    and (self.operation is None or record["eventName"].lower() == self.operation.lower())
                    and (self.outcome is None or self._has_outcome(record))
                    and (not self.context or self._has_context(record))
                )
            except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
                complain(f"a line that is no record was passed over: {error}", "kms audit verify tells its place")
                continue
            if wanted:
                yield line, record

    def _is_about_key(self, record: Record) -> bool:
        return any(one["ARN"].rpartition("/")[2] == self.key for one in record.get("resources", ()))

    def _has_outcome(self, record: Record) -> bool:
        code = record.get("errorCode")
        if self.outcome == _OK:
            return code is None and is_settled(record)
        if self.outcome == _ERROR:
            return code is not None
        return code is not None and code in {self.outcome, f"{self.outcome}{_EXCEPTION}"}

    def _has_context(self, record: Record) -> bool:
        parameters = record.get("requestParameters") or {}
        contexts = [value for name, value in parameters.items() if name.lower().endswith("encryptioncontext")]
        return any(self.context.items() <= context.items() for context in contexts)


def _principal(text: str) -> Callable[[dict[str, Any]], bool]:
    """Return what tells whether somebody is meant by a principal."""
    kind, sign, name = text.partition(":")
    if not sign:
        kind, name = "user", text
    member = {"uid": "uid", "user": "userName", "unit": "unit", "exe": "exe"}.get(kind)
    if member is None or not name or (kind == "uid" and not name.isdecimal()):
        hint = "write uid:N, user:NAME, unit:NAME or exe:PATH"
        raise CommandError(f"'{text}' is no principal", hint, code=EXIT_USAGE)
    wanted = int(name) if kind == "uid" else name
    return lambda identity: identity.get(member) == wanted
