"""The listening sockets that a service manager passes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kmsd.server.activation import ActivationError, inherited_sockets
from tests.support.other_user import in_child

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
FIRST = 3


def unix_socket(path: Path, *, kind: int = socket.SOCK_STREAM, listens: bool = True) -> Callable[[], int]:
    """Makes a Unix socket and returns its descriptor."""

    def make() -> int:
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(str(path))
        if listens:
            sock.listen()
        return sock.detach()

    return make


def inet_socket() -> int:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock.detach()


def a_file() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def passed(*made: Callable[[], int], count: str = "1", names: str = "kmsd.sock", pid: str | None = None) -> str:
    """What becomes of the descriptors from 3 on and these variables, in a process of its own."""

    def act() -> str:
        environment = {
            "LISTEN_PID": str(os.getpid()) if pid is None else pid,
            "LISTEN_FDS": count,
            "LISTEN_FDNAMES": names,
            "OTHER": "stays",
        }
        # Made above where they are to be, so that none takes another's place.
        descriptors = [os.dup2(make(), 20 + index) for index, make in enumerate(made)]
        os.closerange(FIRST, FIRST + 2)
        for index, descriptor in enumerate(descriptors):
            os.dup2(descriptor, FIRST + index, inheritable=True)
        try:
            sockets = inherited_sockets(environment)
        except ActivationError as error:
            told = f"refused: {error}"
        else:
            told = "none" if sockets is None else ", ".join(map(described, sockets))
        assert environment == {"OTHER": "stays"}
        return told

    return in_child(act)


def described(sock: socket.socket | None) -> str:
    if sock is None:
        return "-"
    told = f"{sock.fileno()} inherited={sock.get_inheritable()} blocks={sock.getblocking()}"
    sock.detach()
    return told


def test_the_socket_is_taken_and_kept_to_this_process(short_path: Path) -> None:
    """Nothing that is executed later has it, and accepting never waits; the variables are gone."""
    assert passed(unix_socket(short_path / "s")) == "3 inherited=False blocks=False, -"
    assert passed(unix_socket(short_path / "t"), names="") == "3 inherited=False blocks=False, -"


@pytest.mark.parametrize("names", ["kmsd.sock:credential.sock", "credential.sock:kmsd.sock"])
def test_two_sockets_are_told_apart_by_their_names(short_path: Path, names: str) -> None:
    """Whichever comes first."""
    clients, credentials = (FIRST + names.split(":").index(name) for name in ("kmsd.sock", "credential.sock"))

    told = passed(unix_socket(short_path / "s"), unix_socket(short_path / "t"), count="2", names=names)

    assert told == f"{clients} inherited=False blocks=False, {credentials} inherited=False blocks=False"


@pytest.mark.parametrize("variables", [{"pid": "1"}, {"pid": ""}, {"pid": "x"}, {"count": ""}, {"count": "0"}], ids=str)
def test_variables_that_are_not_about_this_process_count_for_nothing(
    short_path: Path, variables: dict[str, str]
) -> None:
    """They are removed all the same."""
    assert passed(unix_socket(short_path / "s"), **variables) == "none"


@pytest.mark.parametrize("count", ["2", "3", "-1", "one", "1 ", "99999999999999999999"])
def test_other_numbers_of_sockets_and_other_names_are_refused(short_path: Path, count: str) -> None:
    """The message has the number and the names, by which the units are found."""
    told = passed(unix_socket(short_path / "s"), count=count, names="a:b")
    assert told.startswith(f"refused: {count} sockets were passed to kmsd (a:b)")


def test_the_socket_for_credentials_alone_is_refused(short_path: Path) -> None:
    """Clients would be served on it."""
    told = passed(unix_socket(short_path / "s"), names="credential.sock")
    assert told.startswith("refused: 1 sockets were passed to kmsd (credential.sock)")


def test_a_number_without_a_socket_is_refused() -> None:
    """Whether nothing is open there or something else is."""
    assert passed() == "refused: descriptor 3 was announced as a socket: Bad file descriptor"
    assert passed(a_file) == "refused: descriptor 3 was announced as a socket: Socket operation on non-socket"


def test_a_socket_of_another_kind_is_refused(short_path: Path) -> None:
    """With the line of the unit that makes the right one."""
    for made in (
        unix_socket(short_path / "d", kind=socket.SOCK_DGRAM, listens=False),
        unix_socket(short_path / "p", kind=socket.SOCK_SEQPACKET),
        inet_socket,
    ):
        assert passed(made) == (
            "refused: the socket that was passed to kmsd is no Unix stream socket: use ListenStream=/PATH"
        )


def test_a_connection_is_refused(short_path: Path) -> None:
    """As units with Accept=yes pass it."""
    assert passed(unix_socket(short_path / "s", listens=False)) == (
        "refused: the socket that was passed to kmsd does not listen: its .socket unit needs Accept=no"
    )
