"""Callers and principals, over given names."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.identity.principals import (
    ADMINISTRATORS,
    ANYBODY,
    Caller,
    PrincipalKind,
    parse_principal,
)


@dataclass
class GivenNames:
    users: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    def user_name(self, uid: int) -> str | None:
        return next((name for name, one in self.users.items() if one == uid), None)

    def group_name(self, gid: int) -> str | None:
        return next((name for name, one in self.groups.items() if one == gid), None)

    def uid_of(self, name: str) -> int | None:
        return self.users.get(name)

    def gid_of(self, name: str) -> int | None:
        return self.groups.get(name)


def caller(uid: int = 1000, gid: int = 1000, groups: tuple[int, ...] = (), *, administrator: bool = False) -> Caller:
    return Caller(
        uid=uid,
        gid=gid,
        groups=frozenset(groups),
        pid=42,
        user=None,
        unit=None,
        exe=None,
        administrator=administrator,
    )


NAMES = GivenNames(users={"alice": 1000, "bob": 1001}, groups={"backup": 34, "kms-admin": 900})


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("uid:1000", caller(1000), caller(1001, 1000, (1000,))),
        ("user:alice", caller(1000), caller(1001)),
        ("gid:34", caller(1, 34), caller(34)),
        ("gid:34", caller(1, 1, (34,)), caller(34)),
        ("group:backup", caller(1, 1, (34,)), caller(34)),
        ("administrators", caller(5, administrator=True), caller(0, 0)),
    ],
)
def test_a_principal_matches_whom_it_says(text: str, matching: Caller, other: Caller) -> None:
    """Users match by uid, groups by any group of the caller, administrators by the host's configuration only."""
    principal = parse_principal(text, NAMES)

    assert principal.matches(matching) is True
    assert principal.matches(other) is False
    assert str(principal) == text


def test_everybody_is_matched_by_the_asterisk() -> None:
    """`*` is anybody who connects."""
    assert parse_principal("*", NAMES) == ANYBODY
    assert ANYBODY.matches(caller(4_000_000_000)) is True
    assert str(ANYBODY) == "*"


def test_administrators_are_one_principal() -> None:
    """The Unix form and the account's root are the same."""
    assert parse_principal("administrators", NAMES) == ADMINISTRATORS


@pytest.mark.parametrize(("kind", "name"), [("user", "alice"), ("group", "backup")])
@pytest.mark.parametrize("now", [77, None], ids=["another id", "no id"])
def test_a_name_that_moved_can_no_longer_tell_whom_it_means(kind: str, name: str, now: int | None) -> None:
    """Who holds the old id or the new one may be meant: undetermined, so denied but never allowed."""
    names = GivenNames(users={"alice": now} if now else {}, groups={"backup": now} if now else {})
    text = f"{kind}:{name}"
    principal = parse_principal(text, names, {text: 50})

    assert principal.suspended
    assert principal.matches(caller(50, 50)) is None
    assert principal.matches(caller(77, 77)) is (None if now else False)
    assert principal.matches(caller(1, 1)) is False
    assert str(principal) == text


def test_a_name_that_was_never_resolved_allows_nobody() -> None:
    """A stored policy without the id of a name does not follow the name."""
    principal = parse_principal("user:alice", NAMES, {})

    assert principal.matches(caller(1000)) is None


def test_a_name_that_still_leads_there_is_not_suspended() -> None:
    """Nothing changed, nothing is suspended."""
    principal = parse_principal("user:alice", NAMES, {"user:alice": 1000})

    assert not principal.suspended
    assert (principal.kind, principal.value) == (PrincipalKind.UID, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "uid:",
        "uid:-1",
        "uid:+1",
        "uid:01",
        "uid: 1",
        "uid:1_0",
        "uid:٣",
        "uid:4294967295",
        "uid:99999999999999999999",
        "uid:alice",
        "user:",
        "user:*",
        "user:al?ce",
        "user:al ice",
        "user:al\x00ice",
        "user:al\ud800ice",
        "user:a/b",
        "user:a:b",
        "user:" + "a" * 256,
        "group:",
        "UID:1000",
        "user",
        "**",
    ],
)
def test_what_is_no_principal_is_refused(text: str) -> None:
    """No spelling but the one is read, so that nobody is meant by accident."""
    with pytest.raises(ValueError, match=r".") as refused:
        parse_principal(text, NAMES)

    assert len(str(refused.value)) < 200


