"""`kmsd serve` as a host runs it: a settings file, a service manager, and perhaps a socket and a user of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import kmsd
from kmsd.hsm.softhsm import find_module
from tests.support.dev_daemon import SCRIPTS, START_SECONDS, DevDaemon
from tests.support.host_daemon import toml
from tests.support.manager import Manager
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user

# Where the operating system may have an interpreter like the one of the tests.
_SYSTEM_INTERPRETER = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
# What execv(2) leaves as it is: LISTEN_PID is the process's own number, which nobody knows before it exists.
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "kmsd.sock"}
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServedDaemon(DevDaemon):
    """A daemon on `directory`, which a `kmsd dev` made, with its settings beside it.

    `user` is whom root becomes; without root it is the tests' user. `listening` is a socket that is passed on.
    """

    def __init__(
        self,
        directory: Path,
        *,
        listening: socket.socket | None = None,
        variables: Mapping[str, str] | None = None,
        socket_path: Path | None = None,
        **hsm: Any,
    ) -> None:
        super().__init__(directory)
        self.outside = directory.parent
        self.socket = socket_path or self.outside / "run" / "kmsd.sock"
        self.policies = self.outside / "policy.d"
        self.policies.mkdir()
        self.pin_file = directory / "token" / "pin"
        conf = directory / "token" / "softhsm2.conf"
        # It names the place where the directory was made.
        conf.write_text(f"directories.tokendir = {directory / 'token' / 'tokens'}\nobjectstore.backend = file\n")
        self.settings: dict[str, dict[str, Any]] = {
            "paths": {
                "state": str(directory),
                "audit": str(self.audit_log),
                "socket": str(self.socket),
                "policies": str(self.policies),
            },
            "administrators": {"uids": [os.getuid(), DAEMON_UID]},
            "hsm": {
                "module": str(find_module()),
                "token_label": "kmsd-dev",
                "environment": {"SOFTHSM2_CONF": str(conf)},
                "pin": f"file:{self.pin_file}",
                "writable_paths": [str(directory / "token")],
                **hsm,
            },
        }
        self.config = self.outside / "kmsd.toml"
        self.write_settings()
        if os.getuid() == 0:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, DAEMON_UID, DAEMON_GID)
        self.listening = listening
        self.manager = Manager(str(self.outside / "notify"))
        # The service's user tells it.
        (self.outside / "notify").chmod(0o666)
        self.heard: list[list[str]] = []
        self.variables = dict(variables or {})
        self._interpreter = interpreter()

    def write_settings(self) -> None:
        """Write what `settings` says; everybody may read it."""
        self.config.write_text('user = "daemon"\nshutdown_grace_seconds = 2\n' + toml(self.settings))
        self.config.chmod(0o644)

    def launch(self, *, as_service_user: bool = False) -> None:
        """Start the process, as root or, if that is wanted, as the service's user from the beginning."""
        command = [*self._interpreter, "-m", "kmsd.commands.main", "serve", "--config", str(self.config)]
        passed: tuple[int, ...] = ()
        if self.listening is not None:
            passed = (self.listening.fileno(),)
            command = [self._interpreter[0], "-c", _HAND_OVER, str(passed[0]), *command]
        ids: dict[str, Any] = {}
        if as_service_user and os.getuid() == 0:
            ids = {"user": DAEMON_UID, "group": DAEMON_GID, "extra_groups": []}
        # Safe: else the folder it is started in counts as one with code, which it may read.
        path = os.pathsep.join([str(_packages()), str(_project())])
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=self.outside,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": path,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "PYTHONSAFEPATH": "1",
                }
                | self.manager.environment
                | self.variables,
                pass_fds=passed,
                **ids,
            )

    def wait_until_ready(self) -> None:
        """Wait until the manager hears of it."""
        self.until("READY=1")

    def until(self, assignment: str) -> list[str]:
        """Wait until the manager hears this, and return the whole message; `heard` has what came before."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            while (message := self.manager.next()) is not None:
                self.heard.append(message)
                if assignment in message:
                    return message
            assert self.process.poll() is None, f"kmsd ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, f"{assignment} does not come: {self.heard}\n{self.said()}"
            time.sleep(0.005)

    def end(self) -> None:
        super().end()
        self.manager.close()

    def refusal(self) -> tuple[int, str]:
        """Launch what does not start; its exit code and words."""
        self.launch()
        assert self.process is not None
        return self.process.wait(START_SECONDS), self.said()

    def kms(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return self.run(str(SCRIPTS / "kms"), *words, cwd=self.outside)

    def state(self) -> str:
        """What Status says."""
        with self.client() as client:
            return client.status().state

    def events(self, name: str) -> list[dict[str, Any]]:
        """The records with this name."""
        return [record for record in self.records() if record["eventName"] == name]


def interpreter() -> list[str]:
    """The command of a Python that the service's user may run; skips the test where there is none."""
    if os.getuid() != 0:
        return [sys.executable]
    for python in (Path(sys.executable), _SYSTEM_INTERPRETER):
        if _can_use(python):
            return [str(python)]
    pytest.skip("an ordinary user can run no Python here that has this project: it lies where only root may look")


def _can_use(python: Path) -> bool:
    needed = [python.resolve(), Path(kmsd.__file__), _packages() / "msgspec" / "__init__.py"]
    if not python.exists() or shutil.which(python) is None:
        return False

    def look() -> str:
        return str(all(os.access(path, os.R_OK) for path in needed) and os.access(python, os.X_OK))

    return as_user(DAEMON_UID, DAEMON_GID, look) == "True"


def _packages() -> Path:
    return Path(pytest.__file__).parent.parent


def _project() -> Path:
    return Path(kmsd.__file__).parent.parent
