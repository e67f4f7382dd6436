"""The process that opened a connection, held so that what is read about it is read about no other.

What has to be looked up by a pid may belong to another process: pids are used again. A pidfd names the process itself.
Whatever was read while the pidfd shows a living process was read about that process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from typing import Self

# Python 3.11 does not name it (include/uapi/asm-generic/socket.h).
_SO_PEERPIDFD = 77
# include/uapi/linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info) with the structure's first version, which has 64 bytes:
# what is asked for and was found, the id of the control group, and eleven ids and an exit status that nobody needs.
PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO = struct.Struct("QQ48x")
_PIDFD_INFO_CGROUPID = 1 << 2


class Process:
    """A peer's process; `close` it.

    `cgroup_id` is the number of its control group in the unified hierarchy (the inode of its folder), None where the
    kernel does not tell it (before 6.13). `certain`: it is the process that connected. Kernels before 6.5 cannot tell;
    there it is the one that has the peer's pid now, another one if the peer ended before and its pid was used again.
    """

    def __init__(self, pid: int, pidfd: int, *, certain: bool) -> None:
        self.pid = pid
        self.certain = certain
        self._pidfd = pidfd
        self.cgroup_id = _cgroup_id(pidfd)

    @property
    def ended(self) -> bool:
        """Whether it has ended, so that its pid may be another's."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)  # readable once the process has ended (pidfd_open(2))
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def process_of(sock: socket.socket, pid: int) -> Process | None:
    """Return the process behind `sock` whose credentials say `pid`.

    None where it cannot be had: it has ended, or it is in a PID namespace that is not below ours, where `pid` is 0.
    """
    if pid == 0:
        return None
    try:
        try:
            return Process(pid, sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD), certain=True)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
        return Process(pid, os.pidfd_open(pid), certain=False)
    except OSError:
        return None


def program_of(pid: int) -> str:
    """Return the path of the program that a process runs; raises OSError where it cannot be determined.

    Another user's is readable only with CAP_SYS_PTRACE, and nothing is when the process hides it or has ended. It is
    what the process itself chose to run and proves nothing (DESIGN 5).
    """
    path = os.readlink(b"/proc/%d/exe" % pid)  # noqa: PTH115 - a Path cannot give the bytes
    # A path may hold any byte but NUL; what is not UTF-8 must not break the audit trail later.
    return path.decode(errors="backslashreplace")


def _cgroup_id(pidfd: int) -> int | None:
    info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_CGROUPID, 0))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError:
        return None
    found, cgroup_id = _PIDFD_INFO.unpack(info)
    return cgroup_id if found & _PIDFD_INFO_CGROUPID else None
