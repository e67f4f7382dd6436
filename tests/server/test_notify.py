"""What a service manager is told, by the socket that it listens on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.server.notify import Notifier, NotifyError
from tests.support.manager import Manager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Manager]:
    address = f"@{short_path.name}" if request.param == "abstract" else str(short_path / "notify")
    manager = Manager(address)
    yield manager
    manager.close()


def test_each_message_is_one_datagram_of_assignments(manager: Manager) -> None:
    """In the words of sd_notify(3)."""
    notifier = manager.notifier()
    notifier.starting(90)
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=90000000", "STATUS=starting"]
    notifier.ready("unsealed")
    assert manager.heard() == ["READY=1", "STATUS=unsealed"]
    notifier.status("sealed")
    assert manager.heard() == ["STATUS=sealed"]
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]
    notifier.stopping(1.5)
    assert manager.heard() == ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=1500000"]


def test_a_reload_has_the_time_on_the_monotonic_clock(manager: Manager) -> None:
    """By which the manager tells this reload from an earlier one."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.connect(manager.socket.getsockname())
    with sock:
        Notifier(sock, monotonic=lambda: 12.5).reloading()
    assert manager.heard() == ["RELOADING=1", "MONOTONIC_USEC=12500000"]


def test_no_text_adds_an_assignment(manager: Manager) -> None:
    """Nor is a file's name that is no text in the way of what has to be told."""
    notifier = manager.notifier()
    notifier.ready("one\nSTOPPING=1")
    assert manager.heard() == ["READY=1", "STATUS=one STOPPING=1"]
    notifier.ready(os.fsdecode(b"bad \xff.json"))
    assert manager.heard() == ["READY=1", "STATUS=bad \\udcff.json"]


def test_the_variables_are_removed(manager: Manager) -> None:
    """They are for this process, and nothing that it starts."""
    environment = manager.environment | {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "OTHER": "stays"}
    Notifier.from_environment(environment).close()
    assert environment == {"OTHER": "stays"}


def test_without_a_manager_nothing_is_told() -> None:
    """And no sign of life is wanted, whatever other variables say."""
    environments: list[dict[str, str]] = [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "1000000"}]
    for environment in environments:
        notifier = Notifier.from_environment(environment)
        notifier.ready("unsealed")
        notifier.stopping(1)
        assert notifier.watchdog_seconds is None


def test_a_manager_that_does_not_listen_holds_up_nobody(manager: Manager) -> None:
    """Whether its queue is full or it is gone: what it misses is lost."""
    notifier = manager.notifier()
    for _ in range(10_000):  # a queue has some hundred places
        notifier.alive()
    manager.socket.close()
    notifier.ready("unsealed")


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@kmsd-test-nobody", "x" * 200, "vsock:2:1234"])
def test_a_manager_that_cannot_be_reached_is_told(address: str) -> None:
    """Once it announced itself, a service that it never hears of would be ended again and again."""
    with pytest.raises(NotifyError, match="cannot be reached"):
        Notifier.from_environment({"NOTIFY_SOCKET": address})


def test_a_watchdog_is_asked_for_in_microseconds(manager: Manager) -> None:
    """For this process, or for whoever reads it."""
    variables: list[dict[str, str]] = [{}, {"WATCHDOG_PID": str(os.getpid())}]
    for pid in variables:
        assert manager.notifier(WATCHDOG_USEC="30000000", **pid).watchdog_seconds == 30


@pytest.mark.parametrize(
    "variables",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "1e6"},
        {"WATCHDOG_USEC": str(2**64 - 1)},
        {"WATCHDOG_USEC": "9" * 5000},
    ],
    ids=lambda variables: str(variables)[:40],
)
def test_no_watchdog_is_kept_that_nobody_asked_for(manager: Manager, variables: dict[str, str]) -> None:
    """Another process's, never, and nonsense."""
    assert manager.notifier(**variables).watchdog_seconds is None
