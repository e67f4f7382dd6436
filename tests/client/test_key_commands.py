"""`kms key` on one key, over a scripted daemon; tests/scenarios has what a real one does."""

from __future__ import annotations

import datetime as dt
import json
import shlex
from typing import Any

import pytest

from kmsd.api.deletion import CancelKeyDeletionRequest, MaterialUsage, ScheduleKeyDeletionRequest
from kmsd.api.errors import KMSInternalError
from kmsd.api.keys import EnableKeyRequest, UpdateKeyDescriptionRequest
from kmsd.api.operation import KeyState
from kmsd.api.rotation import DisableKeyRotationRequest, EnableKeyRotationRequest, RotateKeyOnDemandRequest
from tests.client.keyboard import pipes, types
from tests.client.keyed_daemon import DUE, KeyedDaemon, granted, key_id, used
from tests.client.scripted import Answer, ScriptedDaemon

KEY = key_id(1)
ALIAS = "alias/one"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def keys(daemon: ScriptedDaemon) -> KeyedDaemon:
    return KeyedDaemon(daemon, [ALIAS, "alias/two"])


@pytest.mark.parametrize(
    ("materials", "said"),
    [
        (1, "material 1 is current, and decrypts for ever"),
        (2, "material 2 is current; 1 still decrypts"),
        (3, "material 3 is current; 1-2 still decrypt"),
        (26, "material 26 is current; 1-25 still decrypt"),
    ],
)
def test_a_rotation_says_that_nothing_is_lost(keys: KeyedDaemon, capsys: Captured, materials: int, said: str) -> None:
    """Whoever rotates fears for what was encrypted before."""
    keys.materials = materials

    assert keys.kms("key", "rotate", ALIAS, "--now") == 0

    assert capsys.readouterr().out == f"{said}; no file needs re-encryption; no next rotation is planned\n"
    assert keys.done == [RotateKeyOnDemandRequest(key_id=KEY)]


def test_a_rotation_says_when_the_next_is(keys: KeyedDaemon, capsys: Captured) -> None:
    """By its day, in UTC."""
    keys.rotation_days = 365

    assert keys.kms("key", "rotate", KEY, "--every", "365") == 0

    assert capsys.readouterr().out.endswith("; next rotation 2027-11-26, every 365 days\n")


def test_rotation_is_planned_and_stopped(keys: KeyedDaemon) -> None:
    """By --every and --off."""
    assert keys.kms("key", "rotate", KEY, "--every", "90") == 0
    assert keys.kms("key", "rotate", KEY, "--off") == 0

    assert keys.done == [
        EnableKeyRotationRequest(key_id=KEY, rotation_period_in_days=90),
        DisableKeyRotationRequest(key_id=KEY),
    ]


@pytest.mark.parametrize("words", [(), ("--now", "--off"), ("--every", "soon"), ("--now", "--every", "90")], ids=str)
def test_when_to_rotate_has_to_be_clear(keys: KeyedDaemon, words: tuple[str, ...]) -> None:
    """Nothing is guessed."""
    with pytest.raises(SystemExit) as ended:
        keys.kms("key", "rotate", KEY, *words)

    assert ended.value.code == 2
    assert keys.daemon.asked == []


def test_who_may_rotate_and_not_look_is_told_what_holds_anyway(keys: KeyedDaemon, capsys: Captured) -> None:
    """The rotation is not reported as failed."""
    keys.refused = {("ListKeyRotations", KEY), ("GetKeyRotationStatus", KEY)}

    assert keys.kms("key", "rotate", KEY, "--now") == 0

    assert capsys.readouterr() == ("no file needs re-encryption\n", "")


def test_a_rotation_that_was_done_is_not_reported_as_failed(keys: KeyedDaemon, capsys: Captured) -> None:
    """Or somebody does it again, and a key is rotated by hand 25 times at most."""
    answer = keys.daemon.answer

    def failing(name: str, request: Any) -> Answer:
        if name == "ListKeyRotations":
            raise KMSInternalError("the store cannot be read")
        return answer(name, request)

    keys.daemon.answer = failing

    assert keys.kms("key", "rotate", KEY, "--now") == 0

    assert keys.done == [RotateKeyOnDemandRequest(key_id=KEY)]
    assert capsys.readouterr() == (
        "no file needs re-encryption; no next rotation is planned\n",
        "kms: it was done, but not all of what comes of it can be told: the store cannot be read\n",
    )


