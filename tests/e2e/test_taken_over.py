"""What the daemon, a token job and a file worker could still do if they were taken over, tried from inside each."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import FileAccessError
from kmsd_client import Client
from kmsd_client.files import encrypt_file
from tests.support import probes
from tests.support.dev_daemon import START_SECONDS, DevDaemon

ROOT = Path(__file__).parents[2]
MARKER = "probed: "
# What is refused by every kind of process, and what has to work in each.
REFUSED = [probe.__name__ for probe in probes.FORBIDDEN]
WORKING = [probe.__name__ for probe in probes.NEEDED]

Start = Callable[[str], "Probed"]


class Probed:
    """A daemon in which one kind of process reports what it could do."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.socket = folder / "d" / "kmsd.sock"
        self._said = folder / "said"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.probed_daemon", kind, str(folder / "d")], cwd=ROOT, stderr=said
            )

    def wait_for(self, text: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while text not in (said := self._said.read_text()):
            assert time.monotonic() < deadline, said
            assert self.process.poll() is None or text in self._said.read_text(), said
            time.sleep(0.01)
        return said

    def reports(self) -> list[dict[str, str]]:
        lines = self.wait_for(MARKER).splitlines()
        return [json.loads(line.removeprefix(MARKER)) for line in lines if line.startswith(MARKER)]

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(short_path: Path) -> Iterator[Start]:
    started: list[Probed] = []

    def start_(kind: str) -> Probed:
        started.append(Probed(kind, short_path))
        return started[-1]

    yield start_
    for probed in started:
        probed.end()


def allowed(report: dict[str, str]) -> list[str]:
    return [name for name, outcome in report.items() if outcome == "allowed"]


def test_the_daemon_can_do_nothing_beyond_its_work(start: Start) -> None:
    """No program, process, foreign file, connection, signal or memory, from a thread it had or a new one."""
    probed = start("daemon")
    probed.wait_for("kmsd: ready:")

    reports = probed.reports()

    assert [list(report) for report in reports] == [REFUSED + WORKING] * 2
    assert [allowed(report) for report in reports] == [WORKING, WORKING]


def test_a_token_job_can_do_nothing_beyond_its_work(start: Start) -> None:
    """It runs a vendor's code, which may want memory that becomes executable, and nothing else of all that."""
    [report] = start("job").reports()

    assert [*report] == REFUSED + WORKING
    assert allowed(report) == ["run_new_code", *WORKING]


def test_a_file_worker_can_do_nothing_beyond_its_work(start: Start, short_path: Path) -> None:
    """It meets hostile files, and has two descriptors and a key of one message."""
    probed = start("worker")
    probed.wait_for("kmsd: ready:")
    source = short_path / "source"
    source.write_bytes(b"content")
    with Client(probed.socket) as client:
        key = client.create_key().key_metadata.arn

        with pytest.raises(FileAccessError) as refused:
            encrypt_file(client, source, short_path / "result", key_id=key)

    report = json.loads(refused.value.message)
    assert [*report] == REFUSED + WORKING
    assert allowed(report) == WORKING


def test_the_self_check_of_a_running_daemon_finds_every_protection(dev: DevDaemon) -> None:
    """On this kernel all can be had; each is told for each kind of process."""
    with dev.client() as client:
        found = client.status().hardening

    assert {one.process for one in found} == {
        *("daemon", "zygote", "hsm-job", "file-worker", "lookups", "programs", "cgroups", "recovery-job")
    }
    assert [one for one in found if one.state != "on" and one.protection not in {"no swap", "secret memory"}] == []
    [start] = [record for record in dev.records() if record["eventName"] == "Start"][-1:]
    assert "missingProtections" in start["additionalEventData"]


def test_every_process_of_a_running_daemon_is_filtered(dev: DevDaemon) -> None:
    """/proc says so of the processes themselves: seccomp in filter mode, no new privileges, no capabilities."""
    for pid in dev.processes():
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )

        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), status["Name"]
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}, status["Name"]


def test_a_daemon_that_must_be_hardened_runs_where_everything_can_be_had(short_path: Path) -> None:
    """And refuses, naming what is missing, where it cannot."""
    daemon = DevDaemon(short_path / "d", settings='hardening = "require"\n')
    try:
        daemon.launch()
        assert daemon.process is not None
        deadline = time.monotonic() + START_SECONDS
        while daemon.process.poll() is None and "kmsd: ready:" not in daemon.said():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        said = daemon.said()
    finally:
        daemon.end()

    missing = [line for line in said.splitlines() if line.startswith("kmsd: error:")]
    assert ("kmsd: ready:" in said) != bool(missing)
    assert all("can be had" in line or "swap" in line for line in missing)
