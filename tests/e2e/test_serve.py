"""`kmsd serve` from its start to its stop, with a service manager that is told of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import AccessDeniedError, KmsError, MalformedPolicyDocumentError, SealedError
from kmsd.processes import landlock
from kmsd.server.listener import bind
from kmsd_client import Client
from kmsd_client.unsealing import unseal
from tests.support.dev_daemon import STOP_SECONDS
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user
from tests.support.served_daemon import ServedDaemon

MakeDaemon = Callable[..., ServedDaemon]
# A uid that passwd does not have.
STRANGER = 54321
DENY = (
    '{"Version": "2012-10-17", "Statement": [{"Sid": "No randomness", "Effect": "Deny", "Principal": "*", '
    '"Action": "kms:GenerateRandom", "Resource": "*"}]}'
)


@pytest.fixture
def make_daemon(short_path: Path, prepared: Path) -> Iterator[MakeDaemon]:
    """Makes a daemon that is not yet started, and ends it."""
    made: list[ServedDaemon] = []
    short_path.chmod(0o755)

    def make(**options: object) -> ServedDaemon:
        made.append(ServedDaemon(shutil.copytree(prepared, short_path / "d"), **options))  # type: ignore[arg-type] # of any test
        return made[-1]

    yield make
    for daemon in made:
        daemon.end()


def ids_of(pid: int) -> dict[str, list[int]]:
    """Users, groups and capabilities of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {name: [int(word) for word in fields[name].split()] for name in ("Uid", "Gid", "Groups")}
    return found | {name: [int(fields[name], 16)] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")}


def random_is_denied(client: Client) -> bool:
    try:
        client.generate_random(number_of_bytes=8)
    except AccessDeniedError:
        return True
    return False


@pytest.mark.root
def test_root_becomes_the_service_s_user_and_serves_all_others(make_daemon: MakeDaemon) -> None:
    """All its processes, for good; the trail has each peer's own uid, and nothing of it needs to be root's."""
    daemon = make_daemon()
    daemon.start()
    for pid in daemon.processes():
        ids = ids_of(pid)
        assert ids["Uid"] == [DAEMON_UID] * 4
        assert ids["Gid"] == [DAEMON_GID] * 4
        assert ids["Groups"] == sorted(os.getgrouplist("daemon", DAEMON_GID))
        assert [ids[name] for name in ("CapPrm", "CapEff", "CapAmb")] == [[0]] * 3
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o666
    assert daemon.socket.parent.stat().st_uid == DAEMON_UID

    def ask() -> str:
        with Client(daemon.socket) as client:
            return client.status().state

    for uid in (0, DAEMON_UID, STRANGER):
        assert as_user(uid, uid, ask) == "unsealed"
    with daemon.client() as client:
        key = client.create_key().key_metadata.arn
        client.encrypt(key_id=key, plaintext=b"text")
    identities = [record["userIdentity"] for record in daemon.events("Status")]
    assert [(one["uid"], one["gid"], one["userName"]) for one in identities] == [
        (0, 0, "root"),
        (DAEMON_UID, DAEMON_GID, "daemon"),
        (STRANGER, STRANGER, None),
    ]
    daemon.stop()
    assert not daemon.socket.exists()
    assert {path.stat().st_uid for path in daemon.directory.iterdir()} == {DAEMON_UID}


def test_a_user_serves_as_itself(make_daemon: MakeDaemon) -> None:
    """Whoever is not root becomes nobody; the manager hears of the start, the state and the stop."""
    daemon = make_daemon()
    daemon.socket.parent.mkdir()
    if os.getuid() == 0:
        os.chown(daemon.socket.parent, DAEMON_UID, DAEMON_GID)
    daemon.launch(as_service_user=True)
    assert daemon.until("READY=1") == ["READY=1", "STATUS=unsealed"]
    assert daemon.heard[0][1] == "STATUS=starting"
    user = DAEMON_UID if os.getuid() == 0 else os.getuid()
    assert ids_of(daemon.pid)["Uid"] == [user] * 4
    answer = as_user(user, user, lambda: str(daemon.state())) if os.getuid() == 0 else daemon.state()
    assert answer == "unsealed"
    daemon.stop()
    assert daemon.manager.waiting()[-1] == ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=28000000"]
    assert not daemon.socket.exists()


@pytest.mark.root
def test_a_socket_in_a_directory_of_root_s_is_left_and_replaced(make_daemon: MakeDaemon) -> None:
    """The daemon may not remove it; the next start finds that nobody serves it."""
    daemon = make_daemon()
    daemon.socket.parent.mkdir(mode=0o755)
    for _ in range(2):
        daemon.start()
        assert daemon.state() == "unsealed"
        daemon.stop()
        assert daemon.socket.exists()


def listening(path: Path) -> socket.socket:
    path.parent.mkdir()
    return bind(path, 0o666)


def test_no_request_is_lost_while_the_daemon_is_started_anew(make_daemon: MakeDaemon, short_path: Path) -> None:
    """Clients that ask without pause see three restarts behind one socket as a delay; the socket stays."""
    path = short_path / "run" / "kmsd.sock"
    failures: list[KmsError] = []
    answered = [0, 0, 0, 0]
    over = threading.Event()
    with listening(path) as sock:
        daemon = make_daemon(listening=sock)
        daemon.start()
        with daemon.client() as client:
            key = client.create_key().key_metadata.arn
            blob = client.encrypt(key_id=key, plaintext=b"text").ciphertext_blob

        def ask(number: int) -> None:
            while not over.is_set():
                try:
                    with daemon.client() as client:
                        for _ in range(50 if number % 2 else 1):  # some keep their connection
                            assert bytes(client.decrypt(ciphertext_blob=blob).plaintext) == b"text"
                            answered[number] += 1
                except KmsError as error:
                    failures.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(answered))]
        for thread in threads:
            thread.start()
        for _ in range(3):
            before = list(answered)
            while any(now <= then + 20 for now, then in zip(answered, before, strict=True)) and not failures:
                time.sleep(0.005)
            daemon.stop()
            assert path.is_socket()
            daemon.start()
        over.set()
        for thread in threads:
            thread.join()
        assert [str(error) for error in failures] == []
        daemon.stop()
        assert path.is_socket()


