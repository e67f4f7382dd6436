"""The daemon of a host, as `kmsd serve` runs it, but as whoever runs the tests: a directory of `kmsd dev` is its state.

`python -m tests.support.host_daemon CONFIG` is its process.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from kmsd.config import load_config
from kmsd.hsm.conversation import TokenConfig
from kmsd.server.activation import SocketPaths, inherited_sockets
from kmsd.server.daemon import run_daemon
from kmsd.server.deployment import host
from kmsd.server.listener import bind_all
from kmsd.server.notify import Notifier
from tests.support.dev_daemon import DevDaemon
from tests.support.faulty_token import FaultyToken


class HostDaemon(DevDaemon):
    """A daemon with the token in `directory`/token behind `module`; `hsm` are settings of that section."""

    def __init__(self, directory: Path, module: Path, softhsm: Path, **hsm: Any) -> None:
        super().__init__(directory)
        conf = directory / "token" / "softhsm2.conf"
        # It names the place where the directory was made.
        conf.write_text(f"directories.tokendir = {directory / 'token' / 'tokens'}\nobjectstore.backend = file\n")
        config = TokenConfig(str(softhsm), "kmsd-dev", "kmsd-root", (("SOFTHSM2_CONF", str(conf)),))
        self.pin_file = directory / "token" / "pin"
        self.token = FaultyToken(module, config, directory / "faulty")
        (directory / "policies").mkdir()
        settings: dict[str, dict[str, Any]] = {
            "paths": {
                "state": str(directory),
                "audit": str(self.audit_log),
                "socket": str(self.socket),
                "credential_socket": str(directory / "credential.sock"),
                "policies": str(directory / "policies"),
            },
            "administrators": {"uids": [os.getuid()]},
            "hsm": {
                "module": str(module),
                "token_label": "kmsd-dev",
                "environment": dict(self.token.config.environment),
                "pin": f"file:{self.pin_file}",
                "readable_paths": [str(softhsm.parent), str(self.token.folder)],
                "writable_paths": [str(directory / "token"), str(self.token.folder)],
                **hsm,
            },
        }
        path = directory / "kmsd.toml"
        path.write_text(toml(settings))
        self._command = [sys.executable, "-m", "tests.support.host_daemon", str(path)]

    def state(self) -> str:
        """What Status says."""
        with self.client() as client:
            return client.status().state

    def events(self, name: str) -> list[dict[str, Any]]:
        """The records with this name."""
        return [record for record in self.records() if record["eventName"] == name]


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """Settings as they stand in a file."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for name, value in values.items():
            if isinstance(value, dict):
                pairs = ", ".join(f"{key} = {_json(one)}" for key, one in value.items())
                lines.append(f"{name} = {{{pairs}}}")
            else:
                lines.append(f"{name} = {_json(value)}")
    return "\n".join(lines) + "\n"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()  # TOML writes strings, numbers and arrays alike


def main(path: Path) -> None:
    config = load_config(path)
    paths = SocketPaths(Path(config.paths.socket), Path(config.paths.credential_socket))
    passed = inherited_sockets(os.environ)
    deployment = host(
        config,
        passed or bind_all(paths, 0o600),
        owned=None if passed else paths,
        credentials=None,
        notifier=Notifier.from_environment(os.environ),
    )
    run_daemon(replace(deployment, ready=lambda: print("kmsd: ready:", file=sys.stderr, flush=True)))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
