"""Whose default key is meant: what `alias/kmsd/default` and `alias/kmsd/unit` stand for, caller by caller.

A user's key belongs to his uid and his name together. So whoever gets a uid that somebody else had has a key of his
own, and so has an account that was renamed: neither reads what was encrypted before.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kmsd.api.errors import AccessDeniedError, NotFoundError
from kmsd.identity.principals import Caller, parse_principal

DEFAULT_ALIAS = "alias/kmsd/default"
UNIT_ALIAS = "alias/kmsd/unit"

# The uids that systemd gives to DynamicUser= services and takes away when they stop (UIDS-GIDS.md of systemd).
_DYNAMIC_UIDS = range(61184, 65520)
# What nobody has named, and what has another name next time, or whose name is another's after the next boot: units that
# systemd-run and dbus-broker start, and those of a socket with Accept=, which have the number of the connection, lately
# its cookie, and who is at its ends (instance_from_socket() in systemd's src/core/socket.c).
_NUMBER = "(?:0|[1-9][0-9]*)"
_ENDS = rf"(?:unknown|{_NUMBER}(?:_{_NUMBER})?-{_NUMBER}|[^-]+:{_NUMBER}-[^-]+:{_NUMBER})"
_UNNAMED = re.compile(
    rf"(?:run-(?:u?[0-9]+|r[0-9a-f]{{32}}|p[0-9]+-i[0-9]+)|dbus-:[0-9.]+-.+@[0-9]+|[^@]+@{_NUMBER}-(?:{_NUMBER}-)?{_ENDS})"
    r"\.service"
)


class Owner(NamedTuple):
    """An owner of a default key: `text` is how the store knows him, `principal` how the key's policy does.

    `uid` is None for a unit.
    """

    text: str
    principal: str
    uid: int | None

    @property
    def resolved(self) -> dict[str, int]:
        """The id behind the principal, if it is a name: whoever has the name later is somebody else."""
        return {} if self.uid is None else {self.principal: self.uid}

    @property
    def description(self) -> str:
        """What the key is described as."""
        kind, _, name = self.principal.partition(":")
        return f"key of unit {name}" if self.uid is None else f"default key of {kind} {name} (uid {self.uid})"


def user_owner(uid: int, name: str) -> Owner:
    """Return the user of this uid and name as an owner."""
    principal = f"user:{name}"
    return Owner(f"uid:{uid}/{principal}", principal, uid)


def unit_owner(unit: str) -> Owner:
    """Return a system unit as an owner.

    Raises NotFoundError for a unit that has no key: another may have its name next time.
    """
    if not unit.endswith(".service") or _UNNAMED.fullmatch(unit):
        raise NotFoundError(f"{unit} has no key of its own: only services that were given a name have one")
    return _unit(unit)


def _unit(unit: str) -> Owner:
    principal = f"unit:{unit}"
    return Owner(principal, principal, None)


def read_owner(text: str) -> Owner:
    """Return the owner whose `text` this is, also of one that would be given no key any more."""
    uid, separator, name = text.partition("/user:")
    if separator and uid.startswith("uid:"):
        return user_owner(int(uid.removeprefix("uid:")), name)
    return _unit(text.removeprefix("unit:"))


def owner_of(caller: Caller, alias: str) -> Owner:
    """Return whose key one of the two aliases means when `caller` says it.

    Raises NotFoundError for who has none, and AccessDeniedError where that could not be found out.
    """
    in_unit = caller.unit is not None or "unit" in caller.undetermined
    if alias == UNIT_ALIAS or (caller.uid in _DYNAMIC_UIDS and in_unit):
        return _unit_of(caller)
    if "user" in caller.undetermined:
        raise AccessDeniedError(
            f"the name of uid {caller.uid} could not be found out when it connected, so its default key cannot either: "
            "connect again"
        )
    if caller.user is None or caller.uid in _DYNAMIC_UIDS:
        raise NotFoundError(
            f"uid {caller.uid} has no default key: only users whom passwd knows have one, and services, by their "
            "units; name another key"
        )
    return user_owner(caller.uid, caller.user)


class _NoNames:
    """A host without users and groups: what is asked is only whether a name can be one."""

    def user_name(self, uid: int) -> None:
        """Know no name."""

    def group_name(self, gid: int) -> None:
        """Know no name."""

    def uid_of(self, name: str) -> None:
        """Know no user."""

    def gid_of(self, name: str) -> None:
        """Know no group."""


def check_nameable(owner: Owner) -> None:
    """Raise NotFoundError unless a policy can name the owner: nobody could use a key whose policy cannot be read."""
    try:
        parse_principal(owner.principal, _NoNames(), owner.resolved)
    except ValueError as error:
        raise NotFoundError(f"there is no default key for it, as no policy could name its owner: {error}") from None


def _unit_of(caller: Caller) -> Owner:
    if "unit" in caller.undetermined:
        raise AccessDeniedError("the caller's system unit could not be found out, so its key cannot either")
    if caller.unit is None:
        raise NotFoundError("the caller is in no system unit, so there is no key of its unit")
    return unit_owner(caller.unit)
