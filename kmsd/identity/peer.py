"""What the kernel says about the process at the other end of a Unix socket.

1. SO_PEERCRED and SO_PEERGROUPS were fixed by the kernel when the peer called connect(2), so they are asked for once,
   at accept, before a byte is parsed. A connection that is handed on keeps the identity of who opened it.
2. An identity that is not one (an unconnected socket, an id from another user namespace) is refused.
The user namespace must map every id to itself, or all of this lies: `check_identity_map` is for start-up.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmsd.api.errors import AccessDeniedError

# Python 3.11 does not name it (include/uapi/asm-generic/socket.h).
_SO_PEERGROUPS = 59
_UCRED = struct.Struct("iII")  # struct ucred: pid_t, uid_t, gid_t
_GID = struct.Struct("I")
# (uid_t)-1 and (gid_t)-1 mean "none" (credentials(7)).
_NO_ID = 2**32 - 1
# Ids are 0 to 2**32-2, so a full map covers this many (user_namespaces(7)).
_ALL_IDS = 2**32 - 1
# A Windows access token carries at most 1,024 SIDs, so that directories keep accounts below it. Linux would allow
# 65,536 groups, which anybody with a range of subordinate gids can have and which would cost megabytes a connection.
MAX_GROUPS = 1024
# What an id that has no mapping looks like unless the system says otherwise (user_namespaces(7)).
_USUAL_OVERFLOW_ID = 65534
_OVERFLOW_UID = "/proc/sys/kernel/overflowuid"
_ID_MAPS = ("/proc/self/uid_map", "/proc/self/gid_map")


class IncompleteUidMapError(RuntimeError):
    """The process is in a user namespace in which other users' ids cannot be told apart."""


@dataclass(frozen=True)
class Peer:
    """Who opened a connection: effective ids and supplementary groups at that moment.

    `pid` is 0 for a process in a PID namespace that is not below ours.
    """

    uid: int
    gid: int
    groups: frozenset[int]
    pid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return who is at the other end of the connected Unix socket `sock`.

    Raises AccessDeniedError for a peer that has no identity here: not connected, from a user namespace whose ids do
    not exist in ours (the overflow uid), or in more than MAX_GROUPS groups.
    """
    pid, uid, gid = _credentials(sock)
    if uid == _NO_ID:
        raise AccessDeniedError("the peer has no identity: it is not connected")
    if uid in _overflow_uids():
        raise AccessDeniedError(f"uid {uid} stands for every user who is unknown here, so it is nobody's identity")
    return Peer(uid=uid, gid=gid, groups=_groups(sock), pid=pid)


def server_uid(sock: socket.socket) -> int:
    """Return the uid of the process that listens behind the connected Unix socket `sock`."""
    return _credentials(sock)[1]


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def _overflow_uids() -> set[int]:
    """Return what unmapped uids look like: the usual value, and the system's own if /proc/sys can be read here."""
    try:
        return {_USUAL_OVERFLOW_ID, int(Path(_OVERFLOW_UID).read_text(encoding="ascii"))}
    except OSError:
        return {_USUAL_OVERFLOW_ID}


def _groups(sock: socket.socket) -> frozenset[int]:
    # Python gives getsockopt a buffer of at most 1,024 bytes, that is 256 groups, so more of them need libc.
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 256 * _GID.size)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        raw = _many_groups(sock)
    return frozenset(gid for (gid,) in _GID.iter_unpack(raw))


def _many_groups(sock: socket.socket) -> bytes:
    import ctypes  # noqa: PLC0415 - hardly any peer needs it, and the client imports this module at start-up

    buffer = ctypes.create_string_buffer(MAX_GROUPS * _GID.size)
    length = ctypes.c_uint32(len(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, buffer, ctypes.byref(length)) != 0:
        if ctypes.get_errno() == errno.ERANGE:
            # To leave some of them out would let the peer slip past a Deny.
            raise AccessDeniedError(f"the peer is a member of more than {MAX_GROUPS} groups")
        raise OSError(ctypes.get_errno(), "getsockopt(SO_PEERGROUPS)")
    return buffer.raw[: length.value]


def _read(path: str) -> str:
    return Path(path).read_text(encoding="ascii")


def check_identity_map(read: Callable[[str], str] = _read) -> None:
    """Make sure that every uid and gid of the host is seen as itself; `read` returns a file's text.

    In a user namespace with any other map, the ids of peers are translated and unmapped ones all become the overflow
    id, so that a policy about uids decides about the wrong people. Raises IncompleteUidMapError.
    """
    for path in _ID_MAPS:
        try:
            text = read(path)
        except OSError as error:
            raise IncompleteUidMapError(
                f"{path} cannot be read ({error.strerror}), so peers cannot be told apart"
            ) from None
        if not _is_full_identity(text):
            raise IncompleteUidMapError(
                f"{path} does not map every id to itself, so peers cannot be told apart; "
                "run in the host's user namespace (under systemd: PrivateUsers=no)"
            )


def _is_full_identity(text: str) -> bool:
    covered = 0
    for inside, outside, count in sorted(tuple(map(int, line.split())) for line in text.splitlines()):
        if inside != outside or inside != covered:
            return False
        covered += count
    return covered == _ALL_IDS
