"""What the daemon asks its children, answered in the test's own process."""

from __future__ import annotations

from kmsd.identity.answering import Found, Kind, Subject, groups_of
from kmsd.identity.cgroups import Cgroups
from kmsd.identity.directory import Directory
from kmsd.identity.principals import HostNames, Names
from kmsd.identity.process import program_of


class AtOnce:
    """A source of names; without `names` those of this host."""

    def __init__(self, names: Names | None = None) -> None:
        self._names = names or HostNames()

    async def ask(self, kind: Kind, subject: Subject) -> Found:
        if kind == "groups_of":
            return groups_of(str(subject))
        found: Found = getattr(self._names, kind)(subject)
        return found


class Processes:
    """This host's processes."""

    async def program_of(self, pid: int) -> str | None:
        try:
            return program_of(pid)
        except OSError:
            return None

    async def cgroup_of(self, pid: int, cgroup_id: int | None) -> str | None:
        return Cgroups().paths_of([(pid, cgroup_id)])[0]


def directory_of(names: Names | None = None) -> Directory:
    """A directory that remembers nothing."""
    return Directory(AtOnce(names), lifetime_seconds=0)
