"""`kmsd backup` and `kmsd restore` with real daemons and tokens: what was backed up is what comes back."""

from __future__ import annotations

import io
import os
import pty
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmsd.audit.verify import read_lines, verify
from kmsd_client import Client
from tests.support.dev_daemon import SCRIPTS, DevDaemon

_SECONDS = 60


def kmsd(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of kmsd's to its end."""
    return subprocess.run(
        [str(SCRIPTS / "kmsd"), *map(str, words)], capture_output=True, text=True, check=False, timeout=_SECONDS
    )


@dataclass(frozen=True)
class BackedUp:
    """A directory whose daemon has stopped, a backup of it, and what was encrypted there."""

    directory: Path
    backup: Path
    key: str
    ciphertext: bytes
    alias_later: str


@pytest.fixture(scope="module")
def backed_up(prepared: Path, module_path: Path) -> BackedUp:
    daemon = DevDaemon(shutil.copytree(prepared, module_path / "a"))
    backup = module_path / "backup"
    try:
        daemon.start()
        with daemon.client() as client:
            key = client.create_key(description="of the payroll").key_metadata.arn
            blob = client.encrypt(key_id=key, plaintext=b"an old secret").ciphertext_blob
            made = daemon.run("kmsd", "backup", str(backup), cwd=module_path)
            assert made.returncode == 0, made.stderr
            client.create_alias(alias_name="alias/later", target_key_id=key)
        daemon.stop()
    finally:
        daemon.end()
    return BackedUp(daemon.directory, backup, key, blob, "alias/later")


@pytest.fixture
def lost(backed_up: BackedUp, short_path: Path) -> Path:
    """A copy of the directory whose store is gone; token and trail are there."""
    directory = shutil.copytree(backed_up.directory, short_path / "d", ignore=shutil.ignore_patterns("store*"))
    return Path(directory)


@pytest.fixture
def started() -> Iterator[list[DevDaemon]]:
    """Daemons that the test starts, and that end with it."""
    daemons: list[DevDaemon] = []
    yield daemons
    for daemon in daemons:
        daemon.end()


def test_a_backup_is_a_private_file_that_tells_nothing(backed_up: BackedUp) -> None:
    """Only its owner may read it, and not even he can."""
    assert backed_up.backup.stat().st_mode & 0o777 == 0o600
    assert b"payroll" not in backed_up.backup.read_bytes()


def test_a_backup_is_verified_off_line(backed_up: BackedUp) -> None:
    """With the token alone; what is in it is printed, and nothing is changed."""
    before = _files(backed_up.directory)
    ran = kmsd("backup", "--verify", "--dev", backed_up.directory, backed_up.backup)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[0] == f"{backed_up.backup}: whole, opened by the token"
    assert f"account   {backed_up.key.split(':')[4]}, region local-host-1" in ran.stdout
    assert "keys      1, under 1 domain keys" in ran.stdout
    assert _files(backed_up.directory) == before


def _files(directory: Path) -> dict[Path, bytes]:
    """What is in a directory, but for the token, in which SoftHSM notes each login."""
    return {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_who_is_asked_for_shares_leaves_no_core(backed_up: BackedUp) -> None:
    """Not even by Ctrl-\\ between two of them: words are in memory by then."""
    pid, terminal = pty.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1:] * 2)
        os.execv(SCRIPTS / "kmsd", ["kmsd", "backup", "--verify", "--share", str(backed_up.backup)])  # noqa: S606 - its own terminal
    with open(terminal, "r+b", buffering=0) as screen:  # noqa: PTH123 - a descriptor
        shown = b""
        while b"Share 1" not in shown:
            shown += screen.read(1024)
        limits = Path(f"/proc/{pid}/limits").read_text()
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    [core] = [line.split() for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_a_verification_leaves_no_rows(backed_up: BackedUp, tmp_path: Path, number: int) -> None:
    """They are in clear in its copy, as far as they are no keys."""
    (copies := tmp_path / "copies").mkdir()
    os.mkfifo(pipe := tmp_path / "pipe")
    data = backed_up.backup.read_bytes()
    with subprocess.Popen(
        [str(SCRIPTS / "kmsd"), "backup", "--verify", "--dev", str(backed_up.directory), str(pipe)],
        env={**os.environ, "TMPDIR": str(copies)},
        stderr=subprocess.DEVNULL,
    ) as process:
        with pipe.open("wb", buffering=0) as feed:
            feed.write(data[:-1])
            while process.poll() is None and not any(copies.iterdir()):
                time.sleep(0.01)
            assert process.poll() is None
            process.send_signal(number)
        assert process.wait(_SECONDS) != 0

    assert list(copies.iterdir()) == []


def test_what_was_altered_does_not_verify(backed_up: BackedUp, tmp_path: Path) -> None:
    """Nor is it restored; the file is named."""
    altered = bytearray(backed_up.backup.read_bytes())
    altered[-1] ^= 1
    (tmp_path / "altered").write_bytes(altered)
    ran = kmsd("backup", "--verify", "--dev", backed_up.directory, tmp_path / "altered")

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"kmsd: error: {tmp_path / 'altered'}: chunk ")


