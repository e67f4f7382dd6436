"""Which unit of systemd a control group belongs to.

systemd gives each unit that has processes a control group of the unit's name, below those of its slices, and makes and
moves them as root. What lies below a unit may have been delegated, so that a service, or a user, names groups there at
will; what lies above may not. So the path is read from its top, and the first group that is no slice is the unit:

    /system.slice/nginx.service                             nginx.service
    /system.slice/system-foo.slice/foo@bar.service/x/y      foo@bar.service
    /user.slice/user-1000.slice/user@1000.service/app.slice/sync.service
                                                            sync.service of uid 1000's manager, no unit of the system
    /user.slice/user-1000.slice/session-3.scope             none
    /machine.slice/systemd-nspawn@x.service/payload/system.slice/nginx.service
                                                            systemd-nspawn@x.service, whatever runs in it

A scope is no unit here: it holds processes that others started, a login or a container, and who may register one is
decided by what has no key. What is not as systemd makes it is undetermined: no Allow fits, and every Deny does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNIT = "unit"
USER_UNIT = "user_unit"
# Units that have processes (systemd.unit(5)), beside slices, which hold units, and scopes.
_SUFFIXES = (".service", ".socket", ".mount", ".swap")
_SCOPE = ".scope"
_SLICE = ".slice"
# systemd's VALID_CHARS and UNIT_NAME_MAX (src/basic/unit-name.c).
_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+")
_MAX_NAME = 255
# The manager of a user's units. Its instance is the uid.
_MANAGER = re.compile(r"user@(0|[1-9][0-9]{0,9})\.service")
_MANAGERS = "user@"
_DELETED = " (deleted)"


@dataclass(frozen=True)
class Units:
    """The system unit of a process, or the unit of a user's manager as "UID/NAME"; `undetermined` names which is not.

    Nobody is in both.
    """

    unit: str | None = None
    user_unit: str | None = None
    undetermined: frozenset[str] = frozenset()


UNDETERMINED = Units(undetermined=frozenset({UNIT, USER_UNIT}))


def units_of(path: str) -> Units:
    """Return the units of a process whose control group is `path`, as seen from the top of the host's hierarchy."""
    if path == "/":
        return Units()  # a host without systemd
    names = path.split("/")
    if names[0] or path.endswith(_DELETED) or not {"", ".", ".."}.isdisjoint(names[1:]):
        return UNDETERMINED
    name, below = _first_unit(names[1:])
    if name is None:
        return UNDETERMINED
    if name.startswith(_MANAGERS):
        return _of_manager(name, below)
    return Units() if name.endswith(_SCOPE) else Units(unit=name)


def unified_path(text: str) -> str | None:
    """Return systemd's own path out of /proc/PID/cgroup (cgroups(7)), None if there is none.

    On a host whose hierarchy is not the unified one, or not only, it is that of name=systemd.
    """
    paths = {}
    # A name may hold whatever else ends a line of text (kernel/cgroup/cgroup.c, cgroup_mkdir): users name theirs.
    for line in text.removesuffix("\n").split("\n"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        paths[controllers] = path
    return paths.get("name=systemd", paths.get("")) or None


def _of_manager(name: str, below: list[str]) -> Units:
    manager = _MANAGER.fullmatch(name)
    if manager is None:
        return UNDETERMINED
    unit, _ = _first_unit(below)
    if unit is None:
        # Of the system's units it is in none, whatever its user made of the groups below.
        return Units(undetermined=frozenset({USER_UNIT}))
    return Units() if unit.endswith(_SCOPE) else Units(user_unit=f"{manager[1]}/{unit}")


def _first_unit(names: list[str]) -> tuple[str | None, list[str]]:
    """Return the first name that is not a slice's, None if it is no unit's, and the names below it."""
    for depth, escaped in enumerate(names):
        # What could be taken for a file of the kernel's, and what begins with "_", has "_" in front (cg_escape).
        name = escaped.removeprefix("_")
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
            return None, []
        if not name.endswith(_SLICE):
            return (name if _is_unit(name) else None), names[depth + 1 :]
    return None, []


def _is_unit(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    # A template has no processes.
    return bool(stem) and not stem.endswith("@") and dot + suffix in {*_SUFFIXES, _SCOPE}
