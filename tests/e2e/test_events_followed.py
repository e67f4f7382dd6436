"""Events reach who follows them, each once, whatever is killed: daemon and `kms events` as they are shipped."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmsd.api.events import Event, SubscribeEventsRequest, decode_event
from kmsd.events.projection import Projection
from kmsd_client.events import subscribe
from tests.support.dev_daemon import SCRIPTS, DevDaemon

PATIENCE_SECONDS = 30


class Follower:
    """`kms events --follow` that keeps its position; what it told lies in a file, across its runs."""

    def __init__(self, daemon: DevDaemon, directory: Path) -> None:
        self._daemon = daemon
        self._output = directory / "told"
        self.position = directory / "position"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [f"{SCRIPTS}/kms", "events", "--follow", "--json", "--position", str(self.position)]
        environment = self._daemon.environment
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.PIPE)
        until(self.position.exists)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.communicate(timeout=PATIENCE_SECONDS)
        return self._process.returncode

    def told(self) -> list[Event]:
        return [decode_event(line) for line in self._output.read_bytes().splitlines()]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def projected(daemon: DevDaemon, after: int) -> list[Event]:
    """What should have been told of what is on record."""
    with daemon.client() as client:
        status = client.status()
    projection = Projection(status.account, status.region)
    lines = daemon.audit_log.read_text().splitlines()
    events = [event for line in lines if (event := projection.event_of(line)) is not None]
    return [event for event in events if event.sequence > after]


@pytest.fixture
def daemon(short_path: Path, prepared: Path) -> Iterator[DevDaemon]:
    daemon = DevDaemon(Path(shutil.copytree(prepared, short_path / "d")))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


@pytest.fixture
def follower(daemon: DevDaemon, short_path: Path) -> Iterator[Follower]:
    made = Follower(daemon, short_path)
    yield made
    if made._process is not None and made._process.poll() is None:
        made.end(signal.SIGKILL)


def test_each_event_is_told_once_across_kills_of_the_daemon_and_restarts_of_both(
    daemon: DevDaemon, follower: Follower, short_path: Path
) -> None:
    """In order, with a daemon that is killed, one that is stopped, and a follower that is away."""
    follower.start()
    after = int(follower.position.read_text())
    arn = daemon.run("kms", "key", "create", cwd=short_path).stdout.decode().split()[-1]
    daemon.run("kms", "key", "rotate", arn, "--now", cwd=short_path)
    daemon.run("kms", "seal", cwd=short_path)
    daemon.kill()
    daemon.start()
    daemon.run("kms", "key", "rotate", arn, "--now", cwd=short_path)
    until(lambda: follower.told()[-1:] == projected(daemon, after)[-1:])
    assert follower.end(signal.SIGTERM) == 0
    daemon.run("kms", "key", "delete", arn, "--yes", cwd=short_path)
    daemon.run("kms", "encrypt", "-k", arn, "-o", "-", "-", cwd=short_path, stdin=b"text")
    daemon.stop()
    daemon.start()
    follower.start()
    until(lambda: follower.told()[-1:] == projected(daemon, after)[-1:])

    assert follower.told() == projected(daemon, after)
    assert [event.detail_type for event in follower.told()] == [
        *("KMS CMK Rotation", "Sealed", "Unsealed", "Started", "KMS CMK Rotation"),
        *("Key Deletion Scheduled", "Key Used While Pending Deletion", "Stopped", "Unsealed", "Started"),
    ]
    assert int(follower.position.read_text()) == follower.told()[-1].sequence
    assert follower.end(signal.SIGINT) == 130


def test_a_stop_is_told_before_the_stream_ends(daemon: DevDaemon) -> None:
    """By the daemon as it runs: confined, on its own event loop."""
    with daemon.client() as client, subscribe(client, SubscribeEventsRequest(follow=True)) as subscription:
        client.close()
        daemon.stop()

        assert [event.detail_type for _, event in subscription.events()] == ["Stopped"]


def test_trouble_of_the_trail_is_told_while_nothing_can_be_recorded(daemon: DevDaemon) -> None:
    """And again, for everybody, when it is over."""
    away = daemon.audit_log.with_name("away")
    with daemon.client() as client, subscribe(client, SubscribeEventsRequest(follow=True)) as subscription:
        events = subscription.events()
        daemon.audit_log.rename(away)
        with contextlib.suppress(Exception):
            client.status()
        _, first = next(events)
        away.rename(daemon.audit_log)
        _, second = next(events)

    assert (first.detail_type, second.detail_type) == ("Audit Trail In Trouble", "Audit Trail Well Again")
    assert str(daemon.audit_log) in first.message
    assert daemon.records()[-1]["eventName"] == "AuditTrouble"


def test_events_that_happened_are_listed(daemon: DevDaemon, short_path: Path) -> None:
    """For people, for programs, for the journal; since a time, and behind a record."""
    lines = daemon.run("kms", "events", cwd=short_path).stdout.decode().splitlines()
    events = [decode_event(line) for line in daemon.run("kms", "events", "--json", cwd=short_path).stdout.splitlines()]
    journal = daemon.run("kms", "events", "--log", cwd=short_path).stdout.decode().splitlines()
    last = daemon.run("kms", "events", "--json", "--since", str(events[-2].sequence), cwd=short_path).stdout
    none = daemon.run("kms", "events", "--since", "2100-01-01", cwd=short_path)

    assert [line.split("  ")[0] for line in lines] == [event.time for event in events]
    assert lines[-1].endswith("  Started: kmsd 0.1.0 has started")
    assert journal[-1] == f"<5>Started: kmsd 0.1.0 has started [record {events[-1].sequence}]"
    assert [decode_event(line) for line in last.splitlines()] == events[-1:]
    assert (none.returncode, none.stdout) == (0, b"")
