"""Does something as another user of the host."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

# A user and a group that every Debian has (base-passwd), with no rights of its own.
DAEMON_UID = 1
DAEMON_GID = 1


def as_user(uid: int, gid: int, action: Callable[[], str]) -> str:
    """Return what `action` returns in a child process that is user `uid`, of group `gid` and no other.

    The child is forked, and executes nothing: the project may lie where only root may look. Only root may do this.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            answer = action()
        except BaseException:  # noqa: BLE001 - told to the parent, which is the test
            answer = traceback.format_exc()
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(child, 0)
    return answer
