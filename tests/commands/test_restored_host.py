"""`kmsd restore` as root: a host is lost, and another one is set up out of its backup."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.private_host import PrivateHost

pytestmark = pytest.mark.root

_SCRIPTS = Path(sys.executable).parent
_SECONDS = 60


@contextlib.contextmanager
def served(host: PrivateHost) -> Iterator[None]:
    """A daemon that was started by hand."""
    errors = host.top / "serve.err"
    with errors.open("wb") as stream:
        command = host.command(str(_SCRIPTS / "kmsd"), "serve")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + _SECONDS
        while not host.path("/run/kmsd/kmsd.sock").exists():
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline, errors.read_text()
            time.sleep(0.01)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(_SECONDS) == 0, errors.read_text()


def in_shell(host: PrivateHost, *lines: str) -> str:
    """What these print on the host, one after the other."""
    ran = host.run("sh", "-ec", "\n".join([f"PATH={_SCRIPTS}:$PATH", *lines]))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_lost_host_comes_back_on_another(module_path: Path) -> None:
    """With a token of its own and all that `kmsd init` makes; the keys have the ARNs they had."""
    shared, first, second = module_path / "shared", PrivateHost(module_path / "a"), PrivateHost(module_path / "b")
    shared.mkdir(mode=0o700)
    in_shell(
        first,
        f"kmsd init --non-interactive --recovery shares --share-directory {shared}",
    )
    with served(first):
        arn = in_shell(
            first,
            f"cd {shared}",
            "kms key create --alias alias/x",
            "echo kept > kept",
            "kms encrypt -k alias/x kept > /dev/null",
            "rm kept",
            "kmsd backup backup > /dev/null",
        )
        verified = in_shell(first, f"cd {shared}", "kmsd backup --verify backup")
    assert verified.startswith("backup: whole, opened by the token\n")

    shares = f"--share-file {shared}/kmsd-share-1-of-3.txt --share-file {shared}/kmsd-share-3-of-3.txt"
    refused = second.run(str(_SCRIPTS / "kmsd"), "restore", str(shared / "backup"))
    assert refused.returncode == 1
    assert "there is no token in /var/lib/kmsd/token" in refused.stderr
    restored = in_shell(second, f"cd {shared}", f"kmsd restore backup --token {shares}")
    assert "made  /var/lib/kmsd/store.sqlite out of backup\n" in restored
    assert "made  settings /etc/kmsd/kmsd.toml\n" in restored
    owners = second.run("stat", "-c", "%U %a", "/var/lib/kmsd/store.sqlite", "/var/log/kmsd/audit.log").stdout
    assert owners.split("\n") == ["kmsd 600", "kmsd 600", ""]

    with served(second):
        told = in_shell(
            second, f"cd {shared}", "kms decrypt kept.kms > /dev/null", "cat kept", f"kms key describe {arn.strip()}"
        )
        assert told.startswith("kept\n")
        assert arn.strip() in told
        assert "RestoreStore" in in_shell(second, "kms audit tail")
    again = second.run(str(_SCRIPTS / "kmsd"), "restore", str(shared / "backup"))
    assert again.returncode == 1
    assert "/var/lib/kmsd/store.sqlite is there, and a restore replaces nothing" in again.stderr
    assert "`kmsd init` goes on" in again.stderr