UNIT, USER_UNIT = "nginx.service", "1000/sync.service"
LONGEST_UNIT = "u" * 247 + ".service"


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("unit:nginx.service", "unit", "nginx.service"),
        ("unit:getty@tty1.service", "unit", "getty@tty1.service"),
        ("unit:a@b@c.service", "unit", "a@b@c.service"),
        ("unit:dev-disk-by\\x2dlabel-a.swap", "unit", "dev-disk-by\\x2dlabel-a.swap"),
        (f"unit:{LONGEST_UNIT}", "unit", LONGEST_UNIT),
        ("user-unit:1000/sync.service", "user_unit", "1000/sync.service"),
        ("exe:/usr/bin/restic", "exe", "/usr/bin/restic"),
        ("exe:/opt/a b/..c", "exe", "/opt/a b/..c"),
    ],
)
def test_units_and_programs_are_matched_as_they_are_called(text: str, attribute: str, value: str) -> None:
    """Of one and the same kind only, and where it cannot be told, neither yes nor no."""
    principal = parse_principal(text, NAMES)
    fitting: dict[str, Any] = {attribute: value}
    other: dict[str, Any] = {attribute: f"{value}x"}

    assert principal.matches(dataclasses.replace(caller(), **fitting)) is True
    assert principal.matches(dataclasses.replace(caller(), **other)) is False
    assert principal.matches(caller()) is False
    assert principal.matches(dataclasses.replace(caller(), undetermined=frozenset({attribute}))) is None
    assert str(principal) == principal.key == text


def test_a_unit_of_a_users_manager_is_not_the_system_unit_of_that_name() -> None:
    """Anybody can call a unit of theirs nginx.service."""
    users = dataclasses.replace(caller(), user_unit="1000/nginx.service")

    assert parse_principal("unit:nginx.service", NAMES).matches(users) is False


def test_who_may_or_may_not_be_an_administrator_is_told_neither() -> None:
    """The membership in a group by name may be what could not be looked up."""
    unknown = dataclasses.replace(caller(), undetermined=frozenset({"administrator"}))

    assert ADMINISTRATORS.matches(unknown) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (f"unit:{name}", "needs the whole name of a unit")
            for name in (
                *("", "nginx", ".service", "@a.service", "a b.service", "a/b.service", "ngin*.service", "a?.service"),
                *(
                    "multi-user.target",
                    "a.timer",
                    "session-3.scope",
                    "\xe9.service",
                    "u" * 248 + ".service",
                    "a.service\n",
                ),
            )
        ),
        ("unit:a@.service", "is a template"),
        ("user-unit:sync.service", "needs the user's uid and a unit"),
        ("user-unit:alice/sync.service", "needs a decimal number"),
        ("user-unit:01/sync.service", "needs a decimal number"),
        ("user-unit:1000/sync", "needs the whole name of a unit"),
        ("user-unit:1000/a@.service", "is a template"),
        *(
            (f"exe:{path}", "needs the absolute path")
            for path in (
                "",
                "restic",
                "/",
                "//bin",
                "/bin/",
                "/bin/../sh",
                "/./sh",
                "/bin/*",
                "/bin/s?",
                "/bin/\n",
                "/\x9b",
                "/\ud800",
            )
        ),
    ],
)
def test_units_and_programs_of_another_form_are_refused(text: str, message: str) -> None:
    """No caller is called so, so that a Deny would be for nobody."""
    with pytest.raises(ValueError, match=message):
        parse_principal(text, NAMES)


def test_a_principal_by_name_is_compared_by_its_id() -> None:
    """What a grant is given to is the account, not whoever has its name later."""
    assert parse_principal("user:alice", NAMES).key == "uid:1000"
    assert parse_principal("group:backup", NAMES).key == "gid:34"
    assert parse_principal("user:alice", NAMES, {"user:alice": 77}).key == "uid:77"
    assert parse_principal("user:mallory", NAMES).key == "user:mallory"
    assert (ANYBODY.key, ADMINISTRATORS.key) == ("*", "administrators")


def test_a_caller_knows_how_grants_can_name_it() -> None:
    """By ids and units, never by its program, and by nothing that could not be determined."""
    service = dataclasses.replace(
        caller(1000, 100, (4,)), user="alice", unit=UNIT, user_unit=USER_UNIT, exe="/bin/sh", administrator=True
    )
    unclear = dataclasses.replace(caller(1000, 100), undetermined=frozenset({"unit", "user_unit", "administrator"}))

    assert service.grantees == {
        *("uid:1000", "gid:100", "gid:4", "unit:nginx.service", "user-unit:1000/sync.service", "administrators")
    }
    assert unclear.grantees == {"uid:1000", "gid:100"}


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    """Whatever comes is a principal or a ValueError."""
    try:
        principal = parse_principal(text, NAMES)
    except ValueError:
        return

    assert parse_principal(str(principal), NAMES) == principal
