"""Callers, and the principals that policies know them by.

A *caller* is a peer with the names the host gives it, fixed when it connected. A *principal* is what a policy says: it
matches a caller, does not, or cannot tell. One that cannot tell counts for every Deny and for no Allow (DESIGN 5).
"""

from __future__ import annotations

import enum
import functools
import grp
import pwd
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kmsd.api.errors import DependencyTimeoutError

# uid_t and gid_t; the highest value means "none" (credentials(7)).
_MAX_ID = 2**32 - 2
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,9}")
# What useradd, directory services (DOMAIN\user, user@domain) and systemd give, within LOGIN_NAME_MAX; nothing that is
# a separator or a wildcard here.
_NAME = re.compile(r"(?:(?![/:*?])[!-~\xa1-\xff]){1,255}")

# unit_name_is_valid() in systemd's src/basic/unit-name.c: these characters, an @ not the first, and 255 of them. Of its
# suffixes, those of units whose processes systemd starts: a scope is no unit here (kmsd.identity.units).
_UNIT = re.compile(r"([A-Za-z0-9:_.\\-]+(?:@[A-Za-z0-9:_.\\@-]*)?)\.(?:service|socket|mount|swap)")
_MAX_UNIT_NAME = 255
# As the kernel shows it: absolute, and free of ".", ".." and empty parts. It stands in explanations, and so has no
# characters that control a terminal or have no UTF-8 form.
_PATH = re.compile(r"(?:/(?!\.{0,2}(?:/|\Z))[^/\x00-\x1f\x7f-\x9f\ud800-\udfff*?]+)+")

_ValueT = TypeVar("_ValueT")


class Names(Protocol):
    """The host's names of users and groups; None where there is no such id or name."""

    def user_name(self, uid: int) -> str | None:
        """Return the name of `uid`."""

    def group_name(self, gid: int) -> str | None:
        """Return the name of `gid`."""

    def uid_of(self, name: str) -> int | None:
        """Return the uid of the user `name`."""

    def gid_of(self, name: str) -> int | None:
        """Return the gid of the group `name`."""


class NameServiceError(DependencyTimeoutError):
    """The name service cannot be asked now, so whether there is such a name is not known."""


class HostNames:
    """The names that the C library's name service knows, asked in this process."""

    def user_name(self, uid: int) -> str | None:
        """Return the name of `uid`, the first one if it has several."""
        return _found(lambda: pwd.getpwuid(uid).pw_name)

    def group_name(self, gid: int) -> str | None:
        """Return the name of `gid`, the first one if it has several."""
        return _found(lambda: grp.getgrgid(gid).gr_name)

    def uid_of(self, name: str) -> int | None:
        """Return the uid of the user `name`."""
        return _found(lambda: pwd.getpwnam(name).pw_uid)

    def gid_of(self, name: str) -> int | None:
        """Return the gid of the group `name`."""
        return _found(lambda: grp.getgrnam(name).gr_gid)


def is_name(text: str) -> bool:
    """Tell whether a user or group could be called so."""
    return _NAME.fullmatch(text) is not None


def _found(look_up: Callable[[], _ValueT]) -> _ValueT | None:
    try:
        return look_up()
    except KeyError:
        return None


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A peer as policies and the audit trail see it, fixed when it connected.

    `user` is the name of `uid`, None if it has none. `unit` is its system unit, `user_unit` the unit of a user's
    manager as "UID/NAME"; None if it is in none. `exe` is the path of its program. `administrator` tells whether it is
    one of the host's administrators, whom policies call the account's root. `undetermined` names those of these that
    could not be found out; they are None, or False, then.
    """

    uid: int
    gid: int
    groups: frozenset[int]
    pid: int
    user: str | None
    unit: str | None
    exe: str | None
    administrator: bool
    user_unit: str | None = None
    undetermined: frozenset[str] = frozenset()

    @functools.cached_property
    def grantees(self) -> frozenset[str]:
        """Every way in which a grant can name this caller: the `key` of each principal that means it for certain."""
        units = [f"unit:{self.unit}"] if self.unit else []
        user_units = [f"user-unit:{self.user_unit}"] if self.user_unit else []
        administrators = [PrincipalKind.ADMINISTRATORS.value] if self.administrator else []
        gids = (f"gid:{gid}" for gid in {self.gid, *self.groups})
        return frozenset([f"uid:{self.uid}", *gids, *units, *user_units, *administrators])


@dataclass(frozen=True)
class Administrators:
    """Who administers the service: users by uid, and members of groups by the groups' names."""

    uids: frozenset[int]
    groups: tuple[str, ...] = ()


class PrincipalKind(enum.StrEnum):
    """What a principal looks at."""

    UID = "uid"
    GID = "gid"
    UNIT = "unit"
    USER_UNIT = "user-unit"
    EXE = "exe"
    ANY = "any"
    ADMINISTRATORS = "administrators"


