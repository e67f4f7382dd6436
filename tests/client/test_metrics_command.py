"""`kms metrics` prints, or puts a file where monitoring collects it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, KmsError
from kmsd.api.metrics import GetMetricsResponse
from kmsd_client.cli import metrics
from kmsd_client.cli.main import main
from tests.client.scripted import ScriptedDaemon

TEXT = "# TYPE kmsd_up gauge\nkmsd_up 1.0\n"


@pytest.fixture
def daemon(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon(short_path / "s")
    daemon.answer = lambda _name, _request: (GetMetricsResponse(text=TEXT), [])
    monkeypatch.setenv("KMSD_SOCKET", str(daemon.path))
    yield daemon
    daemon.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the file goes, in a folder of its own."""
    folder = tmp_path / "collected"
    folder.mkdir()
    return folder / "kmsd.prom"


def value_in(place: Path) -> float:
    [family] = text_string_to_metric_families(place.read_text())
    [sample] = family.samples
    assert sample.name == "kmsd_up"
    return sample.value


def test_metrics_are_printed_as_they_are_told(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else is."""
    assert main(["metrics"]) == 0
    assert capsys.readouterr() == (TEXT, "")


def test_a_file_is_there_whole_for_everybody_to_read(
    daemon: ScriptedDaemon, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the place of the one before, whatever the umask, and with nothing left beside it."""
    place.write_text("what was there before")
    before = place.stat().st_ino
    umask = os.umask(0o077)
    try:
        assert main(["metrics", "--textfile", str(place)]) == 0
    finally:
        os.umask(umask)

    assert place.read_text() == TEXT
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    assert place.stat().st_ino != before
    assert list(place.parent.iterdir()) == [place]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [AccessDeniedError("no"), AuditUnavailableError("no space left")])
def test_a_daemon_that_does_not_tell_is_down(
    daemon: ScriptedDaemon, place: Path, capsys: pytest.CaptureFixture[str], error: KmsError
) -> None:
    """The file says so, and the command fails and says why."""

    def refuse(_name: str, _request: object) -> tuple[GetMetricsResponse, list[int]]:
        raise error

    daemon.answer = refuse
    place.write_text(TEXT)

    assert main(["metrics", "--textfile", str(place)]) == 1
    assert value_in(place) == 0
    assert error.message in capsys.readouterr().err


def test_a_daemon_that_hangs_is_down(daemon: ScriptedDaemon, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says so before whoever runs the command loses patience."""
    monkeypatch.setattr(metrics, "ANSWER_SECONDS", 0.05)
    daemon.hold, daemon.held_back = "GetMetrics", 1
    place.write_text(TEXT)

    assert main(["metrics", "--textfile", str(place)]) == 3
    assert value_in(place) == 0


def test_no_daemon_is_down(short_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that refuses."""
    monkeypatch.setenv("KMSD_SOCKET", str(short_path / "nothing"))

    assert main(["metrics", "--textfile", str(place)]) == 3
    assert value_in(place) == 0


def test_without_a_file_nothing_is_printed_for_one_that_is_down(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code tells."""
    monkeypatch.setenv("KMSD_SOCKET", str(short_path / "nothing"))

    assert main(["metrics"]) == 3
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_not_there_is_told(
    daemon: ScriptedDaemon, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is made elsewhere."""
    place.parent.rmdir()

    assert main(["metrics", "--textfile", str(place)]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_what_cannot_take_its_name_leaves_nothing(
    daemon: ScriptedDaemon, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even its beginning."""
    place.mkdir()

    assert main(["metrics", "--textfile", str(place)]) == 1
    assert list(place.parent.iterdir()) == [place]
    assert "Is a directory" in capsys.readouterr().err
