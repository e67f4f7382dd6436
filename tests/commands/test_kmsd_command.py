"""`kmsd` and `kmsd dev` as far as they go without a daemon: what is refused, and in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import kmsd
from kmsd.commands.main import main

# sockaddr_un holds 108 bytes, the last of which is zero (unix(7)).
LONGEST_SOCKET_PATH = 107


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """As `kmsd VERSION`."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"kmsd {kmsd.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["dev"],
        ["dev", "a", "b"],
        ["dev", "--nonsense", "a"],
        ["dev", "--", "true"],
        ["--", "dev", "a"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and what is right. Words behind -- are the command's and count for nothing here."""
    with pytest.raises(SystemExit) as ended:
        main(words)

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: kmsd")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backup", "--share", "FILE"], "belong to --verify"),
        (["backup", "--share-file", "share", "FILE"], "belong to --verify"),
        (["backup", "--config", "settings", "FILE"], "belong to --verify"),
        (["backup", "--verify", "--force", "FILE"], "--verify makes none"),
        (["backup", "--verify", "--socket", "socket", "FILE"], "--verify makes none"),
        (["backup", "--dev", "d", "--socket", "socket", "FILE"], "name two daemons"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_option_of_a_backup_is_passed_over(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Making one and verifying one have options of their own; nothing is asked for or made then."""
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_directory_of_a_dev_says_which_daemon_makes_a_backup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the environment, nor the host."""
    monkeypatch.setenv("KMSD_SOCKET", str(tmp_path / "another.sock"))

    assert main(["backup", "--dev", str(tmp_path / "d"), str(tmp_path / "FILE")]) == 1
    assert str(tmp_path / "d" / "kmsd.sock") in capsys.readouterr().err


def test_wrong_settings_are_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names file and setting; nothing was made."""
    (tmp_path / "c.toml").write_text("[limits]\nconnections = 0\n")

    assert main(["dev", "--config", str(tmp_path / "c.toml"), str(tmp_path / "d"), "--", "touch", "x"]) == 2

    said = capsys.readouterr().err
    assert said.startswith(f"kmsd: error: {tmp_path}/c.toml: ")
    assert "connections" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "d").exists()


def refusal(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `kmsd dev` says of a directory that it does not use; neither the daemon nor the command was started."""
    ran = directory.parent / "ran"
    assert main(["dev", str(directory), "--", "touch", str(ran)]) == 1
    assert not ran.exists()
    said = capsys.readouterr().err
    assert said.startswith("kmsd: error: ")
    assert said.count("\n") == 1
    return said


def test_a_symbolic_link_is_no_directory_of_one_s_own(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever can change the link could move the keys."""
    (short_path / "real").mkdir(mode=0o755)
    (short_path / "link").symlink_to("real")

    assert "symbolic link" in refusal(short_path / "link", capsys)

    assert (short_path / "real").stat().st_mode & 0o777 == 0o755


def test_a_file_is_no_directory(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is a place below one."""
    (short_path / "f").write_text("mine")

    assert "File exists" in refusal(short_path / "f", capsys)
    assert "Not a directory" in refusal(short_path / "f" / "below", capsys)

    assert (short_path / "f").read_text() == "mine"


@pytest.mark.root
def test_another_user_s_directory_is_refused(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its mode is left alone."""
    (short_path / "d").mkdir(mode=0o755)
    os.chown(short_path / "d", 12345, 12345)

    assert "belongs to uid 12345, not to you" in refusal(short_path / "d", capsys)

    assert (short_path / "d").stat().st_mode & 0o777 == 0o755


def test_a_path_too_long_for_a_socket_is_refused(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is made; bytes count, not characters."""
    for letter in ("x", "ä"):
        room = LONGEST_SOCKET_PATH - len(os.fsencode(short_path / "" / "credential.sock")) - 1
        name = letter * (room // len(letter.encode()) + 1)

        assert "use a shorter one" in refusal(short_path / name, capsys)

        assert not (short_path / name).exists()
