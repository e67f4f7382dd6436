"""Socket activation: the listening sockets that systemd made and passed to this process (sd_listen_fds(3)).

They outlive the daemon: connections that come while no daemon runs wait in them for the next one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

# SD_LISTEN_FDS_START: they follow standard input, output and error.
_FIRST_DESCRIPTOR = 3
_PID, _COUNT, _NAMES = _VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

# FileDescriptorName= of kmsd.socket and kmsd-credential.socket.
CLIENTS, CREDENTIALS = "kmsd.sock", "credential.sock"


class Sockets(NamedTuple):
    """What the daemon listens on: the socket for clients, and the one on which systemd asks for credentials."""

    clients: socket.socket
    credentials: socket.socket | None = None


class SocketPaths(NamedTuple):
    """Where these sockets are."""

    clients: Path
    credentials: Path


class ActivationError(RuntimeError):
    """What was passed to this process is no socket that it can serve; the message says what to correct."""


def inherited_sockets(environment: MutableMapping[str, str]) -> Sockets | None:
    """Return the listening sockets that were passed to this process, None if there are none.

    A single one may have any name; of several each has the name that its unit gives it (FileDescriptorName=). The
    variables that tell of them are removed from `environment`, since they are for this process alone. Raises
    ActivationError for anything but listening Unix stream sockets that are known here.
    """
    pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or count in {"", "0"}:
        return None
    descriptors = _descriptors(count, names.split(":"))
    if descriptors is None:
        raise ActivationError(
            f"{count} sockets were passed to kmsd ({names or 'without names'}), which serves {CLIENTS} and perhaps "
            f"{CREDENTIALS}: correct its .socket units"
        )
    with ExitStack() as unless_all:
        sockets = {name: unless_all.enter_context(_taken(descriptor)) for name, descriptor in descriptors.items()}
        unless_all.pop_all()
    return Sockets(sockets[CLIENTS], sockets.get(CREDENTIALS))


def _descriptors(count: str, names: list[str]) -> dict[str, int] | None:
    """Return which descriptor is which socket, None if that cannot be told or the one for clients is missing."""
    if count == "1" and names != [CREDENTIALS]:
        return {CLIENTS: _FIRST_DESCRIPTOR}
    if count == "2" and sorted(names) == sorted((CLIENTS, CREDENTIALS)):
        return {name: _FIRST_DESCRIPTOR + index for index, name in enumerate(names)}
    return None


def _taken(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ActivationError(f"descriptor {descriptor} was announced as a socket: {error.strerror}") from None
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
