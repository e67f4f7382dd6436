"""Starting and stopping, whatever is going on (DESIGN 11)."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import ConnectionLostError, KmsError, ShuttingDownError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.audit.verify import read_lines, verify
from kmsd.envelope import conversation
from kmsd.envelope.conversation import Start
from kmsd_client import Client
from kmsd_client.files import decrypt_file, encrypt_file
from tests.support.dev_daemon import STOP_SECONDS, DevDaemon
from tests.support.raw_peer import RawPeer, request


@pytest.fixture
def daemon(short_path: Path, prepared: Path) -> Iterator[DevDaemon]:
    """A running daemon that the test may stop."""
    daemon = DevDaemon(shutil.copytree(prepared, short_path / "d"))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


def check_trail(daemon: DevDaemon) -> None:
    """Whole, with nothing open, and its last record says that the daemon stopped."""
    assert verify(read_lines(io.BytesIO(daemon.audit_log.read_bytes()))).open_intents == ()
    assert daemon.records()[-1]["eventName"] == "Stop"


def keep_asking(daemon: DevDaemon, ended: list[KmsError | BaseException], made: list[str]) -> None:
    """Make one key after the other until that ends with an error."""
    try:
        with daemon.client() as client:
            while True:
                made.append(client.create_key().key_metadata.key_id)
    except KmsError as error:
        ended.append(error)
    except BaseException as error:  # noqa: BLE001 - for the test's own thread to look at
        ended.append(error)


def test_a_stop_lets_requests_in_flight_end(daemon: DevDaemon) -> None:
    """Who was told of a key has it after the restart; who was not told got a clear error."""
    ended: list[KmsError | BaseException] = []
    made: list[str] = []
    threads = [threading.Thread(target=keep_asking, args=(daemon, ended, made)) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(made) < 10:
        time.sleep(0.01)
    daemon.stop()
    for thread in threads:
        thread.join()

    assert [error for error in ended if not isinstance(error, ConnectionLostError | ShuttingDownError)] == []
    check_trail(daemon)
    daemon.start()
    with daemon.client() as client:
        for key_id in made:
            client.encrypt(key_id=key_id, plaintext=b"works")
    daemon.stop()


def test_pipelined_requests_are_answered_before_the_stop(daemon: DevDaemon) -> None:
    """Those that were read; every answer is whole."""
    with RawPeer(daemon.socket) as peer:
        peer.send(b"".join(request(number, "CreateKey", {}) for number in range(1, 31)))
        first = peer.reply()
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        answers = [first]
        while (answer := peer.reply()) is not None:
            answers.append(answer)
    daemon.stop()

    assert {answer["id"] for answer in answers if answer} == set(range(1, 31))
    made = {answer["result"]["KeyMetadata"]["Arn"] for answer in answers if answer and "result" in answer}
    created = {
        one["resources"][0]["ARN"]
        for one in daemon.records()
        if one["eventName"] == "CreateKey" and one["eventType"] != "ApiCallIntent" and "errorCode" not in one
    }
    assert made == created
    check_trail(daemon)


def test_a_stop_lets_a_file_end(daemon: DevDaemon, short_path: Path) -> None:
    """A file under way is finished when its client goes on within the grace period."""
    with daemon.client() as client:
        key = client.create_key().key_metadata.arn
        response, [descriptor] = client.call_with_descriptors(ENCRYPT_FILE, EncryptFileRequest(key_id=key))
        reading, writing = os.pipe()
        target = short_path / "F.kms"
        with target.open("wb") as output, socket.socket(fileno=descriptor) as worker:
            socket.send_fds(worker, [conversation.encode(Start())], [reading, output.fileno()])
            os.close(reading)
            os.write(writing, b"first ")
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert daemon.process.poll() is None
            os.write(writing, b"second")
            os.close(writing)
            report = conversation.decode_report(worker.recv(conversation.MAX_DATAGRAM_BYTES))
    daemon.stop()

    assert response.header == target.read_bytes()[: len(response.header)]
    assert report.done is not None
    assert report.done.plaintext_bytes == 12
    check_trail(daemon)
    daemon.start()
    with daemon.client() as client:
        decrypt_file(client, target, short_path / "F")
    assert (short_path / "F").read_bytes() == b"first second"
    daemon.stop()


def test_a_stop_does_not_wait_for_a_file_for_ever(short_path: Path, prepared: Path) -> None:
    """A client that never goes on is cut off after the grace period, told so, and it is on record."""
    daemon = DevDaemon(shutil.copytree(prepared, short_path / "d"), settings="shutdown_grace_seconds = 0.3\n")
    daemon.start()
    try:
        with daemon.client() as client:
            key = client.create_key().key_metadata.arn
            _, [descriptor] = client.call_with_descriptors(ENCRYPT_FILE, EncryptFileRequest(key_id=key))
            reading, writing = os.pipe()
            with (short_path / "F.kms").open("wb") as output, socket.socket(fileno=descriptor) as worker:
                socket.send_fds(worker, [conversation.encode(Start())], [reading, output.fileno()])
                began = time.monotonic()
                daemon.stop()
                assert time.monotonic() - began < STOP_SECONDS / 2
                said = worker.recv(conversation.MAX_DATAGRAM_BYTES)
            os.close(reading)
            os.close(writing)
    finally:
        daemon.end()

    assert not said or conversation.decode_report(said).error is not None
    check_trail(daemon)
    end = daemon.records()[-2]
    assert (end["eventType"], end["eventName"]) == ("FileEnd", "EncryptFile")
    assert end["errorCode"]


def test_nothing_is_left_behind_by_a_stop(daemon: DevDaemon) -> None:
    """No process and no socket; a client says what is the matter."""
    with daemon.client() as client:
        client.create_key()
    children = daemon.processes()[1:]
    daemon.stop()

    assert children
    assert not daemon.socket.exists()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    with pytest.raises(ConnectionLostError, match="No such file or directory"), Client(daemon.socket) as client:
        client.status()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_while_it_starts_ends_it_well(short_path: Path, prepared: Path, number: signal.Signals) -> None:
    """Without a traceback, at whatever moment after Python itself has started."""
    daemon = DevDaemon(shutil.copytree(prepared, short_path / "d"))
    for delay in (0.0, 0.1, 0.2):
        daemon.launch()
        while len(daemon.processes()) == 1:  # until it has forked the zygote
            time.sleep(0.005)
        time.sleep(delay)
        assert daemon.process is not None
        daemon.process.send_signal(number)
        code = daemon.process.wait(STOP_SECONDS)
        assert "Traceback" not in daemon.said()
        assert code in {0, 128 + number, -number}


def test_a_second_daemon_on_the_same_directory_is_refused(daemon: DevDaemon) -> None:
    """With a clear message, and without harm to the first."""
    second = DevDaemon(daemon.directory)
    second._errors = daemon.directory.with_name("second.err")
    second.launch()
    assert second.process is not None

    assert second.process.wait(STOP_SECONDS) == 1
    assert "Traceback" not in second.said()
    [error] = [line for line in second.said().splitlines() if "error" in line]
    assert error.startswith("kmsd: error: ")
    assert "another process" in error
    with daemon.client() as client:
        client.create_key()
    daemon.stop()
    check_trail(daemon)


def test_a_socket_that_nobody_serves_is_replaced(daemon: DevDaemon) -> None:
    """After a kill it is still there."""
    daemon.kill()
    assert daemon.socket.is_socket()
    daemon.start()
    with daemon.client() as client:
        assert client.status().state == "unsealed"
    daemon.stop()


def test_what_is_no_socket_is_not_replaced(daemon: DevDaemon) -> None:
    """A file in the socket's place is somebody's; the start says what is wrong."""
    daemon.stop()
    daemon.socket.write_text("mine")
    daemon.launch()
    assert daemon.process is not None

    assert daemon.process.wait(STOP_SECONDS) == 1
    assert daemon.said().splitlines()[-1].startswith("kmsd: error: ")
    assert daemon.socket.read_text() == "mine"


@pytest.mark.parametrize("damage", ["row", "log", "garbage", "pin"])
def test_damage_is_told_at_the_start(daemon: DevDaemon, damage: str) -> None:
    """A changed store, trail or PIN: no traceback, one line of error, exit code 1."""
    with daemon.client() as client:
        client.create_key()
    daemon.stop()
    if damage == "log":
        lines = daemon.audit_log.read_bytes().splitlines(keepends=True)
        daemon.audit_log.write_bytes(b"".join(lines[:1] + lines[2:]))
    elif damage == "garbage":
        (daemon.directory / "store.sqlite").write_bytes(b"no database" * 1000)
    elif damage == "pin":
        (daemon.directory / "token" / "pin").write_text("1" * 32)
    else:
        change_settings(daemon.directory / "store.sqlite")
    daemon.launch()
    assert daemon.process is not None

    assert daemon.process.wait(STOP_SECONDS) == 1
    assert "Traceback" not in daemon.said()
    assert daemon.said().splitlines()[-1].startswith("kmsd: error: ")


def change_settings(store: Path) -> None:
    """Change one byte of the account that stands in the store."""
    data = store.read_bytes()
    name = b"account"
    assert data.count(name) >= 1
    position = data.index(name) + len(name) + 3
    changed = bytearray(data)
    changed[position] = ord("1") if changed[position] != ord("1") else ord("2")
    store.write_bytes(changed)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_daemon_outlives_its_helpers(daemon: DevDaemon, short_path: Path) -> None:
    """Killed workers are replaced; without the zygote files are refused, clearly, and everything else goes on."""
    source = short_path / "F"
    source.write_bytes(b"text")
    pids = daemon.processes()
    [zygote] = [pid for pid in pids if parent_of(pid) == daemon.pid]
    workers = [pid for pid in pids if parent_of(pid) == zygote]
    with daemon.client() as client:
        key = client.create_key().key_metadata.arn
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        for number, _ in enumerate(workers):
            with contextlib.suppress(KmsError):
                encrypt_file(client, source, short_path / f"{number}.kms", key_id=key)
        encrypt_file(client, source, short_path / "F.kms", key_id=key)
        os.kill(zygote, signal.SIGKILL)
        said = ""
        deadline = time.monotonic() + STOP_SECONDS
        while "start the daemon anew" not in said:  # a spare worker may serve a file, or die of it, before it has died
            assert time.monotonic() < deadline, said
            try:
                encrypt_file(client, source, short_path / "again.kms", key_id=key)
            except KmsError as error:
                said = error.message
            else:
                (short_path / "again.kms").unlink()
        client.encrypt(key_id=key, plaintext=b"text")
    daemon.stop()
    check_trail(daemon)
