"""Control groups by their numbers: the folders of /sys/fs/cgroup.

The kernel tells of a process the number of its control group, which is the inode of the group's folder. Numbers are
never used again, so what was found once holds. A group that is not known yet is looked for in the whole tree. Since
users may make folders without end below what is delegated to them, no more than so many are read below each unit: then
their own services are not found, and everybody else's are.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from kmsd.identity.units import unified_path

# A host has some hundred groups; a folder is read in 50 us.
_MAX_FOLDERS = 16_384
_MAX_FOLDERS_BELOW_A_UNIT = 512
# After reading the tree for so long, it is not read again for so many times as long: asking for what is not there takes
# at most a quarter of a core.
_REST_FACTOR = 3
_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
# More than a path, spelled once for each of the older hierarchies.
_MAX_PROC_BYTES = 128 * 1024


class Cgroups:
    """Tells the paths of processes' control groups; `root` is where the hierarchy is mounted."""

    def __init__(
        self,
        root: Path = _CGROUPS,
        proc: Path = _PROC,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root = root
        self._proc = proc
        self._clock = clock
        self._sleep = sleep
        self._paths: dict[int, str] = {}
        self._rests_until = -1.0

    def paths_of(self, processes: Iterable[tuple[int, int | None]]) -> list[str | None]:
        """Return the paths of processes, each given by pid and the number of its group (None if that is not known).

        None for a group that was not found. The tree is read once at most. What is found without a number was read by
        the pid, and holds if that still is the process's own.
        """
        asked = list(processes)
        # On a host without the unified hierarchy every process is in the same group of it.
        if not (self._root / "cgroup.controllers").exists():
            return [self._read(pid) for pid, _ in asked]
        found = [self._read(pid) if cgroup_id is None else self._known(pid, cgroup_id) for pid, cgroup_id in asked]
        if any(path is None and cgroup_id is not None for path, (_, cgroup_id) in zip(found, asked, strict=True)):
            self._walk()
        return [
            path if path is not None or cgroup_id is None else self._paths.get(cgroup_id)
            for path, (_, cgroup_id) in zip(found, asked, strict=True)
        ]

    def _known(self, pid: int, cgroup_id: int) -> str | None:
        if (path := self._paths.get(cgroup_id)) is not None:
            return path
        # Where /proc shows the process it spares reading the tree; the number says whether it is the right group.
        if (path := self._read(pid)) is None:
            return None
        try:
            inode = (self._root / path.removeprefix("/")).stat().st_ino
        except OSError:
            return None
        return path if inode == cgroup_id else None

    def _read(self, pid: int) -> str | None:
        try:
            with (self._proc / str(pid) / "cgroup").open("rb") as file:
                return unified_path(file.read(_MAX_PROC_BYTES).decode())
        except (OSError, UnicodeDecodeError):
            return None

    def _walk(self) -> None:
        self._sleep(max(0.0, self._rests_until - self._clock()))
        began = self._clock()
        self._paths = self._all()
        ended = self._clock()
        self._rests_until = ended + _REST_FACTOR * (ended - began)

    def _all(self) -> dict[int, str]:
        """Return the paths of all groups by their numbers: slices and units first, then what is below units."""
        found = {self._root.stat().st_ino: "/"}
        units: list[tuple[int, str]] = []
        slices = deque([""])
        while slices and len(found) < _MAX_FOLDERS:
            for inode, path in self._below(slices.popleft()):
                found[inode] = path
                if path.endswith(".slice"):
                    slices.append(path)
                else:
                    units.append((inode, path))
        for _, unit in units:
            left = min(_MAX_FOLDERS_BELOW_A_UNIT, _MAX_FOLDERS - len(found))
            folders = deque([unit])
            while folders and left > 0:
                for inode, path in self._below(folders.popleft())[:left]:
                    found[inode] = path
                    folders.append(path)
                    left -= 1
        return found

    def _below(self, path: str) -> list[tuple[int, str]]:
        try:
            with os.scandir(f"{self._root}{path}") as entries:
                return [
                    (entry.inode(), f"{path}/{entry.name}") for entry in entries if entry.is_dir(follow_symlinks=False)
                ]
        except OSError:  # it was removed, or is another's
            return []
