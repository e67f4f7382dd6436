"""A Debian host of a test's own: a real systemd as PID 1 in a container, without network.

Its system is made once by debootstrap from the mirror that this machine uses, and kept under .cache; hosts are copies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CACHE = ROOT / ".cache" / "booted"
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "apt-get")
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "procps", "softhsm2")
# A boot takes some three seconds; the rest is for a busy machine.
BOOT_SECONDS = 60
# Not in the list of system calls that systemd-nspawn 252 allows its container; a host has them.
_CALLS = "memfd_secret landlock_create_ruleset landlock_add_rule landlock_restrict_self"


class ImpossibleError(RuntimeError):
    """There can be no such host on this machine; the message says why."""


def prepared_system() -> Path:
    """Return a folder with an installed Debian of this machine's own release; raises ImpossibleError."""
    if os.geteuid() != 0:
        raise ImpossibleError("needs root, to boot a container")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise ImpossibleError(f"{', '.join(missing)} not installed")
    release, mirror = _release_and_mirror()
    key = hashlib.sha256(" ".join((release, *PACKAGES)).encode()).hexdigest()[:16]
    made = CACHE / f"system-{key}"
    if not made.exists():
        making = CACHE / f"making-{os.getpid()}"
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, making, mirror],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ImpossibleError(f"debootstrap failed: {done.stdout[-400:]}")
            for archive in (making / "var/cache/apt/archives").glob("*.deb"):
                archive.unlink()
            making.rename(made)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return made


def _release_and_mirror() -> tuple[str, str]:
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages", "Origin: Debian"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\n")
    release = dict(
        line.rstrip().split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    ).get("VERSION_CODENAME", "")
    for line in listed:
        name, _, mirror = line.partition(" ")
        if name == release:
            return release, mirror
    raise ImpossibleError(f"apt knows no mirror of Debian {release!r}; apt-get update may help")


class Host:
    """A host on a copy of the prepared system; files of it are below `root`."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self._log = log
        self._container: subprocess.Popen[bytes] | None = None

    @classmethod
    def copy(cls, folder: Path) -> Host:
        """Return a new host, not booted yet; raises ImpossibleError."""
        root = folder / "host"
        subprocess.run(["cp", "-a", "--reflink=auto", prepared_system(), root], check=True)
        return cls(root, folder / "console.log")

    def boot(self) -> None:
        """Boot, and wait until everything that starts at boot has started."""
        with self._log.open("ab") as log:
            self._container = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"),
                    *("--directory", self.root, "--machine=kmsd-test", f"--system-call-filter={_CALLS}"),
                    *("--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # As hosts have it since systemd 248, also where the machine that runs the tests has the older ones.
                env={**os.environ, "UNIFIED_CGROUP_HIERARCHY": "yes"},
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._is_up():
            assert self._container.poll() is None, f"the container ended:\n{self._log.read_text()}"
            assert time.monotonic() < deadline, f"the container does not come up:\n{self._log.read_text()}"
            time.sleep(0.1)

    def shut_down(self) -> None:
        """Shut it down in good order."""
        assert self._container is not None
        self._container.send_signal(signal.SIGTERM)  # systemd-nspawn passes it on as a request to power off
        self._container.wait(BOOT_SECONDS)

    def end(self) -> None:
        """Make sure that nothing of it runs."""
        if self._container is not None and self._container.poll() is None:
            self._container.kill()
            self._container.wait()

    def run(self, *command: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as root on this host."""
        done = subprocess.run(
            ["nsenter", f"--target={self._leader()}", "--all", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}\n{self.journal()}"
        return done

    def as_user(self, user: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as a user would from a shell."""
        return self.run("runuser", "-u", user, "--", *command, check=check)

    def as_service(self, user: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as a system service of its own that has this user."""
        unit = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={user}", "--working-directory=/srv")
        return self.run(*unit, *command, check=check)

    def property(self, unit: str, name: str) -> str:
        """Return what systemd says of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self) -> str:
        """Return the last that kmsd and systemd said about it."""
        enter = ["nsenter", f"--target={self._leader()}", "--all", "--", "journalctl", "--no-pager", "-q", "-n", "60"]
        return subprocess.run(enter, capture_output=True, text=True, check=False).stdout

    def _leader(self) -> int:
        assert self._container is not None
        children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children").read_text().split()
        return int(children[-1]) if children else 0

    def _is_up(self) -> bool:
        if not self._leader():
            return False
        told = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return told in {"running", "degraded"}
