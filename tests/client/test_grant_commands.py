"""`kms grant` and `kms key share`, over a daemon that answers in pages: `kmsd_client.cli.grants` and `sharing`."""

from __future__ import annotations

import datetime as dt
import shlex
from typing import Any

import pytest

from kmsd.api.errors import ValidationError
from kmsd.api.grants import (
    CreateGrantRequest,
    CreateGrantResponse,
    GrantConstraints,
    GrantListEntry,
    GrantOperation,
    ListGrantsResponse,
    RetireGrantRequest,
    RevokeGrantRequest,
)
from kmsd.api.shapes import Empty
from kmsd_client.cli.main import main
from tests.client.scripted import Answer, ScriptedDaemon

KEY = "00000000-0000-0000-0000-000000000001"


def grant(number: int, *, name: str = "", constraints: GrantConstraints | None = None) -> GrantListEntry:
    return GrantListEntry(
        key_id=f"arn:aws:kms:local-host-1:123456789012:key/{KEY}",
        grant_id=f"{number:064x}",
        name=name,
        creation_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        grantee_principal="user:backup",
        issuing_account="123456789012",
        operations=[GrantOperation.DECRYPT, GrantOperation.DESCRIBE_KEY],
        constraints=constraints,
    )


class Grants:
    """A daemon with some grants, of which it lists two at a time; it keeps what it is asked to do."""

    def __init__(self, daemon: ScriptedDaemon, *grants: GrantListEntry) -> None:
        self._path = daemon.path
        self._grants = grants
        self.done: list[Any] = []
        self.is_gone = False
        daemon.answer = self._answer

    def _answer(self, name: str, request: Any) -> Answer:
        if name in {"ListGrants", "ListRetirableGrants"}:
            if self.is_gone and request.grantee_principal is not None:
                raise ValidationError("'user:backup' does not exist on this host")
            start = int(request.marker or 0)
            more = start + 2 < len(self._grants)
            page = [*self._grants[start : start + 2]]
            return ListGrantsResponse(grants=page, next_marker=str(start + 2) if more else None, truncated=more), []
        self.done.append(request)
        if name == "CreateGrant":
            return CreateGrantResponse(grant_token="t" * 8, grant_id="a" * 64), []
        return Empty(), []

    def kms(self, *words: str) -> int:
        return main(["--socket", str(self._path), *words])