def test_material_is_numbered_over_all_pages(keys: KeyedDaemon, capsys: Captured) -> None:
    """Oldest first, with so much of its id as tells it apart."""
    keys.materials = 3

    assert keys.kms("key", "rotations", ALIAS) == 0

    assert capsys.readouterr().out.splitlines() == [
        "MATERIAL  ID            STATE        ROTATED                  BY",
        "1         100000000000  NON_CURRENT  -                        -",
        "2         200000000000  NON_CURRENT  2026-01-01 00:00:00 UTC  ON_DEMAND",
        "3         300000000000  CURRENT      2026-01-01 00:00:00 UTC  ON_DEMAND",
    ]


def test_material_is_listed_whole_for_programs(keys: KeyedDaemon, capsys: Captured) -> None:
    """As the operation answers it."""
    keys.materials = 3

    assert keys.kms("key", "rotations", KEY, "--json") == 0

    listed = json.loads(capsys.readouterr().out)
    assert [one["KeyMaterialId"] for one in listed] == [f"{number}{'0' * 63}" for number in (1, 2, 3)]


def test_whoever_deletes_a_key_sees_what_depends_on_it(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Before he is asked; in plain words, when it was used lately."""
    keys.grants = granted("user:backup", "unit:a.service", "user:backup", "user:c", "user:d")
    keys.last_use = used(dt.timedelta(minutes=3, seconds=5))
    last = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    keys.usage = [MaterialUsage(number=1, encrypted=12, decrypted=3, last_used=last)]
    types(monkeypatch, "yes\n")

    assert keys.kms("key", "delete", ALIAS, "--days", "7") == 0

    said, shown = capsys.readouterr()
    assert shown.startswith(f"what depends on {ALIAS}:\n  key:        {KEY}\n  aliases:    alias/one, alias/two\n")
    assert "  grants:     5, to user:backup, unit:a.service, user:c and 1 other\n" in shown
    assert "  last use:   3 minutes ago, by Decrypt (" in shown
    assert "  material 1: 12 encrypted, 3 decrypted, last used 2 days ago\n" in shown
    assert f"\n{ALIAS} was used 3 minutes ago by Decrypt\n" in shown
    assert "in 7 days it is destroyed" in shown
    assert keys.done == [ScheduleKeyDeletionRequest(key_id=KEY, pending_window_in_days=7)]
    assert said.splitlines() == [
        f"{ALIAS} can no longer be used, and is destroyed on 2027-11-26 23:30:00 UTC",
        f"to keep it: kms key cancel-deletion {ALIAS}",
    ]


@pytest.mark.parametrize("days", ["6", "31", "-1"])
def test_nobody_is_asked_about_a_window_that_is_refused(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured, days: str
) -> None:
    """He would say yes to nothing."""
    types(monkeypatch, "yes\n")

    assert keys.kms("key", "delete", KEY, "--days", days) == 2

    assert capsys.readouterr().err == f"kms: error: --days is {days}: it may be 7 to 30\n"
    assert keys.daemon.asked == []


@pytest.mark.parametrize(
    "words", [("key", "delete", KEY), ("key", "disable", ALIAS), ("alias", "delete", ALIAS)], ids=" ".join
)
@pytest.mark.parametrize("answer", ["y\n", "no\n", "\n", ""])
def test_anything_but_yes_changes_nothing(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured, answer: str, words: tuple[str, ...]
) -> None:
    """Silence included."""
    types(monkeypatch, answer)

    assert keys.kms(*words) == 1

    assert capsys.readouterr().err.endswith("kms: error: nothing was changed\n")
    assert keys.done == []


@pytest.mark.parametrize(
    "words", [("key", "delete", KEY), ("key", "disable", KEY), ("alias", "delete", ALIAS)], ids=" ".join
)
def test_a_script_has_to_say_yes(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured, words: tuple[str, ...]
) -> None:
    """What it pipes in does not count; with --yes nothing is asked that might be refused."""
    pipes(monkeypatch, "yes\n")
    assert keys.kms(*words) == 2
    assert capsys.readouterr().err == "kms: error: nobody is there to be asked\nkms: hint: say --yes\n"
    assert keys.daemon.asked == []

    assert keys.kms(*words, "--yes") == 0
    assert len(keys.daemon.asked) == len(keys.done) == 1


def test_what_may_not_be_asked_is_said(keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Who may delete a key may do so without being allowed to know what uses it."""
    keys.refused = {(name, KEY) for name in ("ListGrants", "GetKeyLastUsage")}
    types(monkeypatch, "yes\n")

    assert keys.kms("key", "delete", KEY) == 0

    shown = capsys.readouterr().err
    assert "grants:   unknown: you may not kms:ListGrants\n" in shown
    assert "last use: unknown: you may not kms:GetKeyLastUsage\n" in shown
    assert len(keys.done) == 1


def test_a_key_that_was_not_used_lately_is_not_called_so(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """The date stands among the rest, and that there was no use as well."""
    keys.last_use = used(dt.timedelta(days=40))
    types(monkeypatch, "no\n")
    assert keys.kms("key", "delete", KEY) == 1
    shown = capsys.readouterr().err
    assert "last use: 40 days ago, by Decrypt (" in shown
    assert "was used" not in shown

    keys.last_use = None
    types(monkeypatch, "no\n")
    assert keys.kms("key", "delete", KEY) == 1
    assert "last use: none since 2026-01-01, when kmsd began to take note of it" in capsys.readouterr().err


def test_very_many_grants_are_not_counted_to_the_end(
    keys: KeyedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A key may have 50,000."""
    keys.grants = granted(*["user:backup"] * 3000)
    types(monkeypatch, "no\n")

    assert keys.kms("key", "disable", KEY) == 1

    assert "grants:   1000 or more, to user:backup\n" in capsys.readouterr().err
    assert keys.count("ListGrants") == 10


def test_a_key_that_is_kept_is_disabled(keys: KeyedDaemon, capsys: Captured) -> None:
    """Which surprises whoever needs it at once."""
    assert keys.kms("key", "cancel-deletion", ALIAS) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{ALIAS} is kept, and disabled now"
    assert shlex.split(said[1].partition(": ")[2]) == ["kms", "key", "enable", ALIAS]
    assert keys.done == [CancelKeyDeletionRequest(key_id=KEY)]


def test_a_key_is_enabled_and_described_anew(keys: KeyedDaemon) -> None:
    """By any of its names."""
    assert keys.kms("key", "enable", ALIAS) == 0
    assert keys.kms("key", "set-description", ALIAS, "for archives") == 0

    assert keys.done == [
        EnableKeyRequest(key_id=KEY),
        UpdateKeyDescriptionRequest(key_id=KEY, description="for archives"),
    ]


def test_a_hostile_description_does_not_reach_the_terminal(keys: KeyedDaemon, capsys: Captured) -> None:
    """It may hide lines, or forge some."""
    keys.change(1, description="x\x1b[2K\r\nstate: Enabled\u202e\u200b", key_state=KeyState.DISABLED)

    assert keys.kms("key", "describe", KEY) == 0

    lines = capsys.readouterr().out.splitlines()
    assert r"description:  x\x1b[2K\r\nstate: Enabled\u202e\u200b" in lines
    assert len(lines) == 8


def test_a_key_to_be_destroyed_tells_when(keys: KeyedDaemon, capsys: Captured) -> None:
    """In UTC."""
    keys.change(1, key_state=KeyState.PENDING_DELETION, deletion_date=DUE)

    assert keys.kms("key", "describe", KEY) == 0

    assert "destroyed:    on 2027-11-26 23:30:00 UTC\n" in capsys.readouterr().out


def test_the_last_use_is_told_with_all_others(keys: KeyedDaemon, capsys: Captured) -> None:
    """By operation, and by version of the material."""
    keys.last_use = used(dt.timedelta(hours=5), "Encrypt")
    keys.usage = [MaterialUsage(number=2, encrypted=10**12, decrypted=0, last_used=keys.last_use.timestamp)]

    assert keys.kms("key", "last-use", ALIAS) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("last use:   5 hours ago, by Encrypt (")
    assert said[1:] == [
        "material 2: 1000000000000 encrypted, 0 decrypted, last used 5 hours ago",
        "uses:       Decrypt 3, Encrypt 12",
    ]


def test_a_key_that_was_never_used_is_said_to_be(keys: KeyedDaemon, capsys: Captured) -> None:
    """Since when that is known, too."""
    assert keys.kms("key", "last-use", KEY) == 0
    assert capsys.readouterr().out == "last use: none since 2026-01-01, when kmsd began to take note of it\n"

    keys.refused = {("GetKeyLastUsage", KEY)}
    assert keys.kms("key", "last-use", KEY) == 1
    assert capsys.readouterr().err.startswith(f"kms: error: uid 1000 may not kms:GetKeyLastUsage {KEY}\n")
