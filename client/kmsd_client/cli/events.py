"""Tell what happened to keys and to kmsd that somebody should know: rotations, deletions, seals, trouble."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from kmsd.api.errors import ConnectionLostError, KmsError
from kmsd.api.events import Event, Severity, SubscribeEventsRequest
from kmsd_client import Client
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, note, printable
from kmsd_client.events import Subscription, subscribe

# What is done with an event and its line; returns when that is certain.
Deliver = Callable[[bytes, Event], None]

# systemd starts a kmsd that was just stopped when somebody connects: who follows gives it time to be stopped.
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0
_SEQUENCE = re.compile(r"[0-9]{1,19}")
# The numbers of syslog(3), as sd-daemon(3) has them in front of a line.
_LEVELS = {
    Severity.CRITICAL: 2,
    Severity.ERROR: 3,
    Severity.WARNING: 4,
    Severity.NOTICE: 5,
    Severity.INFO: 6,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens, also across restarts")
    parser.add_argument(
        "--since",
        metavar="T|N",
        help="only since then (ISO 8601, 30m, 2h, 3d, today or yesterday), or behind record N of the audit trail",
    )
    parser.add_argument(
        "--position", type=Path, metavar="FILE", help="begin behind the number in this file, and keep it up to date"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print each event as a line of JSON, in EventBridge's form")
    form.add_argument("--log", action="store_true", help="print lines for the journal, each with its severity")
    parser.add_argument("--mail", metavar="ADDRESS", help="also mail each event, by sendmail(8)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print events, all that are kept or what is asked for."""
    deliver: list[Deliver] = [_print_json if options.json else _print_for_journal if options.log else _print]
    if options.mail is not None:
        from kmsd_client.cli.event_mail import Mailer  # noqa: PLC0415 - only who mails needs it

        deliver.append(Mailer(options.mail).deliver)
    request, keep = _beginning(options)
    if options.mail is not None and not options.follow and options.since is None and request.after_sequence == 0:
        hint = "say --follow for those to come, --since for later ones, --since 0 for all"
        raise CommandError("all events that are kept would be mailed", hint, code=EXIT_USAGE)
    with Delivery(deliver, keep) as delivery:
        if not options.follow:
            with Client(options.socket) as client, subscribe(client, request) as subscription:
                _tell_missing(request, subscription)
                delivery.take(subscription)
        else:
            _follow(options.socket, request, delivery)


class Delivery:
    """Delivers events one by one and then keeps their numbers; a signal to stop waits until both are done."""

    def __init__(self, deliver: list[Deliver], keep: Callable[[int], None]) -> None:
        self._deliver = deliver
        self._keep = keep
        self._delivering = False
        self._stopped_by: int | None = None
        self._before: dict[signal.Signals, Any] = {}
        self.last: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self, subscription: Subscription) -> None:
        """Deliver what comes, until the end of the stream."""
        begins_behind = subscription.response.after_sequence
        if self.last is None or self.last > begins_behind:
            self._keep_last(begins_behind)
        for line, event in subscription.events():
            self._delivering = True
            for deliver in self._deliver:
                deliver(line, event)
            if event.sequence:
                self._keep_last(event.sequence)
            self._delivering = False
            if self._stopped_by is not None:
                _end_by(self._stopped_by)

    def _keep_last(self, sequence: int) -> None:
        self._keep(sequence)
        self.last = sequence

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self._delivering:
            self._stopped_by = number
        else:
            _end_by(number)


def _end_by(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(0)


def _follow(socket: str | None, request: SubscribeEventsRequest, delivery: Delivery) -> None:
    """Deliver what comes until a signal says stop; a daemon that goes away is waited for, once there was one."""
    wait_seconds = _FIRST_WAIT_SECONDS
    is_away = False
    while True:
        try:
            with Client(socket) as client, subscribe(client, request) as subscription:
                client.close()
                if is_away:
                    note("the daemon is back")
                    is_away = False
                _tell_missing(request, subscription)
                wait_seconds = _FIRST_WAIT_SECONDS
                delivery.take(subscription)
        except KmsError as error:
            lost = isinstance(error, ConnectionLostError) or error.retryable
            if delivery.last is None or not lost:
                raise
            if not is_away:
                note(f"the daemon is away, and is waited for: {error.message}")
                is_away = True
        request = SubscribeEventsRequest(after_sequence=delivery.last, follow=True)
        time.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)


def _beginning(options: argparse.Namespace) -> tuple[SubscribeEventsRequest, Callable[[int], None]]:
    """Return what to ask for, and what keeps the number of the last event that was delivered."""
    after: int | None = None
    since: dt.datetime | None = None
    keep: Callable[[int], None] = _keep_nothing
    if options.since is not None and _SEQUENCE.fullmatch(options.since):
        after = int(options.since)
    elif options.since is not None:
        from kmsd_client.cli.audit_filters import parse_time  # noqa: PLC0415 - only who says a time needs it

        since = parse_time(options.since, dt.datetime.now(dt.UTC))
    if options.position is not None:
        from kmsd_client.cli.event_position import PositionFile  # noqa: PLC0415 - only who keeps one needs it

        position = PositionFile(options.position)
        kept = position.read()
        after = after if kept is None else kept
        keep = position.keep
    if after is None and since is None and not options.follow:
        after = 0
    return SubscribeEventsRequest(after_sequence=after, since=since, follow=options.follow), keep


def _keep_nothing(_sequence: int) -> None:
    """Leave it at that: nobody goes on from there."""


def _tell_missing(request: SubscribeEventsRequest, subscription: Subscription) -> None:
    asked, response = request.after_sequence, subscription.response
    if asked and asked < response.dropped_until:
        note(
            f"events of records up to number {response.dropped_until} are kept no longer: kms audit search has what "
            "happened"
        )
    if asked and asked > response.after_sequence:
        note(
            f"the audit trail ends at record {response.after_sequence}, before record {asked}: what comes behind its "
            "end is told; kms events --since 0 tells all"
        )


def _print(_line: bytes, event: Event) -> None:
    text = f"{event.time}  {event.severity:<8}  {event.detail_type}: {event.message}"
    print(printable(text), flush=True)


def _print_json(line: bytes, _event: Event) -> None:
    print(line.decode("utf-8"), flush=True)


def _print_for_journal(_line: bytes, event: Event) -> None:
    number = f" [record {event.sequence}]" if event.sequence else ""
    print(f"<{_LEVELS[event.severity]}>{printable(f'{event.detail_type}: {event.message}{number}')}", flush=True)
