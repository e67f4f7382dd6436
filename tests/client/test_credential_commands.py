"""`kms credential` at a terminal, and what it asks of the daemon; tests/scenarios/credentials.txt has the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.credentials import DeleteCredentialRequest
from kmsd.api.shapes import Empty
from kmsd_client.cli.main import main
from tests.client.keyboard import types
from tests.client.scripted import ScriptedDaemon

DELETE = ("credential", "delete", "--unit", "app.service", "token")


@pytest.fixture
def asked(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a daemon is asked, which says yes to all."""
    requests: list[Any] = []

    def answer(_name: str, request: Any) -> tuple[Empty, list[int]]:
        requests.append(request)
        return Empty(), []

    daemon = ScriptedDaemon(short_path / "s")
    daemon.answer = answer
    monkeypatch.setenv("KMSD_SOCKET", str(daemon.path))
    yield requests
    daemon.close()


def test_a_secret_is_not_typed(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be seen; the hint says how to give it."""
    types(monkeypatch, "secret\n")

    assert main(["credential", "create", "--unit", "app.service", "token"]) == 2

    assert "kms: hint: give it by < FILE or --file FILE" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_a_person_who_says_yes_deletes(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    """Told what it means."""
    types(monkeypatch, answer)

    assert main(DELETE) == 0

    assert "app.service will not start while it loads token" in capsys.readouterr().err
    assert asked == [DeleteCredentialRequest(unit="app.service", name="token")]


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yo\n"])
def test_anything_else_deletes_nothing(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    """Silence included."""
    types(monkeypatch, answer)

    assert main(DELETE) == 1

    assert "kms: error: nothing was deleted" in capsys.readouterr().err
    assert asked == []
