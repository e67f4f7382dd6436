"""From root to another user, in forked children."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Callable

import pytest

from kmsd.processes.privileges import Account, PrivilegesError, become, find_account
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user, in_child

# Two groups that no account here is in.
GROUPS = frozenset({DAEMON_GID, 54321})
ACCOUNT = Account("daemon", DAEMON_UID, DAEMON_GID, GROUPS)


def test_an_account_has_the_ids_and_groups_of_the_system() -> None:
    """The group that it is in by its entry belongs to them."""
    account = find_account("daemon")
    assert (account.name, account.uid, account.gid) == ("daemon", DAEMON_UID, DAEMON_GID)
    assert account.groups == frozenset(os.getgrouplist("daemon", DAEMON_GID))
    assert DAEMON_GID in account.groups


def test_a_user_that_does_not_exist_is_named() -> None:
    """With what makes it."""
    with pytest.raises(PrivilegesError, match="there is no user 'nobody-here': run `kmsd init`"):
        find_account("nobody-here")


def test_root_is_no_user_to_become(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever name: the id counts."""
    with pytest.raises(PrivilegesError, match="'root' is root"):
        find_account("root")
    toor = pwd.struct_passwd(("toor", "x", 0, 5, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: toor)
    with pytest.raises(PrivilegesError, match="'toor' is root"):
        find_account("toor")


def regained(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except PermissionError:
        return False
    return True


@pytest.mark.root
def test_root_becomes_the_account_for_good() -> None:
    """All three user and group ids, exactly its groups, and no way back to any of root's."""

    def act() -> str:
        become(ACCOUNT)
        assert os.getresuid() == (DAEMON_UID,) * 3
        assert os.getresgid() == (DAEMON_GID,) * 3
        assert frozenset(os.getgroups()) == GROUPS
        attempts: list[Callable[[], object]] = [
            lambda: os.setresuid(0, 0, 0),
            lambda: os.setresuid(-1, 0, -1),
            lambda: os.setresgid(0, 0, 0),
            lambda: os.setgroups([0]),
            lambda: os.open("/etc/shadow", os.O_RDONLY),
        ]
        return str([regained(attempt) for attempt in attempts])

    assert in_child(act) == str([False] * 5)


@pytest.mark.root
def test_who_is_not_root_becomes_nobody_else() -> None:
    """It is told, and nothing has changed."""

    def act() -> str:
        try:
            become(ACCOUNT)
        except PrivilegesError as error:
            return f"{error} ({os.getresuid()})"
        return "became it"

    assert as_user(54321, 54321, act) == (
        "this process cannot become the user 'daemon': Operation not permitted ((54321, 54321, 54321))"
    )


@pytest.mark.root
def test_rights_that_survive_the_change_are_noticed() -> None:
    """Security bits may keep a process's capabilities: it could become root again, and must not go on."""

    def act() -> str:
        # linux/prctl.h, linux/securebits.h: a change of user leaves the capabilities as they are.
        pr_set_securebits, no_setuid_fixup = 28, 1 << 2
        assert ctypes.CDLL(None).prctl(pr_set_securebits, no_setuid_fixup, 0, 0, 0) == 0
        try:
            become(ACCOUNT)
        except PrivilegesError as error:
            return str(error)
        return "became it"

    assert "could become root again" in in_child(act)
