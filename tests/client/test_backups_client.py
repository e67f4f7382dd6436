"""A backup as a client takes it, from a daemon that may say anything: `kmsd_client.backups`."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.backups import CreateBackupResponse, Kept, Recorded, Sent, Told, decode_kept, encode
from kmsd.api.errors import AlreadyExistsError, ConnectionLostError, FileAccessError, KmsError, StorageError
from kmsd.api.failure import Failure
from kmsd_client import Client
from kmsd_client.backups import BackupResult, create_backup
from tests.client.scripted import ScriptedDaemon

PIECES = [b"kmsd-backup/1\n", b"\0" * 100_000, b"rest"]
WHOLE = b"".join(PIECES)
SENT = Sent(length=len(WHOLE), sha256=hashlib.sha256(WHOLE).hexdigest(), store_sequence=7)
ALL = [*(Told(piece=piece) for piece in PIECES), Told(sent=SENT)]
RECORDED = Told(recorded=Recorded())
# Says the first, hears the client and says the second; without a second it goes away. Returns what it hears.
Scripted = Callable[..., list[Kept | None]]


@pytest.fixture
def daemon(short_path: Path) -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon(short_path / "s")
    yield daemon
    daemon.close()


@pytest.fixture
def says(daemon: ScriptedDaemon) -> Iterator[Scripted]:
    threads: list[threading.Thread] = []

    def script(
        first: list[Told | bytes], second: list[Told | bytes] | None, *, before: Callable[[], None] = lambda: None
    ) -> list[Kept | None]:
        heard: list[Kept | None] = []

        def say(channel: socket.socket, what: list[Told | bytes]) -> None:
            for one in what:
                channel.send(one if isinstance(one, bytes) else encode(one))

        def converse(channel: socket.socket) -> None:
            with channel:
                try:
                    say(channel, first)
                    if second is None:
                        return
                    datagram = channel.recv(4096)
                    heard.append(decode_kept(datagram) if datagram else None)
                    before()
                    say(channel, second)
                except (BrokenPipeError, ConnectionResetError):
                    heard.append(None)

        def answer(_name: str, _request: Any) -> tuple[CreateBackupResponse, list[int]]:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            threads.append(threading.Thread(target=converse, args=(ours,)))
            threads[-1].start()
            return CreateBackupResponse(backup_id="id"), [theirs.detach()]

        daemon.answer = answer
        return heard

    yield script
    for thread in threads:
        thread.join(5)


def test_a_backup_has_its_name_before_the_daemon_is_told(
    daemon: ScriptedDaemon, says: Scripted, tmp_path: Path
) -> None:
    """Whole, for its owner only, and not a moment earlier."""
    target, seen = tmp_path / "backup", []
    heard = says(ALL, [RECORDED], before=lambda: seen.append(target.read_bytes()))
    with Client(daemon.path) as client:
        assert create_backup(client, target) == BackupResult(SENT.length, SENT.sha256, 7)

    assert heard == [Kept(sha256=SENT.sha256)]
    assert seen == [WHOLE]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]


def test_a_stream_is_written_to_as_it_is(daemon: ScriptedDaemon, says: Scripted, tmp_path: Path) -> None:
    """Standard output, for example."""
    says(ALL, [RECORDED])
    target = tmp_path / "stream"
    with Client(daemon.path) as client, target.open("wb") as stream:
        create_backup(client, stream.fileno())
    assert target.read_bytes() == WHOLE


def test_nothing_is_replaced_unless_that_is_wanted(daemon: ScriptedDaemon, says: Scripted, tmp_path: Path) -> None:
    """The daemon is not even asked."""
    target = tmp_path / "backup"
    target.write_bytes(b"an older one")
    with Client(daemon.path) as client:
        with pytest.raises(AlreadyExistsError):
            create_backup(client, target)
        assert daemon.asked == []
        assert target.read_bytes() == b"an older one"

        says(ALL, [RECORDED])
        create_backup(client, target, force=True)
    assert target.read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (ALL[:2], ConnectionLostError),
        ([], ConnectionLostError),
        ([*ALL[:2], Told(error=Failure.of(StorageError("why")))], StorageError),
        ([*ALL[:2], ALL[3]], ConnectionLostError),
        ([ALL[1], ALL[0], *ALL[2:]], ConnectionLostError),
        ([*ALL[:3], b"\xff"], ConnectionLostError),
        ([*ALL[:3], Told()], ConnectionLostError),
        ([*ALL[:3], b"\x81\xa5piece\x01"], ConnectionLostError),
    ],
    ids=["gone", "gone at once", "failed", "cut", "reordered", "nonsense", "nothing", "no bytes"],
)
def test_without_all_of_it_there_is_no_file(
    daemon: ScriptedDaemon, says: Scripted, tmp_path: Path, first: list[Told | bytes], error: type[KmsError]
) -> None:
    """Nor is anything left of it, and the daemon is not told that there is one."""
    heard = says(first, None)
    with Client(daemon.path) as client, pytest.raises(error):
        create_backup(client, tmp_path / "backup")

    assert list(tmp_path.iterdir()) == []
    assert not any(heard)


@pytest.mark.parametrize("second", [[], [Told(error=Failure.of(StorageError("why")))]], ids=["gone", "failed"])
def test_a_backup_that_the_daemon_took_no_note_of_is_still_one(
    daemon: ScriptedDaemon, says: Scripted, tmp_path: Path, second: list[Told | bytes]
) -> None:
    """It is an error, but nobody removes a file that is complete."""
    says(ALL, second)
    with Client(daemon.path) as client, pytest.raises(StorageError if second else ConnectionLostError):
        create_backup(client, tmp_path / "backup")
    assert (tmp_path / "backup").read_bytes() == WHOLE


def test_a_full_disk_is_told(daemon: ScriptedDaemon, says: Scripted) -> None:
    """With the name of what is full."""
    heard = says(ALL, None)
    with Client(daemon.path) as client, pytest.raises(FileAccessError, match="/dev/full: no space left on device"):
        create_backup(client, Path("/dev/full"))
    assert not any(heard)


def test_no_descriptor_is_left(daemon: ScriptedDaemon, says: Scripted, tmp_path: Path) -> None:
    """However it ends."""
    says(ALL, [RECORDED])
    with Client(daemon.path) as client:
        create_backup(client, tmp_path / "first")
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - descriptors, not paths
        create_backup(client, tmp_path / "second")
        with pytest.raises(FileAccessError):
            create_backup(client, tmp_path / "none" / "third")
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208 - as above; the daemon's may still close
