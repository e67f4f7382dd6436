"""`kmsd check-config`: everything that is wrong is told at once, and what to do."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from kmsd.commands.main import main

# A user that every Debian has (base-passwd), and a group.
USER = "daemon"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings in which nothing is wrong; the library is any file, since it is not loaded."""
    if os.getuid() != 0:
        pytest.skip("only root can give folders to another user")
    uid = pwd.getpwnam(USER).pw_uid
    for name in ("state", "log"):
        (tmp_path / name).mkdir(mode=0o700)
        os.chown(tmp_path / name, uid, -1)
    (tmp_path / "policies").mkdir(mode=0o755)
    (tmp_path / "module.so").touch()
    (tmp_path / "pin").write_text("1234")
    (tmp_path / "pin").chmod(0o600)
    path = tmp_path / "kmsd.toml"
    path.write_text(
        f"""
        user = "{USER}"
        [hsm]
        module = "{tmp_path}/module.so"
        token_label = "token"
        pin = "file:{tmp_path}/pin"
        [paths]
        state = "{tmp_path}/state"
        audit = "{tmp_path}/log/audit.log"
        socket = "{tmp_path}/s"
        policies = "{tmp_path}/policies"
        [administrators]
        groups = ["{USER}"]
        """
    )
    return path


def test_good_settings_are_said_to_be_good(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0."""
    assert main(["check-config", str(settings)]) == 0

    assert capsys.readouterr() == (f"{settings}: all is well\n", "")


def test_all_invalid_settings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not only the first; exit code 2."""
    path = tmp_path / "kmsd.toml"
    path.write_text(
        "regoin = 'x'\n[limits]\nconnections = 0\nkeys_per_uid = 'many'\n[paths]\nstate = 'here'\n[nothing]\na = 1"
    )

    assert main(["check-config", str(path)]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"kmsd: error: {path}: ") for line in lines)
    for line, where in zip(lines, ("regoin", "connections", "keys_per_uid", "state", "nothing"), strict=True):
        assert where in line


@pytest.mark.parametrize("text", [None, "no TOML", b"\xff"])
def test_what_cannot_be_read_is_one_error(
    tmp_path: Path, text: str | bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, malformed, not text; exit code 2."""
    path = tmp_path / "kmsd.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    assert main(["check-config", str(path)]) == 2

    assert capsys.readouterr().err.count("\n") == 1


def test_everything_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """User, folders, group, library, PIN: all at once, each with its setting; exit code 1."""
    path = tmp_path / "kmsd.toml"
    path.write_text(
        f"""
        user = "nobody-has-this-name"
        [hsm]
        pin = "file:{tmp_path}/pin"
        readable_paths = ["{tmp_path}/folder"]
        [paths]
        state = "{tmp_path}/state"
        audit = "{tmp_path}/log/audit.log"
        socket = "/{"x" * 108}"
        [administrators]
        groups = ["nobody-has-this-name"]
        """
    )

    assert main(["check-config", str(path)]) == 1

    said = capsys.readouterr().err
    for part in (
        "there is no user",
        "paths.state",
        "paths.audit",
        "paths.socket",
        "administrators.groups",
        "hsm.module",
        "hsm.token_label",
        "hsm.readable_paths",
        "hsm.pin",
    ):
        assert said.count(part) == 1, said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "state").chmod(0o755), "chmod 700"),
        (lambda folder: os.chown(folder / "log", 12345, -1), f"chown {USER}"),
        (lambda folder: (folder / "pin").chmod(0o644), "chmod 600"),
        (lambda folder: (folder / "policies" / "a.json").write_text("{"), "host policy a.json"),
        (lambda folder: (folder / "policies").chmod(0o777), "must belong to root"),
    ],
)
def test_what_is_open_or_wrong_is_told_with_its_remedy(
    settings: Path, change: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each; exit code 1."""
    assert callable(change)
    change(settings.parent)

    assert main(["check-config", str(settings)]) == 1

    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
