"""`kmsd check-config`: every problem that can be seen without starting anything, and what to do about it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from kmsd.commands.main import main
from kmsd.hsm.softhsm import find_module

USER = pwd.getpwuid(os.getuid()).pw_name
NOT_ROOT = "daemon"  # which every Debian has (base-passwd)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host on which all is as it should be, for a service of this user."""
    for name, mode in (("state", 0o700), ("log", 0o700), ("policies", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
        if os.getuid() == 0 and mode == 0o700:
            os.chown(tmp_path / name, pwd.getpwnam(NOT_ROOT).pw_uid, -1)
    (tmp_path / "pin").write_text("1234")
    (tmp_path / "pin").chmod(0o600)
    return tmp_path


def settings(host: Path, **changed: str) -> Path:
    """Settings for that host, some of them changed."""
    values = {
        "user": f'"{NOT_ROOT if os.getuid() == 0 else USER}"',
        "paths.state": f'"{host}/state"',
        "paths.audit": f'"{host}/log/audit.log"',
        "paths.policies": f'"{host}/policies"',
        "hsm.module": f'"{find_module()}"',
        "hsm.token_label": '"kmsd"',
        "hsm.pin": f'"file:{host}/pin"',
        "hsm.writable_paths": f'["{host}/state"]',
        "administrators.groups": "[]",
        "administrators.uids": "[0]",
    } | {name.replace("__", "."): value for name, value in changed.items()}
    path = host / "kmsd.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    return path


def test_settings_without_a_problem(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, and a line that says so."""
    path = settings(host)

    assert main(["check-config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: no problem was found\n"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"user": '"nobody-has-this-name"'}, "user: there is no user nobody-has-this-name"),
        ({"user": '"root"'}, "user: root is root"),
        ({"administrators__groups": '["no-such-group"]'}, "administrators.groups: there is no group no-such-group"),
        ({"administrators__uids": "[]"}, "administrators: nobody is one"),
        ({"paths__state": '"/no/such/folder"'}, "paths.state: /no/such/folder is not there"),
        ({"paths__audit": '"/dev/null/audit.log"'}, "paths.audit: /dev/null is no directory"),
        ({"hsm__module": '""'}, "hsm.module: no PKCS#11 library is named"),
        ({"hsm__module": '"libx.so"'}, "hsm.module: libx.so is no whole path"),
        ({"hsm__module": '"/no/such/lib.so"'}, "hsm.module: /no/such/lib.so is not there"),
        ({"hsm__token_label": '""'}, "hsm.token_label: no token is named"),
        ({"hsm__when_lost": '"seal"'}, "hsm.when_lost: nobody would notice the loss"),
        ({"hsm__environment": '{CONF = "/no/such/file"}'}, "hsm.environment: /no/such/file is not there"),
        ({"hsm__readable_paths": '["x"]'}, "hsm.readable_paths: x is no whole path"),
        ({"hsm__pin": '"file:/no/such/pin"'}, "hsm.pin: /no/such/pin is not there"),
        ({"hsm__pin": '"file:/dev/null"'}, "hsm.pin: /dev/null is no regular file"),
    ],
)
def test_a_problem_is_told_with_its_setting_and_a_remedy(
    changed: dict[str, str], told: str, host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1."""
    assert main(["check-config", str(settings(host, **changed))]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index(told) + 1].startswith("    -> ")


def test_all_problems_are_told(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the first alone: modes, owners and policies included."""
    (host / "log").chmod(0o755)
    (host / "pin").chmod(0o604)
    (host / "policies" / "10.json").write_text("{")

    assert main(["check-config", str(settings(host, hsm__module='""'))]) == 1

    said = capsys.readouterr().out
    assert f"paths.audit: others may look into {host}/log" in said
    assert f"hsm.pin: everyone may read or write {host}/pin" in said
    assert "paths.policies: host policy 10.json: " in said
    assert "hsm.module: " in said
    assert said.endswith("kmsd.toml: 4 problems\n")


@pytest.mark.parametrize("text", ["[hsm", "nonsense = 1", "[hsm]\npin = 'plain:1234'"])
def test_a_file_that_cannot_be_used_is_a_usage_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2; a PIN that somebody wrote into it is not repeated."""
    path = tmp_path / "kmsd.toml"
    path.write_text(text)

    assert main(["check-config", str(path)]) == 2

    said = capsys.readouterr().err
    assert said.startswith(f"kmsd: error: {path}: ")
    assert "1234" not in said


def test_a_missing_file_says_how_to_make_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever file was named."""
    assert main(["check-config", str(tmp_path / "none.toml")]) == 2
    assert "No such file" in capsys.readouterr().err
