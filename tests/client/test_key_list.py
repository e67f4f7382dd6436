"""`kms key list`, over a scripted daemon."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from kmsd.api.errors import IntegrityError
from kmsd.api.operation import KeyState
from kmsd.api.shapes import KeyManager
from tests.client.keyed_daemon import DUE, KeyedDaemon, key_id, used
from tests.client.scripted import Answer, ScriptedDaemon

Captured = pytest.CaptureFixture[str]


def test_keys_are_listed_with_what_becomes_of_them(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """Those with names first, by name; then those without."""
    keys = KeyedDaemon(daemon, [], ["alias/z"], ["alias/a", "alias/b"])
    now = dt.datetime.now(dt.UTC)
    keys.change(1, creation_date=now - dt.timedelta(hours=2, minutes=1), key_state=KeyState.DISABLED)
    keys.change(2, creation_date=now - dt.timedelta(days=800))
    keys.change(3, creation_date=now, key_state=KeyState.PENDING_DELETION, deletion_date=DUE)
    keys.rotation_days = 365
    keys.last_use = used(dt.timedelta(days=3, hours=1))

    assert keys.kms("key", "list") == 0

    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["KEY ID", "STATE", "AGE", "NEXT ROTATION", "EXPIRES", "LAST USE", "ALIASES"],
        [
            key_id(3),
            "PendingDeletion 2027-11-26",
            "0 seconds",
            "2027-11-26",
            "never",
            "3 days ago",
            "alias/a, alias/b",
        ],
        [key_id(2), "Enabled", "2 years", "2027-11-26", "never", "3 days ago", "alias/z"],
        [key_id(1), "Disabled", "2 hours", "2027-11-26", "never", "3 days ago"],
    ]


def test_who_may_not_ask_about_a_key_asks_once(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """Each refusal is a record of the trail; the rest of the list stands, and that key at its end."""
    keys = KeyedDaemon(daemon, ["alias/a"], ["alias/b"], [])
    keys.refused = {("DescribeKey", key_id(1)), ("GetKeyRotationStatus", key_id(2))}

    assert keys.kms("key", "list") == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in lines] == [key_id(2), key_id(3), key_id(1)]
    assert lines[0][1] == "Enabled"
    assert lines[0][-3:] == ["never", "-", "alias/b"]
    assert lines[2] == [key_id(1), "-", "-", "-", "-", "-", "alias/a"]
    assert (keys.count("DescribeKey"), keys.count("GetKeyRotationStatus"), keys.count("GetKeyLastUsage")) == (3, 2, 1)


def test_keys_that_kmsd_looks_after_are_rotated_yearly(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """Administrators may see those of others, but not ask for their dates; what they may know is not lost by that."""
    keys = KeyedDaemon(daemon, ["alias/kmsd/default"])
    keys.change(1, key_manager=KeyManager.AWS)
    keys.refused = {("GetKeyRotationStatus", "*")}

    assert keys.kms("key", "list") == 0

    assert capsys.readouterr().out.split()[-4:] == ["yearly", "never", "none", "alias/kmsd/default"]
    assert keys.count("GetKeyRotationStatus") == 0


def test_a_key_that_is_destroyed_meanwhile_does_not_end_the_list(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """It is shown as one of which nothing is known."""
    keys = KeyedDaemon(daemon, ["alias/a"], ["alias/b"])
    answer = daemon.answer

    def forgetful(name: str, request: object) -> object:
        if name == "DescribeKey":
            keys.names.pop(key_id(1), None)
        return answer(name, request)

    daemon.answer = forgetful  # type: ignore[assignment] # it answers what the other does

    assert keys.kms("key", "list") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_key_that_is_damaged_does_not_end_the_list(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """What is known is shown; what is wrong is said of each, and the command fails."""
    keys = KeyedDaemon(daemon, ["alias/a"], ["alias/b"], ["alias/c"])
    answer = daemon.answer

    def damaged(name: str, request: Any) -> Answer:
        if (name, getattr(request, "key_id", None)) in {("DescribeKey", key_id(1)), ("GetKeyLastUsage", key_id(2))}:
            raise IntegrityError("a row was changed")
        return answer(name, request)

    daemon.answer = damaged

    assert keys.kms("key", "list") == 1

    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()[1:]]
    assert [line[0] for line in lines] == [key_id(2), key_id(3), key_id(1)]
    assert lines[0][1] == "Enabled"
    assert said.err.splitlines() == [
        f"kms: error: key {key_id(1)}: IntegrityException: a row was changed",
        f"kms: error: key {key_id(2)}: IntegrityException: a row was changed",
    ]


def test_a_program_gets_all_there_is(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """What may not be known is left out."""
    keys = KeyedDaemon(daemon, ["alias/a"], [])
    keys.refused = {("DescribeKey", key_id(2))}

    assert keys.kms("key", "list", "--json") == 0

    first, second = json.loads(capsys.readouterr().out)
    assert first["KeyId"] == key_id(1)
    assert first["Aliases"] == ["alias/a"]
    assert first["KeyMetadata"]["KeyState"] == "Enabled"
    assert first["Rotation"]["KeyRotationEnabled"] is False
    assert first["LastUsage"]["TrackingStartDate"] == "2026-01-01T00:00:00Z"
    assert second == {"KeyId": key_id(2), "KeyArn": first["KeyArn"].replace(key_id(1), key_id(2)), "Aliases": []}


def test_no_keys_make_an_empty_table(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """Its heads say what would be there."""
    assert KeyedDaemon(daemon).kms("key", "list") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_very_many_keys_are_listed_over_one_connection(daemon: ScriptedDaemon, capsys: Captured) -> None:
    """Page by page."""
    keys = KeyedDaemon(daemon, *([] for _ in range(1100)))
    keys.refused = {("DescribeKey", "*")}

    assert keys.kms("key", "list") == 0

    assert len(capsys.readouterr().out.splitlines()) == 1101
    assert daemon.accepted == 1
    assert keys.count("ListKeys") == 2
