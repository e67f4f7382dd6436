"""A host of a test's own: the same machine, but with other files in /etc, /var/lib, /var/log and /run.

Each command runs in a mount namespace of its own, in which folders of the test lie over the machine's. So what one
command makes the next one finds, and the machine itself is never changed. Only root can do this.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PROJECT = Path(__file__).parents[2]
# What programs need of /etc to know users and find libraries, and systemd-creds to know the machine.
_KEPT = (
    *("passwd", "group", "shadow", "gshadow", "login.defs", "nsswitch.conf", "machine-id"),
    *("ld.so.cache", "ld.so.conf", "localtime"),
)
_COVERED = ("etc", "var/lib", "var/log", "run")
# `kmsd init` takes some two seconds; the rest is for a busy machine.
_SECONDS = 60


class PrivateHost:
    """A host with nothing of kmsd's on it. What is at /etc/x for its programs is at `path("/etc/x")` for others."""

    def __init__(self, top: Path, *, without: Sequence[str] = ()) -> None:
        self.top = top
        for covered in _COVERED:
            (top / covered).mkdir(parents=True)
        # Where systemd keeps the key of the host's credentials.
        (top / "var/lib/systemd").mkdir()
        for name in _KEPT:
            source = Path("/etc", name)
            if source.exists():
                shutil.copy2(source, top / "etc" / name)
        self._script = " && ".join([*self._mounts(without), 'exec "$@"'])

    def path(self, inside: str) -> Path:
        """Return where this process finds what is at `inside` for the programs of the host."""
        return self.top / inside.removeprefix("/")

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs `words` on the host."""
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", self._script, "sh", *words]

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program of the host to its end, with `given` on standard input."""
        return subprocess.run(
            self.command(*words), input=given, capture_output=True, text=True, check=False, timeout=_SECONDS
        )

    def init(self, *options: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run `kmsd init` as a script would."""
        kmsd = str(Path(sys.executable).with_name("kmsd"))
        return self.run(kmsd, "init", "--non-interactive", "--recovery", "none", *options, given=given)

    def boots_systemd(self) -> None:
        """Have the host look as if systemd were its PID 1."""
        self.path("/run/systemd/system").mkdir(parents=True)

    def _mounts(self, without: Sequence[str]) -> list[str]:
        lines = []
        # The service's user has to reach Python and this project, which may lie where only root may look.
        places = (_PROJECT, Path(sys.base_prefix))
        for number, closed in enumerate(sorted({way[0] for place in places if (way := _closed(place))})):
            lines += self._reopen(closed, [place for place in places if place.is_relative_to(closed)], number)
        for program in without:
            found = shutil.which(program)
            if found is not None:
                lines.append(f"mount --bind /dev/null {shlex.quote(os.path.realpath(found))}")
        lines += [f"mount --bind {shlex.quote(str(self.top / covered))} /{covered}" for covered in _COVERED]
        return lines

    def _reopen(self, closed: Path, places: Sequence[Path], number: int) -> list[str]:
        """Return what puts a folder that everybody may enter over `closed`, with nothing in it but `places`."""
        before, after = [], []
        for index, place in enumerate(places):
            held = self.top / f"held-{number}-{index}"
            held.mkdir()
            before.append(shlex.join(["mount", "--bind", str(place), str(held)]))
            after.append(shlex.join(["mkdir", "-p", str(place)]))
            after.append(shlex.join(["mount", "--bind", str(held), str(place)]))
        return [*before, shlex.join(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(closed)]), *after]


def _closed(place: Path) -> list[Path]:
    """Return the folders on the way to `place` that only their owner may enter, from the top."""
    return [folder for folder in reversed(place.parents) if not stat.S_IMODE(folder.stat().st_mode) & stat.S_IXOTH]
