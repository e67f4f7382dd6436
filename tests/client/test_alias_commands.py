"""`kms alias update` and `delete`, over a scripted daemon; tests/scenarios/aliases.txt has what a real one does."""

from __future__ import annotations

import datetime as dt

import pytest

from kmsd.api.keys import DeleteAliasRequest, UpdateAliasRequest
from tests.client.keyboard import pipes, types
from tests.client.keyed_daemon import KeyedDaemon, key_id, used
from tests.client.scripted import ScriptedDaemon

UPDATE = ("alias", "update", "alias/one", "alias/two")
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def keys(daemon: ScriptedDaemon) -> KeyedDaemon:
    return KeyedDaemon(daemon, ["alias/one"], ["alias/two"])


def test_an_alias_of_a_key_in_use_is_moved_only_if_that_is_wanted(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """What it means is said, and what it does not mean."""
    keys.last_use = used(dt.timedelta(days=400))
    types(monkeypatch, "no\n")
    assert keys.kms(*UPDATE) == 1
    shown = capsys.readouterr().err
    assert f"from now on alias/one encrypts under {key_id(2)}\n" in shown
    assert "what was encrypted before still decrypts" in shown
    assert keys.done == []

    types(monkeypatch, "yes\n")
    assert keys.kms(*UPDATE) == 0
    assert keys.done == [UpdateAliasRequest(alias_name="alias/one", target_key_id=key_id(2))]


def test_an_alias_of_an_unused_key_is_moved_at_once(keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can miss it."""
    pipes(monkeypatch)

    assert keys.kms(*UPDATE) == 0
    assert len(keys.done) == 1


def test_an_alias_that_stays_where_it_is_needs_no_question(keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes."""
    keys.last_use = used(dt.timedelta(seconds=1))
    pipes(monkeypatch)

    assert keys.kms("alias", "update", "alias/one", keys.metadata[key_id(1)].arn) == 0
    assert len(keys.done) == 1


def test_whoever_may_not_know_the_uses_is_asked(keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a script refused: somebody may be using the key."""
    keys.refused = {("GetKeyLastUsage", "*")}
    pipes(monkeypatch)

    assert keys.kms(*UPDATE) == 2
    assert keys.done == []
    assert keys.kms(*UPDATE, "--yes") == 0
    assert len(keys.done) == 1


def test_whoever_deletes_an_alias_is_told_of_the_others(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """And that its key stays."""
    keys.names[key_id(1)].append("alias/three")
    types(monkeypatch, "YES\n")

    assert keys.kms("alias", "delete", "alias/one") == 0

    shown = capsys.readouterr().err
    assert f"key:      {key_id(1)}\n" in shown
    assert "aliases:  alias/one, alias/three\n" in shown
    assert "whoever calls the key alias/one is refused from now on\n" in shown
    assert keys.done == [DeleteAliasRequest(alias_name="alias/one")]