def test_a_store_that_was_lost_is_restored(backed_up: BackedUp, lost: Path, started: list[DevDaemon]) -> None:
    """As it was: the same key ARN, and what it encrypted; the trail goes on and tells of it."""
    ran = kmsd("restore", "--dev", lost, backed_up.backup)
    assert (ran.returncode, ran.stderr) == (0, "")

    daemon = DevDaemon(lost)
    started.append(daemon)
    daemon.start()
    with daemon.client() as client:
        assert bytes(client.decrypt(ciphertext_blob=backed_up.ciphertext).plaintext) == b"an old secret"
        assert client.describe_key(key_id=backed_up.key).key_metadata.description == "of the payroll"
        assert backed_up.alias_later not in {alias.alias_name for alias in client.list_aliases().aliases}
        status = client.status()
    daemon.stop()

    records = daemon.records()
    [restored] = [record for record in records if record["eventName"] == "RestoreStore"]
    assert restored["userIdentity"]["uid"] == os.getuid()
    details = restored["additionalEventData"]
    assert (details["sha256"], details["by"]) == (_digest_of(records), "token")
    # Above everything the trail has told: it is no older store put back.
    assert details["storeSequence"] > max(_sequences([record for record in records if record["seq"] < restored["seq"]]))
    assert status.last_backup is not None
    assert status.last_backup.sha256 == details["sha256"]
    assert verify(read_lines(io.BytesIO(daemon.audit_log.read_bytes()))).open_intents == ()


def _digest_of(records: list[dict[str, object]]) -> object:
    details = [record.get("additionalEventData", {}) for record in records if record["eventName"] == "CreateBackup"]
    return next(one["sha256"] for one in details if isinstance(one, dict) and "sha256" in one)


def _sequences(records: list[dict[str, object]]) -> list[int]:
    details = [record.get("additionalEventData", {}) for record in records]
    return [one["storeSequence"] for one in details if isinstance(one, dict) and "storeSequence" in one]


def test_a_store_that_is_there_is_never_touched(backed_up: BackedUp, lost: Path) -> None:
    """Nor what SQLite left of one; what to move away is said."""
    (lost / "store.sqlite-wal").write_bytes(b"mine")
    ran = kmsd("restore", "--dev", lost, backed_up.backup)

    assert ran.returncode == 1
    assert f"{lost / 'store.sqlite-wal'} is there" in ran.stderr
    assert (lost / "store.sqlite-wal").read_bytes() == b"mine"
    assert not (lost / "store.sqlite").exists()


def test_a_restore_that_was_killed_leaves_nothing_and_can_be_run_again(backed_up: BackedUp, lost: Path) -> None:
    """There is no store before there is all of it."""
    with subprocess.Popen([SCRIPTS / "kmsd", "restore", "--dev", lost, backed_up.backup]) as process:
        deadline = time.monotonic() + _SECONDS
        while not list(lost.glob("restoring-*/store.sqlite")):
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
    assert not (lost / "store.sqlite").exists()
    ran = kmsd("restore", "--dev", lost, backed_up.backup)
    assert ran.returncode == 0, ran.stderr
    # What was there before, and the store.
    left = {path.name for path in lost.iterdir()} - {"events.jsonl", "events.position"}
    assert sorted(left) == ["audit.log", "store.sqlite", "token"]


class Writer(threading.Thread):
    """Makes keys and aliases, and notes what it was told."""

    def __init__(self, daemon: DevDaemon, name: str) -> None:
        super().__init__(name=name)
        self._daemon = daemon
        self.ended = threading.Event()
        self.aliases: dict[str, str] = {}

    def run(self) -> None:
        with self._daemon.client() as client:
            while not self.ended.is_set():
                self._make(client, f"alias/{self.name}-{len(self.aliases)}")

    def _make(self, client: Client, alias: str) -> None:
        key = client.create_key(description=alias).key_metadata.key_id
        client.create_alias(alias_name=alias, target_key_id=key)
        self.aliases[alias] = key


def test_a_backup_under_way_is_of_one_moment(
    lost: Path, backed_up: BackedUp, short_path: Path, started: list[DevDaemon]
) -> None:
    """While four clients write: all that was acknowledged before it is in it, and of what came later no half."""
    assert kmsd("restore", "--dev", lost, backed_up.backup).returncode == 0
    daemon = DevDaemon(lost)
    started.append(daemon)
    daemon.start()
    writers = [Writer(daemon, f"w{number}") for number in range(4)]
    for writer in writers:
        writer.start()
    while sum(len(writer.aliases) for writer in writers) < 40:
        time.sleep(0.01)
    before = {alias: key for writer in writers for alias, key in dict(writer.aliases).items()}
    ran = daemon.run("kmsd", "backup", "--socket", str(daemon.socket), "backup", cwd=short_path)
    for writer in writers:
        writer.ended.set()
    for writer in writers:
        writer.join()
    daemon.stop()
    assert ran.returncode == 0, ran.stderr

    for path in daemon.directory.glob("store*"):
        path.unlink()
    ran2 = kmsd("restore", "--dev", daemon.directory, short_path / "backup")
    assert ran2.returncode == 0, ran2.stderr
    daemon.start()
    with daemon.client() as client:
        found = _all_aliases(client)
        assert before.items() <= found.items()
        for alias, key in found.items():
            assert client.describe_key(key_id=key).key_metadata.description == alias
            client.encrypt(key_id=key, plaintext=b"works")
    daemon.stop()


def _all_aliases(client: Client) -> dict[str, str]:
    found: dict[str, str] = {}
    marker = None
    while True:
        page = client.list_aliases(limit=100, marker=marker)
        found |= {one.alias_name: one.target_key_id for one in page.aliases}
        if not page.truncated:
            return found
        marker = page.next_marker
