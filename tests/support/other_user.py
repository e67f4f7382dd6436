"""Does something in another process, perhaps as another user of the host."""

from __future__ import annotations

import fcntl
import os
import traceback
from collections.abc import Callable

# A user and a group that every Debian has (base-passwd), with no rights of its own.
DAEMON_UID = 1
DAEMON_GID = 1
_ABOVE_STANDARD = 10


def as_user(uid: int, gid: int, action: Callable[[], str]) -> str:
    """Return what `action` returns in a child process that is user `uid`, of group `gid` and no other.

    Only root may do this.
    """

    def act() -> str:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return action()

    return in_child(act)


def in_child(action: Callable[[], str]) -> str:
    """Return what `action` returns in a child process, or the traceback of what it raises.

    The child is forked, and executes nothing: the project may lie where only root may look.
    """
    reading, writing = os.pipe()
    # Where a test puts a descriptor of its own into a low number, the answer must not go there.
    writing = _moved_up(writing)
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
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


def _moved_up(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STANDARD)
    os.close(descriptor)
    return moved
