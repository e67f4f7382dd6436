"""Finding the socket and judging who serves it."""

import os
import pwd
from pathlib import Path

import pytest

from kmsd_client._transport import SYSTEM_SOCKET, find_socket, is_trusted


def test_the_given_path_comes_first(tmp_path: Path) -> None:
    """Then KMSD_SOCKET."""
    environment = {"KMSD_SOCKET": "/from/environment", "XDG_RUNTIME_DIR": str(tmp_path)}

    assert find_socket(Path("/given"), environment) == "/given"
    assert find_socket(None, environment) == "/from/environment"


@pytest.mark.skipif(Path(SYSTEM_SOCKET).exists(), reason="a system daemon runs here")
def test_the_user_instance_is_found_when_there_is_no_system_daemon(tmp_path: Path) -> None:
    """And the system's path is the answer, and what an error names, when there is neither."""
    environment = {"KMSD_SOCKET": "", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert find_socket(None, environment) == SYSTEM_SOCKET
    (tmp_path / "kmsd").mkdir()
    (tmp_path / "kmsd" / "kmsd.sock").touch()

    assert find_socket(None, environment) == str(tmp_path / "kmsd" / "kmsd.sock")
    assert find_socket(None, {}) == SYSTEM_SOCKET


@pytest.mark.parametrize(
    ("server", "own", "trusted"), [(0, 1000, True), (1000, 1000, True), (1001, 1000, False), (1000, 0, False)]
)
def test_root_and_oneself_are_trusted(server: int, own: int, trusted: bool) -> None:
    """Nobody else, also not by root."""
    assert trusted == is_trusted(server, own=own)


def test_the_services_user_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its uid on this host."""
    kmsd = pwd.struct_passwd(("kmsd", "x", 977, 977, "", "/", "/sbin/nologin"))
    monkeypatch.setattr(pwd, "getpwnam", {"kmsd": kmsd}.__getitem__)

    assert is_trusted(977, own=1000)
    assert not is_trusted(978, own=1000)
    assert os.geteuid() != 978