def test_the_host_policy_is_read_anew_on_request(make_daemon: MakeDaemon) -> None:
    """A valid one decides at once and is on record; another leaves the one before in force, and that is told."""
    daemon = make_daemon()
    daemon.start()
    policy = daemon.policies / "50-test.json"

    def reload() -> list[str]:
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.until("RELOADING=1")
        return daemon.until("READY=1")

    with daemon.client() as client:
        assert not random_is_denied(client)
        draft = daemon.policies / "draft"
        draft.write_text(DENY)
        draft.rename(policy)
        assert not random_is_denied(client)
        assert reload() == ["READY=1", "STATUS=unsealed"]
        assert random_is_denied(client)
        [first] = daemon.events("ReloadHostPolicy")
        assert f'"digest": "{first["additionalEventData"]["hostPolicy"]}"' in daemon.said()

        policy.write_text("{")
        ready, status = reload()
        assert ready == "READY=1"
        assert status.startswith("STATUS=unsealed; the old host policy is in force: host policy 50-test.json: ")
        assert random_is_denied(client)
        assert "host_policy_not_reloaded" in daemon.said()
        assert len(daemon.events("ReloadHostPolicy")) == 1

        with pytest.raises(MalformedPolicyDocumentError, match=r"host policy 50-test\.json: line 1 column 2: "):
            client.reload_host_policy()
        assert random_is_denied(client)

        policy.unlink()
        (daemon.policies / os.fsdecode(b"\xff.json")).write_text("{")
        assert "the old host policy is in force" in reload()[1]
        (daemon.policies / os.fsdecode(b"\xff.json")).unlink()
        assert reload() == ["READY=1", "STATUS=unsealed"]
        assert not random_is_denied(client)
        policy.write_text(DENY)
        assert client.reload_host_policy().documents == ["00-default.json", "50-test.json"]
        assert random_is_denied(client)
    # Those that nobody asked for by name; the client's have intents and outcomes.
    second = [one for one in daemon.events("ReloadHostPolicy") if one["eventType"] == "ServiceEvent"][1]
    assert first["additionalEventData"]["hostPolicy"] != second["additionalEventData"]["hostPolicy"]
    daemon.stop()


def test_a_policy_folder_that_is_new_needs_a_restart(make_daemon: MakeDaemon) -> None:
    """The daemon may open what was there when it confined itself; it says so, and goes on as before."""
    try:
        landlock.version()
    except landlock.LandlockUnavailableError as error:
        pytest.skip(str(error))
    daemon = make_daemon()
    daemon.policies.rmdir()
    daemon.start()
    daemon.policies.mkdir()
    (daemon.policies / "50-test.json").write_text(DENY)
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.until("RELOADING=1")
    told = daemon.until("READY=1")[1]
    assert told.endswith("if the folder was made or moved since kmsd started, restart kmsd")
    with daemon.client() as client:
        assert not random_is_denied(client)
    daemon.stop()
    daemon.start()
    with daemon.client() as client:
        assert random_is_denied(client)
    daemon.stop()


def test_without_a_pin_it_serves_sealed_until_an_administrator_brings_it(make_daemon: MakeDaemon) -> None:
    """The manager is told what is missing."""
    daemon = make_daemon(pin="")
    daemon.launch()
    assert daemon.until("READY=1") == ["READY=1", "STATUS=sealed: an administrator has to run `kms unseal`"]
    with daemon.client() as client, pytest.raises(SealedError):
        client.generate_random(number_of_bytes=8)
    ran = daemon.kms("unseal", "--pin-file", str(daemon.pin_file))
    assert (ran.returncode, ran.stdout) == (0, b"kmsd is unsealed\n"), ran.stderr
    assert daemon.state() == "unsealed"
    daemon.stop()


