"""Socket activation: the listening socket that systemd made and passed to this process (sd_listen_fds(3)).

It outlives the daemon: connections that come while no daemon runs wait in it for the next one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

# SD_LISTEN_FDS_START: they follow standard input, output and error.
_FIRST_DESCRIPTOR = 3
_PID, _COUNT, _NAMES = _VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ActivationError(RuntimeError):
    """What was passed to this process is not the socket that it can serve; the message says what to correct."""


def inherited_socket(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Return the listening socket that was passed to this process, None if there is none.

    The variables that tell of it are removed from `environment`, since they are for this process alone. Raises
    ActivationError for anything but one listening Unix stream socket.
    """
    pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or count in {"", "0"}:
        return None
    if count != "1":
        raise ActivationError(
            f"{count} sockets were passed to kmsd ({names or 'without names'}), which serves one: correct its .socket "
            "units"
        )
    try:
        sock = socket.socket(fileno=_FIRST_DESCRIPTOR)
    except OSError as error:
        raise ActivationError(f"descriptor {_FIRST_DESCRIPTOR} was announced as a socket: {error.strerror}") from None
    try:
        sock.set_inheritable(False)
        _check(sock)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _check(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise ActivationError("the socket that was passed to kmsd is no Unix stream socket: use ListenStream=/PATH")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ActivationError("the socket that was passed to kmsd does not listen: its .socket unit needs Accept=no")
