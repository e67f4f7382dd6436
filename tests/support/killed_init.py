"""`kmsd init`, stopped before the N-th thing that it does to the files of the host, so that it can be killed there.

`python -m tests.support.killed_init FILE N INIT-OPTIONS...`: FILE holds two numbers of eight bytes each, for all
processes together: how many things were done, and whether the N-th has been reached. It waits there to be killed.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

from kmsd.commands.main import main as kmsd

NUMBERS = struct.Struct("=QQ")
# Audit events (sys.audit) of what changes files or makes processes.
_EVENTS = frozenset(
    {
        *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.chown"),
        *("os.fork", "subprocess.Popen", "sqlite3.connect"),
    }
)
_HOST = ("/etc/", "/var/")


def main() -> int:
    file, at, *options = sys.argv[1:]
    with Path(file).open("r+b") as stream:
        shared = mmap.mmap(stream.fileno(), NUMBERS.size)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS and not (event == "open" and _writes(*arguments)):
            return
        done, _ = NUMBERS.unpack(shared[:])
        reached = done + 1 == int(at)
        shared[:] = NUMBERS.pack(done + 1, reached)
        if reached:
            # It is killed here, or its parent is, after which it must not stay behind.
            parent = os.getppid()
            while os.getppid() == parent:
                time.sleep(0.01)
            os._exit(1)

    sys.addaudithook(look)
    return kmsd(["init", *options])


def _writes(path: object, mode: object, flags: int) -> bool:
    return str(path).startswith(_HOST) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    sys.exit(main())
