"""What both kinds of client do with the socket itself: find it, connect, check who serves it, and read."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from kmsd.api.errors import ConnectionLostError, UntrustedServerError
from kmsd.wire.connection import ClientConnection

SYSTEM_SOCKET = "/run/kmsd/kmsd.sock"
SERVICE_USER = "kmsd"

# Whether a daemon that is slow can be told from one that is dead is the caller's to say; nothing kmsd does for a reply
# takes longer than the token's deadlines, which are below this.
DEFAULT_TIMEOUT_SECONDS = 30.0

# Nothing more than the descriptors of a few replies arrives at once; Linux itself passes at most 253 (SCM_MAX_FD).
_CONTROL_BYTES = socket.CMSG_SPACE(16 * struct.calcsize("i"))
_UCRED = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid

# The daemon is starting again (nobody listens on its socket yet), or has too many connections waiting to be accepted.
_PASSING = frozenset({errno.ECONNREFUSED, errno.EAGAIN})


def find_socket(given: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> str:
    """Return the path of the daemon's socket.

    The first of these that there is: the one given, KMSD_SOCKET, the system's, the user instance's. The first two are
    taken as they are; when neither of the others exists the answer is the system's.
    """
    if given is not None:
        return os.fspath(given)
    if named := environment.get("KMSD_SOCKET"):
        return named
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and not Path(SYSTEM_SOCKET).exists():
        own = Path(runtime, "kmsd", "kmsd.sock")
        if own.exists():
            return str(own)
    return SYSTEM_SOCKET


def connect(path: str, *, timeout_seconds: float | None) -> socket.socket:
    """Return a connection to the daemon; it blocks for at most `timeout_seconds`, or with None not at all.

    Raises ConnectionLostError when nobody answers at `path`, UntrustedServerError when it is somebody else.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if timeout_seconds is None:
            sock.setblocking(False)
        else:
            # The kernel's own time limits: Python's would cost a poll(2) before each read and write.
            limit = struct.pack("ll", int(timeout_seconds), int(timeout_seconds % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.connect(path)
        server = server_uid(sock)
    except OSError as error:
        sock.close()
        lost = ConnectionLostError(f"cannot connect to {path}: {error.strerror or error}")
        lost.retryable = error.errno in _PASSING
        raise lost from error
    if not is_trusted(server, own=os.geteuid()):
        sock.close()
        raise UntrustedServerError(
            f"{path} is served by uid {server}, which is neither root nor {SERVICE_USER} nor the caller's own"
        )
    return sock


def server_uid(sock: socket.socket) -> int:
    """Return the uid of whoever listens at the other end of a connection."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def is_trusted(server: int, *, own: int) -> bool:
    """Tell whether the uid `server` may hold keys for the uid `own`: root, the service's user, or the same uid."""
    if server in {0, own}:
        return True
    try:
        return server == pwd.getpwnam(SERVICE_USER).pw_uid
    except KeyError:
        return False


def receive(sock: socket.socket, connection: ClientConnection) -> None:
    """Read once. Raises OSError, or ConnectionLostError at the end of the stream.

    Descriptors are let in only when a reply with some is awaited; otherwise the kernel drops what is passed.
    """
    descriptors: list[int] = []
    if connection.expects_descriptors:
        count, control, flags, _ = sock.recvmsg_into([connection.space()], _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) - len(data) % struct.calcsize("i")
                descriptors += memoryview(data)[:whole].cast("i")
        connection.received(count, descriptors)
        if flags & socket.MSG_CTRUNC:
            raise ConnectionLostError("the daemon sent more descriptors than were asked for")
    else:
        count = sock.recv_into(connection.space())
        connection.received(count)
    if count == 0:
        lost = ConnectionLostError("the daemon closed the connection before it answered")
        lost.retryable = True
        raise lost


def lost_to(error: OSError) -> ConnectionLostError:
    """Return the error that an OSError of the socket means to a caller."""
    lost = ConnectionLostError(f"the connection to the daemon broke: {error.strerror or error}")
    lost.retryable = True
    return lost


def timed_out(timeout_seconds: float) -> ConnectionLostError:
    """Return the error of a call whose answer did not come; asking again would only wait again."""
    return ConnectionLostError(f"the daemon did not answer within {timeout_seconds:g} seconds")


def random_fraction() -> float:
    """Return a number from 0 to 1; the module `random` would cost 5 ms at start-up."""
    return os.urandom(1)[0] / 255


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody will use."""
    for descriptor in descriptors:
        os.close(descriptor)
