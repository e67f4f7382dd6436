"""From root to the service's own user, for good."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass


class PrivilegesError(RuntimeError):
    """The process cannot become the user it should run as; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """A user of the host with all groups it is in."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int]


def find_account(name: str) -> Account:
    """Return the user `name`; raises PrivilegesError when there is none, or when it is root."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise PrivilegesError(f"there is no user {name!r}: run `kmsd init`, or correct the setting `user`") from None
    if entry.pw_uid == 0:
        raise PrivilegesError(f"the user {name!r} is root: name one in `user` that has no rights of its own")
    return Account(name, entry.pw_uid, entry.pw_gid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def become(account: Account) -> None:
    """Become `account`, without a way back: all three user and group ids, and its groups instead of root's.

    Root only, and before there is any thread, as each has credentials of its own. It makes the process dumpable again:
    harden it afterwards. Raises PrivilegesError; the process must end then.
    """
    try:
        os.setgroups(sorted(account.groups))
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise PrivilegesError(f"this process cannot become the user {account.name!r}: {error.strerror}") from None
    _check(account)


def _check(account: Account) -> None:
    """Make sure that it happened and cannot be undone: capabilities or security bits may keep what the ids gave up."""
    expected = ((account.uid,) * 3, (account.gid,) * 3, account.groups)
    if (os.getresuid(), os.getresgid(), frozenset(os.getgroups())) != expected:
        raise PrivilegesError(f"this process did not become the user {account.name!r}")
    with contextlib.suppress(PermissionError):
        os.setresuid(0, 0, 0)
        raise _not_for_good(account)
    with contextlib.suppress(PermissionError):
        os.setgroups([0])
        raise _not_for_good(account)


def _not_for_good(account: Account) -> PrivilegesError:
    return PrivilegesError(
        f"as the user {account.name!r} this process could become root again: start it without capabilities and with "
        "the usual security bits"
    )
