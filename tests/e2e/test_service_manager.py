"""The daemon as systemd runs it: on a socket that stays, telling how it is, watched, read anew, restarted."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import AccessDeniedError, KmsError
from kmsd.hsm.softhsm import find_module
from tests.support.faulty_token import build
from tests.support.host_daemon import HostDaemon
from tests.support.service_manager import ServiceManager

WATCHDOG_SECONDS = 0.6
DENY_RANDOM = """{"Version": "2012-10-17", "Statement": [
    {"Effect": "Deny", "Principal": "*", "Action": "kms:GenerateRandom", "Resource": "*"}]}"""

Manage = Callable[..., ServiceManager]


@pytest.fixture(scope="module")
def module(module_path: Path) -> Path:
    return build(module_path)


@pytest.fixture
def manage(short_path: Path, prepared: Path, module: Path) -> Iterator[Manage]:
    """Starts a daemon under a manager."""
    started: list[ServiceManager] = []

    def start(**options: float) -> ServiceManager:
        daemon = HostDaemon(shutil.copytree(prepared, short_path / "d"), module, find_module())
        started.append(ServiceManager(daemon, short_path, **options))
        started[-1].start()
        return started[-1]

    yield start
    for manager in started:
        manager.close()


def test_it_tells_how_it_is_from_start_to_stop(manage: Manage) -> None:
    """Ready when unsealed; stopping with the time it may need; the socket's name stays, since it is not its own."""
    manager = manage()
    assert manager.heard[-1]["STATUS"] == "unsealed"

    manager.daemon.stop()

    stopping = manager.wait_for(lambda said: said.get("STOPPING") == "1")
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 0
    assert manager.daemon.socket.is_socket()


def test_a_restart_under_load_loses_no_request(manage: Manage) -> None:
    """What was begun is answered; what was not is asked again, and served by the next daemon on the same socket."""
    manager = manage()
    with manager.daemon.client() as client:
        key = client.create_key().key_metadata.key_id
    over = threading.Event()
    failed: list[KmsError] = []
    made: list[str] = []

    def load(number: int) -> None:
        with manager.daemon.client() as client:
            while not over.is_set():
                try:
                    client.decrypt(ciphertext_blob=client.encrypt(key_id=key, plaintext=b"x").ciphertext_blob)
                    if number % 2:
                        made.append(client.create_key().key_metadata.key_id)
                except KmsError as error:
                    failed.append(error)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.2)
        manager.restart()
    over.set()
    for thread in threads:
        thread.join()
    manager.daemon.stop()

    assert failed == []
    created = [
        record
        for record in manager.daemon.events("CreateKey")
        if record["eventType"] == "ApiCallOutcome" and "errorCode" not in record
    ]
    # Nobody asked twice for what had been done: each key made is one that somebody was told of.
    assert len(created) == len(made) + 1


def test_its_start_is_recorded_with_its_settings(manage: Manage) -> None:
    """By digest, which is the same as long as they are."""
    manager = manage()
    manager.restart()
    manager.daemon.stop()

    digests = [record["additionalEventData"]["configuration"] for record in manager.daemon.events("Start")[-2:]]
    assert len(digests[0]) == hashlib.sha256().digest_size * 2
    assert digests[0] == digests[1]


def test_the_host_policy_is_read_anew_on_request(manage: Manage) -> None:
    """It is in force from then on, and recorded; the manager hears when it is done."""
    manager = manage()
    daemon = manager.daemon
    policy = daemon.directory / "policies" / "deny.json"
    with daemon.client() as client:
        client.generate_random(number_of_bytes=1)
        policy.write_text(DENY_RANDOM)
        client.generate_random(number_of_bytes=1)
        os.kill(daemon.pid, signal.SIGHUP)
        assert int(manager.wait_for(lambda said: said.get("RELOADING") == "1")["MONOTONIC_USEC"]) > 0
        assert manager.wait_for(lambda said: said.get("READY") == "1")["STATUS"] == "unsealed"

        with pytest.raises(AccessDeniedError):
            client.generate_random(number_of_bytes=1)
    before = daemon.events("Start")[-1]["additionalEventData"]["hostPolicy"]
    [reloaded] = daemon.events("ReloadHostPolicy")
    assert reloaded["additionalEventData"]["hostPolicy"] != before
    daemon.stop()


@pytest.mark.parametrize("fault", ["malformed", "open to others"])
def test_a_host_policy_that_is_not_valid_leaves_the_old_one(manage: Manage, fault: str) -> None:
    """And both the log and the status say why."""
    manager = manage()
    daemon = manager.daemon
    policy = daemon.directory / "policies" / "deny.json"
    policy.write_text("{" if fault == "malformed" else DENY_RANDOM)
    policy.chmod(0o644 if fault == "malformed" else 0o666)
    os.kill(daemon.pid, signal.SIGHUP)

    told = manager.wait_for(lambda said: said.get("READY") == "1")

    assert "the old host policy is in force" in told["STATUS"]
    assert "deny.json" in told["STATUS"]
    with daemon.client() as client:
        client.generate_random(number_of_bytes=1)
    assert daemon.events("ReloadHostPolicy") == []
    daemon.stop()
    assert "host_policy_not_reloaded" in daemon.said()


def test_a_healthy_daemon_feeds_the_watchdog(manage: Manage) -> None:
    """Again and again."""
    manager = manage(watchdog_seconds=WATCHDOG_SECONDS)
    for _ in range(3):
        manager.wait_for(lambda said: said.get("WATCHDOG") == "1")
    manager.daemon.stop()


def test_a_zygote_that_does_not_answer_stops_the_feeding(manage: Manage) -> None:
    """It is named; when it answers again, all is well again."""
    manager = manage(watchdog_seconds=WATCHDOG_SECONDS)
    [zygote] = [pid for pid in manager.daemon.processes()[1:] if parent_of(pid) == manager.daemon.pid]
    os.kill(zygote, signal.SIGSTOP)
    manager.wait_for(lambda said: "no answer from zygote" in said.get("STATUS", ""))
    heard = len(manager.heard)
    wait_for_hungry_turns(manager, 3)
    assert all("WATCHDOG" not in said for said in manager.heard[heard:])

    os.kill(zygote, signal.SIGCONT)

    manager.wait_for(lambda said: said.get("WATCHDOG") == "1")
    manager.wait_for(lambda said: said.get("STATUS") == "unsealed")
    manager.daemon.stop()
    assert '"no_answer_from": ["zygote"]' in manager.daemon.said()


def test_a_zygote_that_ended_stops_the_feeding(manage: Manage) -> None:
    """For good: the manager has to start the daemon anew."""
    manager = manage(watchdog_seconds=WATCHDOG_SECONDS)
    [zygote] = [pid for pid in manager.daemon.processes()[1:] if parent_of(pid) == manager.daemon.pid]
    os.kill(zygote, signal.SIGKILL)
    manager.wait_for(lambda said: "no answer from zygote" in said.get("STATUS", ""))
    wait_for_hungry_turns(manager, 3)
    manager.daemon.stop()


def wait_for_hungry_turns(manager: ServiceManager, count: int) -> None:
    """Wait until the watchdog was not fed so often; the status says so once, the log each time."""
    deadline = time.monotonic() + 30
    while manager.daemon.said().count("watchdog_not_fed") < count:
        assert time.monotonic() < deadline, manager.daemon.said()
        time.sleep(0.01)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
