"""`kmsd init`, stopped before one of the things that it does to the files of the host, so that it can be killed there.

`python -m tests.support.killed_init FILE WHERE INIT-OPTIONS...`: FILE holds two numbers of eight bytes each, for all
processes together: how many things were done, and whether the place has been reached. It waits there to be killed.
WHERE is the number of the thing, or a part of its description: "os.link('/etc/a'".
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kmsd.commands.main import main as kmsd
from tests.support.private_host import PrivateHost

NUMBERS = struct.Struct("=QQ")
# Audit events (sys.audit) of what changes files or makes processes.
_EVENTS = frozenset(
    {
        *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.chown"),
        *("os.fork", "subprocess.Popen", "sqlite3.connect"),
    }
)
_HOST = ("/etc/", "/var/")
# How often the started daemon forks in the meantime depends on how busy the machine is: 0 or 1 more were seen.
_VARYING_FORKS = 3


def main() -> int:
    file, where, *options = sys.argv[1:]
    with Path(file).open("r+b") as stream:
        shared = mmap.mmap(stream.fileno(), NUMBERS.size)
    # Its processes do things at one time; without this, one of them takes back what another has counted.
    counting = get_context("fork").Lock()

    def count(what: str) -> bool:
        # A process that was killed while it counted must not stop the others for ever.
        ours = counting.acquire(timeout=1)
        done, _ = NUMBERS.unpack(shared[:])
        reached = done + 1 == int(where) if where.isdecimal() else where in what
        shared[:] = NUMBERS.pack(done + 1, reached)
        if ours:
            counting.release()
        return reached

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS and not (event == "open" and _writes(*arguments)):
            return
        if count(f"{event}{arguments}"):
            # It is killed here, or its parent is, after which it must not stay behind.
            parent = os.getppid()
            while os.getppid() == parent:
                time.sleep(0.01)
            os._exit(1)

    sys.addaudithook(look)
    return kmsd(["init", *options])


def kill(host: PrivateHost, where: int | str, *options: str) -> int:
    """Run init on `host`, and kill all its processes before it does this; return how many things it did.

    A number near the end may not be reached: the run then was whole.
    """
    counted = host.top / "counted"
    counted.write_bytes(NUMBERS.pack(0, 0))
    command = host.command(
        *(sys.executable, "-m", "tests.support.killed_init", str(counted), str(where), "--non-interactive", *options)
    )
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        while process.poll() is None:
            _, reached = NUMBERS.unpack(counted.read_bytes())
            if reached:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
    done, reached = NUMBERS.unpack(counted.read_bytes())
    whole = process.returncode == 0 and isinstance(where, int) and done + _VARYING_FORKS >= where
    assert reached or whole, f"it does not come to {where}"
    return int(done)


def _writes(path: object, mode: object, flags: int) -> bool:
    return str(path).startswith(_HOST) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    sys.exit(main())
