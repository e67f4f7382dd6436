"""While the audit trail cannot be written nothing is done, and afterwards everything works again (DESIGN 9)."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import AuditUnavailableError, StorageError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.audit.verify import read_lines, verify
from kmsd.envelope import conversation
from kmsd.envelope.conversation import Start
from kmsd_client import Client
from kmsd_client.files import encrypt_file
from tests.support.dev_daemon import DevDaemon
from tests.support.other_user import DAEMON_GID, DAEMON_UID
from tests.support.served_daemon import ServedDaemon

# As large as what `kmsd dev` makes, and some room to work.
DISK_BYTES = 2 * 1024 * 1024


@contextlib.contextmanager
def running(directory: Path) -> Iterator[DevDaemon]:
    """A daemon whose trail is whole when it has stopped."""
    daemon = DevDaemon(directory)
    try:
        daemon.start()
        yield daemon
        daemon.stop()
        open_intents(daemon)
    finally:
        daemon.end()


def open_intents(daemon: DevDaemon) -> list[str]:
    """What the trail, which is verified, has begun and not ended."""
    report = verify(read_lines(io.BytesIO(daemon.audit_log.read_bytes())))
    return [intent.event_name for intent in report.open_intents]


@pytest.fixture
def daemon(short_path: Path, prepared: Path) -> Iterator[DevDaemon]:
    with running(Path(shutil.copytree(prepared, short_path / "d"))) as daemon:
        yield daemon


def operations(client: Client, key: str, folder: Path) -> dict[str, Callable[[], object]]:
    """One of each kind: served at once, from the store, changing something, a file."""
    (folder / "F").write_bytes(b"text")
    return {
        "Encrypt": lambda: client.encrypt(key_id=key, plaintext=b"text"),
        "DescribeKey": lambda: client.describe_key(key_id=key),
        "CreateKey": client.create_key,
        "CreateAlias": lambda: client.create_alias(alias_name="alias/during", target_key_id=key),
        "EncryptFile": lambda: encrypt_file(client, folder / "F", folder / "F.kms", key_id=key),
    }


def check_outage(daemon: DevDaemon, folder: Path, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Nothing is answered between `begin` and `end`, and everything before and after."""
    with daemon.client() as client:
        key = client.create_key().key_metadata.arn
        asked = operations(client, key, folder)
        keys = client.list_keys().keys
        begin()
        try:
            for ask in asked.values():
                with pytest.raises(AuditUnavailableError) as caught:
                    ask()
                assert str(daemon.audit_log) in caught.value.message
        finally:
            end()
        assert not (folder / "F.kms").exists()
        assert client.list_keys().keys == keys
        assert client.list_aliases(key_id=key).aliases == []
        for ask in asked.values():
            ask()


def test_nothing_is_answered_while_the_file_is_away(daemon: DevDaemon, short_path: Path) -> None:
    """Renamed, by a careless log rotation say; when it is back the trail goes on."""
    away = daemon.audit_log.with_name("away")
    check_outage(daemon, short_path, lambda: moved(daemon.audit_log, away), lambda: moved(away, daemon.audit_log))


def test_nothing_is_answered_while_another_file_is_in_its_place(daemon: DevDaemon, short_path: Path) -> None:
    """Nor is anything written to that one."""
    away, other = daemon.audit_log.with_name("away"), daemon.audit_log.with_name("other")

    def begin() -> None:
        moved(daemon.audit_log, away)
        daemon.audit_log.write_bytes(b"mine\n")

    def end() -> None:
        moved(daemon.audit_log, other)
        moved(away, daemon.audit_log)

    check_outage(daemon, short_path, begin, end)
    assert other.read_bytes() == b"mine\n"


def moved(source: Path, target: Path) -> None:
    source.rename(target)


def test_nothing_is_answered_on_a_trail_that_others_write(daemon: DevDaemon, short_path: Path) -> None:
    """A line that is not the daemon's; when it is gone the trail goes on."""
    size = 0

    def begin() -> None:
        nonlocal size
        size = daemon.audit_log.stat().st_size
        with daemon.audit_log.open("ab") as stream:
            stream.write(b'{"seq":1}\n')

    check_outage(daemon, short_path, begin, lambda: os.truncate(daemon.audit_log, size))


