"""The listening socket that a service manager passes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kmsd.server.activation import ActivationError, inherited_socket
from tests.support.other_user import in_child

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


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


def passed(
    made: Callable[[], int] | None, *, count: str = "1", names: str = "kmsd.sock", pid: str | None = None
) -> str:
    """What becomes of descriptor 3 and these variables, in a process of its own."""

    def act() -> str:
        environment = {
            "LISTEN_PID": str(os.getpid()) if pid is None else pid,
            "LISTEN_FDS": count,
            "LISTEN_FDNAMES": names,
            "OTHER": "stays",
        }
        if made is None:
            os.closerange(3, 4)
        else:
            os.dup2(made(), 3, inheritable=True)
        try:
            sock = inherited_socket(environment)
        except ActivationError as error:
            told = f"refused: {error}"
        else:
            told = "none"
            if sock is not None:
                told = f"{sock.fileno()} inherited={sock.get_inheritable()} blocks={sock.getblocking()}"
                sock.detach()
        assert environment == {"OTHER": "stays"}
        return told

    return in_child(act)


def test_the_socket_is_taken_and_kept_to_this_process(short_path: Path) -> None:
    """Nothing that is executed later has it, and accepting never waits; the variables are gone."""
    assert passed(unix_socket(short_path / "s")) == "3 inherited=False blocks=False"
    assert passed(unix_socket(short_path / "t"), names="") == "3 inherited=False blocks=False"


@pytest.mark.parametrize("variables", [{"pid": "1"}, {"pid": ""}, {"pid": "x"}, {"count": ""}, {"count": "0"}], ids=str)
def test_variables_that_are_not_about_this_process_count_for_nothing(
    short_path: Path, variables: dict[str, str]
) -> None:
    """They are removed all the same."""
    assert passed(unix_socket(short_path / "s"), **variables) == "none"


@pytest.mark.parametrize("count", ["2", "-1", "one", "1 ", "99999999999999999999"])
def test_anything_but_one_socket_is_refused(short_path: Path, count: str) -> None:
    """The message has the number and the names, by which the units are found."""
    told = passed(unix_socket(short_path / "s"), count=count, names="a:b")
    assert told.startswith(f"refused: {count} sockets were passed to kmsd (a:b)")


def test_a_number_without_a_socket_is_refused() -> None:
    """Whether nothing is open there or something else is."""
    assert passed(None) == "refused: descriptor 3 was announced as a socket: Bad file descriptor"
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