def test_a_missing_credential_does_not_prevent_a_start(make_daemon: MakeDaemon, short_path: Path) -> None:
    """It is missed in words; with the credential the next start is unsealed."""
    credentials = short_path / "credentials"
    credentials.mkdir(mode=0o755)
    daemon = make_daemon(pin="credential:hsm-pin", variables={"CREDENTIALS_DIRECTORY": str(credentials)})
    daemon.start()
    with daemon.client() as client:
        status = client.status()
        assert status.state == "sealed"
        assert "the credential 'hsm-pin' was not passed to kmsd" in (status.unseal_failure or "")
    daemon.stop()
    shutil.copy2(daemon.pin_file, credentials / "hsm-pin")
    if os.getuid() == 0:
        os.chown(credentials / "hsm-pin", DAEMON_UID, DAEMON_GID)
    daemon.start()
    assert daemon.state() == "unsealed"
    daemon.stop()


def test_a_pin_file_that_was_replaced_is_read(make_daemon: MakeDaemon) -> None:
    """What the daemon may open are folders: also when the file in one is another by now."""
    daemon = make_daemon()
    right = daemon.pin_file.with_name("right")
    shutil.copy2(daemon.pin_file, right)
    if os.getuid() == 0:
        os.chown(right, DAEMON_UID, DAEMON_GID)
    daemon.pin_file.write_text("")
    daemon.start()
    with daemon.client() as client:
        assert "is empty" in (client.status().unseal_failure or "")
        right.rename(daemon.pin_file)
        unseal(client, None)
        assert client.status().state == "unsealed"
    daemon.stop()


def test_the_watchdog_is_not_fed_while_a_part_is_wedged(make_daemon: MakeDaemon) -> None:
    """The part is named; when it goes on, so does the feeding, and the status follows."""
    daemon = make_daemon(variables={"WATCHDOG_USEC": "200000"})
    daemon.start()
    daemon.until("WATCHDOG=1")
    zygote = next(pid for pid in daemon.processes() if Path(f"/proc/{pid}/comm").read_text() == "kmsd-zygote\n")
    os.kill(zygote, signal.SIGSTOP)
    daemon.until("STATUS=not well: no answer from zygote")
    daemon.manager.waiting()
    assert daemon.manager.heard_while_blocked(0.5) == []
    os.kill(zygote, signal.SIGCONT)
    daemon.until("WATCHDOG=1")
    daemon.until("STATUS=unsealed")
    with daemon.client() as client:
        client.seal()
        daemon.until("STATUS=sealed: an administrator has to run `kms unseal`")
    daemon.stop()


def test_wrong_settings_are_a_usage_error(make_daemon: MakeDaemon) -> None:
    """With an exit code that is not tried again: another start changes nothing."""
    daemon = make_daemon(module="")
    assert daemon.refusal() == (
        2,
        "kmsd: error: hsm.module names no PKCS#11 library: run `kmsd init`, or set it\n",
    )
    daemon.settings["hsm"]["pin"] = "1234"
    daemon.write_settings()
    code, said = daemon.refusal()
    assert code == 2
    assert said.startswith(f"kmsd: error: {daemon.config}: ")
    assert "hsm.pin" in said
    daemon.config.unlink()
    assert daemon.refusal()[0] == 2
    assert not daemon.socket.parent.exists()


def test_a_module_that_is_not_there_is_told_and_does_not_prevent_a_start(make_daemon: MakeDaemon) -> None:
    """It may come with a package that is being upgraded: the daemon waits sealed."""
    daemon = make_daemon(module="/nonexistent/pkcs11.so")
    daemon.start()
    with daemon.client() as client:
        status = client.status()
    assert status.state == "sealed"
    assert "/nonexistent/pkcs11.so" in (status.unseal_failure or "")
    daemon.stop()


def test_a_manager_that_cannot_be_told_prevents_the_start(make_daemon: MakeDaemon) -> None:
    """In one line, before anything was made."""
    daemon = make_daemon(variables={"NOTIFY_SOCKET": "/nonexistent/notify"})
    assert daemon.refusal() == (
        1,
        "kmsd: error: NOTIFY_SOCKET names /nonexistent/notify, which cannot be reached: No such file or directory\n",
    )
    assert not daemon.socket.parent.exists()


def test_a_signal_to_reload_during_the_stop_is_of_no_account(make_daemon: MakeDaemon) -> None:
    """The manager hears of the stop last, and the daemon ends as it should."""
    daemon = make_daemon()
    daemon.start()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.until("STOPPING=1")
    daemon.process.send_signal(signal.SIGHUP)
    # Where the loop is over already, the signal ends it as it ends any program.
    assert daemon.process.wait(STOP_SECONDS) in {0, -signal.SIGHUP}
    daemon.check()
    assert daemon.manager.waiting() == []