@dataclass(frozen=True)
class Principal:
    """Somebody a policy speaks of.

    `value` is a uid or gid. For a user or group given by `name` it is the id that the name had when the policy was
    stored (None: it had none), and `current` the one it has now (None: it has none). Where these differ, the account
    was removed, renamed or made anew, and whom the policy meant cannot be told. `text` is the unit, "UID/UNIT" or path
    of the other kinds.
    """

    kind: PrincipalKind
    value: int | None = None
    name: str | None = None
    current: int | None = None
    text: str | None = None

    @property
    def suspended(self) -> bool:
        """Whether the name no longer leads to the id it had when the policy was stored."""
        return self.name is not None and (self.value is None or self.value != self.current)

    @property
    def ids(self) -> frozenset[int]:
        """The uids or gids that may be meant."""
        found = (self.value, self.current) if self.name is not None else (self.value,)
        return frozenset(one for one in found if one is not None)

    @property
    def key(self) -> str:
        """What grants are compared by: the text that `Caller.grantees` has of whom this means.

        That is `uid:34` for a user by name; a name without an id is its own, which no caller has.
        """
        return str(self) if self.value is None else f"{self.kind.value}:{self.value}"

    def matches(self, caller: Caller) -> bool | None:
        """Tell whether `caller` is meant; None if that cannot be told: it then counts for a Deny, not for an Allow."""
        if self.kind is PrincipalKind.ANY:
            return True
        if (attribute := ATTRIBUTES.get(self.kind)) is not None:
            if attribute in caller.undetermined:
                return None
            held: object = getattr(caller, attribute)
            return held == (True if self.kind is PrincipalKind.ADMINISTRATORS else self.text)
        ids = {caller.uid} if self.kind is PrincipalKind.UID else caller.groups | {caller.gid}
        if self.ids.isdisjoint(ids):
            return False
        return None if self.suspended else True

    def __str__(self) -> str:
        if self.kind is PrincipalKind.ANY:
            return "*"
        if self.kind is PrincipalKind.ADMINISTRATORS:
            return self.kind.value
        if self.text is not None:
            return f"{self.kind.value}:{self.text}"
        if self.name is None:
            return f"{self.kind.value}:{self.value}"
        return f"{_NAMED[self.kind]}:{self.name}"


# What of a caller each kind looks at that can be undetermined; uids and gids are what the kernel said.
ATTRIBUTES = {
    PrincipalKind.ADMINISTRATORS: "administrator",
    PrincipalKind.UNIT: "unit",
    PrincipalKind.USER_UNIT: "user_unit",
    PrincipalKind.EXE: "exe",
}
_NAMED = {PrincipalKind.UID: "user", PrincipalKind.GID: "group"}
ANYBODY = Principal(PrincipalKind.ANY)
ADMINISTRATORS = Principal(PrincipalKind.ADMINISTRATORS)
_FORMS = (
    '"uid:N", "user:NAME", "gid:N", "group:NAME", "unit:NAME", "user-unit:UID/NAME", "exe:/PATH", "administrators" '
    'and "*"'
)


def parse_principal(text: str, names: Names, resolved: Mapping[str, int] | None = None) -> Principal:
    """Return the principal that `text` stands for.

    It is one of `uid:N`, `user:NAME`, `gid:N`, `group:NAME`, `unit:NAME`, `user-unit:UID/NAME`, `exe:/PATH`,
    `administrators` and `*`. `resolved` gives the ids that names had when the policy was stored, by the principal's
    text; without it they are what `names` says now. Raises ValueError with a message for people.
    """
    if text == "*":
        return ANYBODY
    if text == PrincipalKind.ADMINISTRATORS:
        return ADMINISTRATORS
    kind, _, value = text.partition(":")
    if kind in {"uid", "gid"}:
        _check_id(text, value)
        return Principal(PrincipalKind(kind), int(value))
    if kind in {"user", "group"}:
        if not is_name(value):
            raise ValueError(f"{text!a:.80} is not the name of a {kind}")
        current = names.uid_of(value) if kind == "user" else names.gid_of(value)
        stored = current if resolved is None else resolved.get(text)
        return Principal(PrincipalKind.UID if kind == "user" else PrincipalKind.GID, stored, value, current)
    if (check := _CHECKS.get(kind)) is None:
        raise ValueError(f"{text!a:.80} is none of {_FORMS}")
    check(text, value)
    return Principal(PrincipalKind(kind), text=value)


def _check_id(text: str, number: str) -> None:
    if not _DECIMAL.fullmatch(number) or int(number) > _MAX_ID:
        raise ValueError(f"{text!a:.80} needs a decimal number up to {_MAX_ID}, without leading zeros")


def _check_unit(text: str, unit: str) -> None:
    found = _UNIT.fullmatch(unit) if len(unit) <= _MAX_UNIT_NAME else None
    if found is None:
        raise ValueError(
            f"{text!a:.80} needs the whole name of a unit that has processes: NAME.service, .socket, .mount or "
            ".swap, without wildcards"
        )
    if found[1].partition("@")[1:] == ("@", ""):
        raise ValueError(f"{text!a:.80} is a template, of which no process runs: name an instance, as in a@b.service")


def _check_user_unit(text: str, value: str) -> None:
    uid, separator, unit = value.partition("/")
    if not separator:
        raise ValueError(f"{text!a:.80} needs the user's uid and a unit: user-unit:1000/sync.service")
    _check_id(text, uid)
    _check_unit(text, unit)


def _check_path(text: str, path: str) -> None:
    if not _PATH.fullmatch(path):
        raise ValueError(f"{text!a:.80} needs the absolute path of a program, without wildcards, . and ..")


# What is valid after "unit:" and the like.
_CHECKS: dict[str, Callable[[str, str], None]] = {
    "unit": _check_unit,
    "user-unit": _check_user_unit,
    "exe": _check_path,
}
