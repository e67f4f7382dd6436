"""`kmsd audit-repair`: what it says, and when it refuses."""

import io
from pathlib import Path

import pytest

from kmsd.audit.writer import SyncMode, Trail
from kmsd.commands.main import main
from tests.support.written_trail import NAME, Key, request, signed_trail


@pytest.fixture
def trail(tmp_path: Path) -> Path:
    """A folder as `kmsd dev` has it, whose newest file lacks a line."""
    for name, lines in signed_trail(Key()).files.items():
        (tmp_path / name).write_bytes(b"".join(lines))
    lines = (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join([*lines[:4], *lines[5:]]))
    return tmp_path / NAME


def test_it_tells_what_was_wrong_and_what_it_did(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what comes next; a second run finds nothing to do."""
    assert main(["audit-repair", "--dev", str(trail.parent), "--yes"]) == 0
    out = capsys.readouterr().out.splitlines()

    assert out[0] == "found  audit.log, line 5, seq 29: removed: record 29 is missing before record 30"
    assert out[1].startswith(f"kept   {trail}.broken-1: ")
    assert out[2] == f"made   {trail}: a new chain that begins with record 40"
    assert "kms unseal --accept-changes" in out[3]
    assert main(["audit-repair", "--dev", str(trail.parent), "--yes"]) == 1
    assert capsys.readouterr().err == f"kmsd: error: {trail} is whole: there is nothing to repair\n"


def test_the_trail_is_found_by_the_settings(trail: Path, tmp_path: Path) -> None:
    """Where the daemon would write it."""
    settings = tmp_path / "kmsd.toml"
    settings.write_text(f'[paths]\naudit = "{trail}"\n')

    assert main(["audit-repair", "--config", str(settings), "--yes"]) == 0

    assert trail.with_name(f"{NAME}.broken-1").exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_it_asks_first(trail: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    """Only yes is yes."""
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)

    assert main(["audit-repair", "--dev", str(trail.parent)]) == code

    assert trail.with_name(f"{NAME}.broken-1").exists() == (code == 0)


def test_without_anybody_to_ask_nothing_is_changed(
    trail: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script has to say --yes."""
    before = trail.read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    assert main(["audit-repair", "--dev", str(trail.parent)]) == 1

    assert "--yes" in capsys.readouterr().err
    assert trail.read_bytes() == before


def test_it_refuses_while_the_daemon_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which holds the lock of its trail."""
    daemon = Trail.open(tmp_path / NAME, sync=SyncMode.OS, clock=lambda: 0.0)
    daemon.append([request(1)])

    assert main(["audit-repair", "--dev", str(tmp_path), "--yes"]) == 1

    assert "another process writes it" in capsys.readouterr().err
    daemon.close()