def test_unsharing_revokes_every_share_and_nothing_else(
    daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over all pages; a grant that was made by hand stays."""
    shares = [grant(number, name="share:user:backup") for number in (1, 2, 4, 5)]
    grants = Grants(daemon, *shares[:2], grant(3, name="by hand"), *shares[2:])

    assert grants.kms("key", "unshare", KEY, "--with", "user:backup") == 0
    assert sorted(one.grant_id for one in grants.done) == [one.grant_id for one in shares]
    assert {*map(type, grants.done)} == {RevokeGrantRequest}
    assert "4 grants were revoked" in capsys.readouterr().out


def test_a_share_with_a_user_who_is_gone_can_be_taken_back(daemon: ScriptedDaemon) -> None:
    """The daemon knows nobody by that name any more, but the grants say whom they were made for."""
    grants = Grants(daemon, grant(1, name="share:user:backup"))
    grants.is_gone = True

    assert grants.kms("key", "unshare", KEY, "--with", "user:backup") == 0
    assert grants.done == [RevokeGrantRequest(key_id=KEY, grant_id=grant(1).grant_id)]


def test_unsharing_what_is_not_shared_is_an_error(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody believes that there is access, and may have to look elsewhere for it."""
    assert Grants(daemon, grant(1, name="by hand")).kms("key", "unshare", KEY, "--with", "user:backup") == 1
    said = capsys.readouterr().err

    assert said.startswith(f"kms: error: {KEY} is not shared with user:backup\n")
    assert f"kms policy show {KEY}" in said


@pytest.mark.parametrize(
    ("option", "has", "lacks"),
    [
        ("--encrypt-only", {"Encrypt", "GenerateDataKey", "ReEncryptTo", "DescribeKey"}, {"Decrypt", "ReEncryptFrom"}),
        ("--decrypt-only", {"Decrypt", "ReEncryptFrom", "DescribeKey"}, {"Encrypt", "GenerateDataKey", "ReEncryptTo"}),
        (None, {"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "DescribeKey"}, {"CreateGrant"}),
    ],
)
def test_a_share_is_a_grant(daemon: ScriptedDaemon, option: str | None, has: set[str], lacks: set[str]) -> None:
    """Of all that encrypting or decrypting takes, and with a name by which it is known again."""
    grants = Grants(daemon)

    assert grants.kms("key", "share", KEY, "--with", "unit:a.b.service", *([option] if option else [])) == 0
    [request] = grants.done

    assert has <= {*request.operations}
    assert not lacks & {*request.operations}
    assert request.name == "share:unit:a_b_service"
    assert request.constraints is None


def test_a_share_may_ask_for_an_encryption_context(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """At least these pairs."""
    grants = Grants(daemon)

    assert grants.kms("key", "share", KEY, "--with", "user:backup", "-c", "for=backup") == 0
    assert grants.done[0].constraints == GrantConstraints(encryption_context_subset={"for": "backup"})
    assert "where the encryption context has for=backup" in capsys.readouterr().out


def test_what_is_proposed_can_be_typed(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """systemd escapes characters of unit names by a backslash, and a shell takes that away."""
    unit = r"unit:a\x2db.service"

    assert Grants(daemon).kms("key", "share", KEY, "--with", unit) == 0
    proposed = capsys.readouterr().out.partition("to take it back: kms ")[2]

    assert shlex.split(proposed) == ["key", "unshare", KEY, "--with", unit]


def test_a_grant_is_made_as_it_is_said(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """And what revokes it is printed."""
    grants = Grants(daemon)
    words = ("--operation", "Decrypt", "--operation", "DescribeKey", "--retiring", "user:root", "--name", "n")

    assert grants.kms("grant", "create", KEY, "--to", "user:backup", *words, "--equals", "a=b") == 0
    assert grants.done == [
        CreateGrantRequest(
            key_id=KEY,
            grantee_principal="user:backup",
            operations=[GrantOperation.DECRYPT, GrantOperation.DESCRIBE_KEY],
            retiring_principal="user:root",
            constraints=GrantConstraints(encryption_context_equals={"a": "b"}),
            name="n",
        )
    ]
    assert capsys.readouterr().out == f"grant: {'a' * 64}\ntoken: {'t' * 8}\n"


def test_grants_are_listed_page_by_page(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """With what an encryption context has to be."""
    constraints = GrantConstraints(encryption_context_subset={"for": "x", "on": "y"})
    grants = Grants(daemon, grant(1), grant(2), grant(3, constraints=constraints))

    assert grants.kms("grant", "list", KEY) == 0
    lines = capsys.readouterr().out.splitlines()

    assert len(lines) == 4
    assert lines[3].endswith("user:backup  Decrypt, DescribeKey  with for=x, on=y")
    assert grants.kms("grant", "list", "--retirable", "user:backup") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_grant_is_retired_by_token_or_by_key_and_id(daemon: ScriptedDaemon) -> None:
    """Whoever does so may not be allowed to describe the key, so its ARN is taken as it is."""
    grants = Grants(daemon)
    arn = grant(1).key_id

    assert grants.kms("grant", "retire", "--token", "t" * 8) == 0
    assert grants.kms("grant", "retire", arn, "a" * 64) == 0
    assert grants.done == [
        RetireGrantRequest(grant_token="t" * 8),
        RetireGrantRequest(key_id=arn, grant_id="a" * 64),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("list", KEY, "--retirable", "user:a"),
        ("list", "--retirable", "user:a", "--to", "user:b"),
        ("retire",),
        ("retire", KEY),
        ("retire", "--token", "t", KEY),
        ("retire", "--token", "t", KEY, "a"),
    ],
    ids=" ".join,
)
def test_what_grant_is_meant_has_to_be_clear(daemon: ScriptedDaemon, words: tuple[str, ...]) -> None:
    """Nothing is guessed."""
    assert Grants(daemon).kms("grant", *words) == 2
