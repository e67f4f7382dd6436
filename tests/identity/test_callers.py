"""Callers: peers with the names that the host gives them, and what could not be found out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from kmsd.identity.answering import Found, Kind, Subject
from kmsd.identity.callers import Callers, ProcessLookups
from kmsd.identity.directory import Directory
from kmsd.identity.peer import Peer
from kmsd.identity.principals import Administrators, Caller, NameServiceError
from kmsd.identity.process import Process

NOBODY_ADMINISTERS = Administrators(frozenset())
USUAL = Administrators(frozenset({0}), ("kms-admin", "missing"))


@dataclass
class Answers:
    """Names and processes; `away` is what cannot be asked now."""

    users: dict[int, str] = field(default_factory=lambda: {1000: "alice"})
    uids: dict[str, int] = field(default_factory=lambda: {"alice": 1000})
    gids: dict[str, int] = field(default_factory=lambda: {"kms-admin": 900})
    exe: str | None = "/usr/bin/kms"
    cgroup: str | None = "/system.slice/nginx.service"
    away: tuple[Subject | Kind, ...] = ()

    async def ask(self, kind: Kind, subject: Subject) -> Found:
        if kind in self.away or subject in self.away:
            raise NameServiceError("away")
        if kind == "program_of":
            return self.exe
        if kind == "cgroup_of":
            return self.cgroup
        if kind == "user_name":
            return next((name for uid, name in self.users.items() if uid == subject), None)
        return {"uid_of": self.uids, "gid_of": self.gids}[kind].get(str(subject))


class Living(Process):
    """A process that lives as long as the test wants."""

    ended = False

    def __init__(self, *, certain: bool = True) -> None:
        self.pid = 42
        self.certain = certain
        self.cgroup_id = 7


def peer(uid: int = 1000, gid: int = 1000, groups: tuple[int, ...] = ()) -> Peer:
    return Peer(uid=uid, gid=gid, groups=frozenset(groups), pid=42)


async def caller_of(
    who: Peer,
    answers: Answers | None = None,
    administrators: Administrators = NOBODY_ADMINISTERS,
    process: Process | None = None,
) -> Caller:
    answers = answers or Answers()
    callers = Callers(Directory(answers), ProcessLookups(answers, answers), administrators)
    return await callers.caller_of(who, process or Living())


async def test_a_caller_has_its_name_and_all_its_groups() -> None:
    """The primary group counts like the others."""
    found = await caller_of(peer(1000, 100, (4, 24)))

    assert found.user == "alice"
    assert found.groups == {100, 4, 24}
    assert (found.pid, found.exe, found.unit) == (42, "/usr/bin/kms", "nginx.service")
    assert found.undetermined == frozenset()


async def test_a_caller_unknown_to_the_host_has_no_name() -> None:
    """Subordinate and container uids have none, and that is certain."""
    found = await caller_of(peer(100_000))

    assert found.user is None
    assert found.undetermined == frozenset()


async def test_a_name_that_leads_to_another_uid_is_not_a_callers_name() -> None:
    """A policy written for that name would be about somebody else."""
    assert (await caller_of(peer(1000), Answers(users={1000: "bob"}, uids={"bob": 1001}))).user is None


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (peer(0, 0), True),
        (peer(1000, 900), True),
        (peer(1000, 1000, (4, 900)), True),
        (peer(1000, 1000, (4,)), False),
        (peer(900, 1000), False),
    ],
    ids=["by uid", "by primary group", "by supplementary group", "in other groups", "a uid like the group's gid"],
)
async def test_administrators_are_uids_and_members_of_groups(who: Peer, expected: bool) -> None:
    """Uid 0 and the group kms-admin, as they are by default."""
    assert (await caller_of(who, administrators=USUAL)).administrator is expected


async def test_who_cannot_be_asked_for_is_undetermined() -> None:
    """A user without a name and one whose name is not known now are different."""
    found = await caller_of(peer(1000), Answers(away=(1000, "kms-admin")), USUAL)

    assert (found.user, found.administrator) == (None, False)
    assert found.undetermined == {"user", "administrator"}


async def test_one_group_that_is_known_is_enough_for_an_administrator() -> None:
    """Whatever the others are."""
    found = await caller_of(peer(1000, 900), Answers(away=("missing",)), Administrators(USUAL.uids, USUAL.groups[::-1]))

    assert found.administrator
    assert found.undetermined == frozenset()


async def test_a_uid_administers_whatever_the_name_service_does() -> None:
    """Root can unseal while the directory is away."""
    found = await caller_of(peer(0), Answers(away=("user_name", "uid_of", "gid_of")), USUAL)

    assert found.administrator
    assert found.undetermined == {"user"}


async def test_a_unit_of_a_users_manager_is_no_unit_of_the_system() -> None:
    """Not even of the same name."""
    of_user = Answers(cgroup="/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service")
    found = await caller_of(peer(), of_user)

    assert (found.unit, found.user_unit) == (None, "1000/nginx.service")
    assert found.grantees == {"uid:1000", "gid:1000", "user-unit:1000/nginx.service"}


@pytest.mark.parametrize(
    ("answers", "undetermined"),
    [
        (Answers(exe=None), {"exe"}),
        (Answers(away=("program_of",)), {"exe"}),
        (Answers(cgroup=None), {"unit", "user_unit"}),
        (Answers(cgroup="/../nginx.service"), {"unit", "user_unit"}),
        (Answers(away=("cgroup_of",)), {"unit", "user_unit"}),
    ],
)
async def test_what_is_not_told_of_a_process_is_undetermined(answers: Answers, undetermined: set[str]) -> None:
    """Each by itself."""
    assert (await caller_of(peer(), answers)).undetermined == undetermined


async def test_a_process_that_may_be_another_has_no_unit() -> None:
    """Where only the pid was known: a unit is let in by its name."""
    found = await caller_of(peer(), process=Living(certain=False))

    assert (found.exe, found.unit) == ("/usr/bin/kms", None)
    assert found.undetermined == {"unit", "user_unit"}