def test_a_file_is_not_done_when_its_end_cannot_be_recorded(daemon: DevDaemon, short_path: Path) -> None:
    """The trail goes away while the worker works: its client is told, and the next start settles what is open."""
    away = daemon.audit_log.with_name("away")
    with daemon.client() as client:
        key = client.create_key().key_metadata.arn
        _, [descriptor] = client.call_with_descriptors(ENCRYPT_FILE, EncryptFileRequest(key_id=key))
        reading, writing = os.pipe()
        with (short_path / "F.kms").open("wb") as output, socket.socket(fileno=descriptor) as worker:
            socket.send_fds(worker, [conversation.encode(Start())], [reading, output.fileno()])
            os.close(reading)
            os.write(writing, b"text")
            moved(daemon.audit_log, away)
            os.close(writing)
            report = conversation.decode_report(worker.recv(conversation.MAX_DATAGRAM_BYTES))
        moved(away, daemon.audit_log)

    assert report.done is None
    assert report.error is not None
    assert report.error.code == "AuditUnavailableException"
    daemon.stop()
    assert open_intents(daemon) == ["EncryptFile"]
    daemon.start()
    assert open_intents(daemon) == []


def test_the_command_names_the_file_and_what_to_do(daemon: DevDaemon, short_path: Path) -> None:
    """Exit code 1, an error and a hint."""
    away = daemon.audit_log.with_name("away")
    moved(daemon.audit_log, away)
    ran = daemon.run("kms", "key", "create", cwd=short_path)
    moved(away, daemon.audit_log)

    assert ran.returncode == 1
    error, hint = ran.stderr.decode().splitlines()
    assert error.startswith("kms: error: AuditUnavailableException: ")
    assert str(daemon.audit_log) in error
    assert hint.startswith("kms: hint: ")


def fill(filler: Path) -> None:
    """Leave no room on a disk but what `filler` takes."""
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            continue


@pytest.fixture
def small_disk(short_path: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES."""
    disk = short_path / "disk"
    disk.mkdir()
    options = f"size={DISK_BYTES},mode=755"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "kmsd", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.root
def test_nothing_is_answered_while_the_disk_is_full(small_disk: Path, prepared: Path, short_path: Path) -> None:
    """Of the trail and of the store; when there is room again everything works."""
    filler = small_disk / "filler"
    with running(Path(shutil.copytree(prepared, small_disk / "d"))) as daemon:

        def begin() -> None:
            fill(filler)
            with daemon.client() as client, contextlib.suppress(AuditUnavailableError):
                while True:  # the last page of the trail may have room for a few more
                    client.generate_random(number_of_bytes=8)

        check_outage(daemon, short_path, begin, filler.unlink)


@pytest.mark.root
def test_a_full_disk_of_the_store_alone_stops_changes_only(small_disk: Path, prepared: Path, short_path: Path) -> None:
    """They fail with an error that names the store, and are on record; when there is room again they work."""
    short_path.chmod(0o755)
    daemon = ServedDaemon(Path(shutil.copytree(prepared, small_disk / "d")))
    try:
        trail = short_path / "audit" / "audit.log"
        trail.parent.mkdir()
        shutil.move(daemon.audit_log, trail)
        for path in (trail.parent, trail):
            os.chown(path, DAEMON_UID, DAEMON_GID)
        daemon.audit_log = trail
        daemon.settings["paths"]["audit"] = str(trail)
        daemon.write_settings()
        daemon.start()
        with daemon.client() as client:
            key = client.create_key().key_metadata.arn
            keys = client.list_keys().keys
            fill(small_disk / "filler")
            with contextlib.suppress(StorageError):
                while True:  # the write-ahead log may have room for a few more
                    client.create_key()
                    keys = client.list_keys().keys
            with pytest.raises(StorageError, match=r"store\.sqlite.*full") as caught:
                client.create_alias(alias_name="alias/during", target_key_id=key)
            assert caught.value.retryable
            assert client.list_keys().keys == keys
            blob = client.encrypt(key_id=key, plaintext=b"text").ciphertext_blob
            assert bytes(client.decrypt(ciphertext_blob=blob).plaintext) == b"text"
            (small_disk / "filler").unlink()
            client.create_alias(alias_name="alias/after", target_key_id=client.create_key().key_metadata.arn)
        daemon.stop()
        assert open_intents(daemon) == []
        refused = [record for record in daemon.records() if record.get("errorCode") == "StorageException"]
        assert [record["eventName"] for record in refused] == ["CreateKey", "CreateAlias"]
        assert not any(record["additionalEventData"]["committed"] for record in refused)
    finally:
        daemon.end()


@pytest.mark.root
def test_a_full_disk_at_the_start_is_said(small_disk: Path, prepared: Path) -> None:
    """One line of error, no traceback."""
    daemon = DevDaemon(Path(shutil.copytree(prepared, small_disk / "d")))
    daemon._errors = small_disk.with_name("err")
    fill(small_disk / "filler")
    daemon.launch()
    assert daemon.process is not None

    assert daemon.process.wait(30) == 1
    assert "Traceback" not in daemon.said()
    assert daemon.said().splitlines()[-1].startswith("kmsd: error: ")
