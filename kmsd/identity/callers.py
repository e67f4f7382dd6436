"""Who a peer is to policies and the audit trail: the names that the host gives it, its unit and its program.

All of it is looked up once, when the peer has connected and before anything is read from it. What cannot be found out
is `undetermined`, and never taken for absent.
"""

from __future__ import annotations

from typing import Protocol

from kmsd.identity.directory import Directory
from kmsd.identity.lookups import Source
from kmsd.identity.peer import Peer
from kmsd.identity.principals import Administrators, Caller, NameServiceError
from kmsd.identity.process import Process
from kmsd.identity.units import UNDETERMINED, Units, units_of

USER = "user"
EXE = "exe"
ADMINISTRATOR = "administrator"


class ProcessSource(Protocol):
    """Who can be asked about processes."""

    async def program_of(self, pid: int) -> str | None:
        """Return the path of the program that the process runs, None if it cannot be told."""

    async def cgroup_of(self, pid: int, cgroup_id: int | None) -> str | None:
        """Return the path of the process's control group, None if it cannot be told."""


class ProcessLookups:
    """Asks `programs` for programs and `cgroups` for control groups."""

    def __init__(self, programs: Source, cgroups: Source) -> None:
        self._programs = programs
        self._cgroups = cgroups

    async def program_of(self, pid: int) -> str | None:
        """Return the path of the program that the process runs, None if it cannot be told."""
        try:
            found = await self._programs.ask("program_of", pid)
        except NameServiceError:
            return None
        return found if isinstance(found, str) else None

    async def cgroup_of(self, pid: int, cgroup_id: int | None) -> str | None:
        """Return the path of the process's control group, None if it cannot be told."""
        try:
            found = await self._cgroups.ask("cgroup_of", (pid, cgroup_id))
        except NameServiceError:
            return None
        return found if isinstance(found, str) else None


class Callers:
    """Finds out who peers are."""

    def __init__(self, directory: Directory, processes: ProcessSource, administrators: Administrators) -> None:
        self._directory = directory
        self._processes = processes
        self._administrators = administrators

    async def caller_of(self, peer: Peer, process: Process | None) -> Caller:
        """Return `peer`, whose process is `process` (None: it could not be had), with what the host tells of it now."""
        # The process first: it may end soon.
        exe, units = (None, UNDETERMINED) if process is None else await self._of_process(process)
        undetermined = set(units.undetermined)
        if exe is None:
            undetermined.add(EXE)
        try:
            user = await self._user(peer.uid)
        except NameServiceError:
            user = None
            undetermined.add(USER)
        administrator = await self._administers(peer)
        if administrator is None:
            undetermined.add(ADMINISTRATOR)
        return Caller(
            uid=peer.uid,
            gid=peer.gid,
            groups=peer.groups | {peer.gid},
            pid=peer.pid,
            user=user,
            unit=units.unit,
            user_unit=units.user_unit,
            exe=exe,
            administrator=administrator is True,
            undetermined=frozenset(undetermined),
        )

    async def _user(self, uid: int) -> str | None:
        user = await self._directory.user_name(uid)
        # A name that leads to somebody else's uid would make a policy written for this caller another user's.
        return user if user is not None and await self._directory.uid_of(user) == uid else None

    async def _administers(self, peer: Peer) -> bool | None:
        """Tell whether `peer` is an administrator, None if that cannot be told; a group that is not there is empty."""
        if peer.uid in self._administrators.uids:
            return True
        told: bool | None = False
        for group in self._administrators.groups:
            try:
                gid = await self._directory.gid_of(group)
            except NameServiceError:
                told = None
                continue
            if gid is not None and (gid == peer.gid or gid in peer.groups):
                return True
        return told

    async def _of_process(self, process: Process) -> tuple[str | None, Units]:
        exe = await self._processes.program_of(process.pid)
        # A unit lets its processes in, so it has to be that of the process which connected.
        path = await self._processes.cgroup_of(process.pid, process.cgroup_id) if process.certain else None
        if process.ended:  # then all of this may have been read of another one
            return None, UNDETERMINED
        return exe, UNDETERMINED if path is None else units_of(path)
