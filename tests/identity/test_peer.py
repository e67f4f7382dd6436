"""Peers are real processes here: children that change who they are and then connect."""

import errno
import itertools
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import AccessDeniedError
from kmsd.identity.peer import MAX_GROUPS, IncompleteUidMapError, check_identity_map, peer_of, server_uid
from tests.support.connecting import connection_from, ids, nothing

ALL_IDS = 2**32 - 1
ROOT = Path(__file__).parents[2]


def test_a_peer_is_who_the_kernel_says(listener: socket.socket) -> None:
    """uid, gid, pid and groups of a process that connects are its own."""
    with connection_from(listener, nothing) as (sock, pid):
        peer = peer_of(sock)

    assert (os.getuid(), os.getgid(), pid) == (peer.uid, peer.gid, peer.pid)
    assert set(os.getgroups()) == peer.groups


@pytest.mark.root
def test_a_peer_of_another_user_is_that_user(listener: socket.socket) -> None:
    """A child that became somebody else is somebody else, with the supplementary groups it has."""
    with connection_from(listener, ids(4321, 1234, [7, 4_000_000_000])) as (sock, pid):
        peer = peer_of(sock)

    assert (4321, 1234, pid) == (peer.uid, peer.gid, peer.pid)
    assert {7, 4_000_000_000} == peer.groups


@pytest.mark.root
def test_ids_above_two_thousand_million_are_not_negative(listener: socket.socket) -> None:
    """The highest uid there is comes out as itself."""
    with connection_from(listener, ids(ALL_IDS - 1, ALL_IDS - 1, [])) as (sock, _):
        peer = peer_of(sock)

    assert (peer.uid, peer.gid) == (ALL_IDS - 1, ALL_IDS - 1)


@pytest.mark.root
def test_the_identity_is_that_of_the_moment_of_connecting(listener: socket.socket) -> None:
    """What a process becomes after it connected changes nothing."""

    def connect_first() -> None:
        early = socket.socket(socket.AF_UNIX)
        early.connect(listener.getsockname())
        ids(4321, 4321, [])()

    with connection_from(listener, connect_first) as (early, _):
        late, _ = listener.accept()
        with late:
            uids = (peer_of(early).uid, peer_of(late).uid)

    assert uids == (0, 4321)


@pytest.mark.root
@pytest.mark.parametrize("count", [0, 256, 257, MAX_GROUPS])
def test_all_groups_count(listener: socket.socket, count: int) -> None:
    """Groups are complete, also beyond the 256 that Python's own getsockopt has room for."""
    groups = list(range(5000, 5000 + count))
    with connection_from(listener, ids(4321, 1234, groups)) as (sock, _):
        assert set(groups) == peer_of(sock).groups


@pytest.mark.root
def test_a_peer_with_too_many_groups_is_refused(listener: socket.socket) -> None:
    """Leaving groups out would let a peer slip past a Deny, so more than the limit is no identity."""
    groups = list(range(5000, 5000 + MAX_GROUPS + 1))
    with (
        connection_from(listener, ids(4321, 1234, groups)) as (sock, _),
        pytest.raises(AccessDeniedError, match="more than 1024 groups"),
    ):
        peer_of(sock)


@pytest.mark.root
def test_the_overflow_uid_is_nobody(listener: socket.socket) -> None:
    """The uid that stands for every unmapped user is refused."""
    with (
        connection_from(listener, ids(65534, 65534, [])) as (sock, _),
        pytest.raises(AccessDeniedError, match="uid 65534"),
    ):
        peer_of(sock)


def test_an_unconnected_socket_has_no_peer() -> None:
    """Without a peer there are no credentials, and the kernel's "none" is no identity."""
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(AccessDeniedError, match="not connected"):
        peer_of(sock)


def test_a_peer_that_has_ended_keeps_its_ids(listener: socket.socket) -> None:
    """What was fixed at connect stays known."""
    with connection_from(listener, nothing) as (sock, pid):
        sock.send(b"x")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        peer = peer_of(sock)

    assert (os.getuid(), pid) == (peer.uid, peer.pid)


def test_the_client_learns_the_uid_of_the_server(listener: socket.socket) -> None:
    """A connected client sees who listens."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())

        assert server_uid(client) == os.getuid()


IN_ANOTHER_NAMESPACE = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from kmsd.identity.peer import check_identity_map, peer_of
from kmsd.identity.process import process_of
sock = socket.fromfd(0, socket.AF_UNIX, socket.SOCK_STREAM)
for look in (check_identity_map, lambda: (peer_of(sock), process_of(sock, peer_of(sock).pid))):
    try:
        print(look())
    except Exception as error:
        print(type(error).__name__)
"""


def server_in(listener: socket.socket, *namespaces: str) -> list[str]:
    """Return what a server in new namespaces says of the id maps, and of a child of ours that connected."""
    with connection_from(listener, ids(4321, 4321, []) if os.geteuid() == 0 else nothing) as (sock, _):
        command = ["unshare", *namespaces, sys.executable, "-c", IN_ANOTHER_NAMESPACE, str(ROOT)]
        ran = subprocess.run(command, stdin=sock.fileno(), capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip(f"unshare {' '.join(namespaces)} does not work here: {ran.stderr.strip()}")
    return ran.stdout.splitlines()


def test_a_daemon_in_a_user_namespace_refuses_to_start(listener: socket.socket) -> None:
    """Where ids are not mapped every peer looks like nobody, so both the map and the peer are refused."""
    assert server_in(listener, "-U") == ["IncompleteUidMapError", "AccessDeniedError"]


def test_a_daemon_that_is_root_in_a_user_namespace_refuses_to_start(listener: socket.socket) -> None:
    """Being root there does not make other people's ids distinguishable."""
    answers = server_in(listener, "-U", "--map-root-user")

    assert answers[0] == "IncompleteUidMapError"


@pytest.mark.root
def test_a_peer_outside_the_pid_namespace_has_no_pid_and_no_process(listener: socket.socket) -> None:
    """A daemon in a container's PID namespace sees pid 0, and reads nothing from /proc by it."""
    identity, peer = server_in(listener, "--pid", "--fork")

    assert identity == "None"
    assert peer == "(Peer(uid=4321, gid=4321, groups=frozenset(), pid=0), None)"


def test_the_hosts_own_namespace_has_the_identity_map() -> None:
    """The map of the initial user namespace, as the kernel prints it, is accepted."""
    check_identity_map(lambda _: f"         0          0 {ALL_IDS}\n")


@given(cuts=st.lists(st.integers(1, ALL_IDS - 1), max_size=4, unique=True), order=st.randoms())
def test_an_identity_map_in_pieces_is_accepted(cuts: list[int], order: random.Random) -> None:
    """Only what is covered counts, not in how many lines or in which order."""
    edges = [0, *sorted(cuts), ALL_IDS]
    lines = [f"{low} {low} {high - low}" for low, high in itertools.pairwise(edges)]
    order.shuffle(lines)

    check_identity_map(lambda _: "\n".join(lines))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 0 65536\n",
        "0 1000 1\n",
        f"0 100000 {ALL_IDS}\n",
        f"1 1 {ALL_IDS - 1}\n",
        f"0 0 1000\n1001 1001 {ALL_IDS - 1001}\n",
        f"0 1 1\n1 0 1\n2 2 {ALL_IDS - 2}\n",
    ],
    ids=["nothing", "container", "single user", "shifted", "without root", "with a gap", "two exchanged"],
)
@pytest.mark.parametrize("wrong", ["/proc/self/uid_map", "/proc/self/gid_map"])
def test_any_other_map_is_refused(text: str, wrong: str) -> None:
    """A map with a translation or a gap, of users or of groups, makes peers indistinguishable."""
    full = f"0 0 {ALL_IDS}"

    with pytest.raises(IncompleteUidMapError, match=wrong):
        check_identity_map(lambda path: text if path == wrong else full)


def test_a_map_that_cannot_be_read_is_refused() -> None:
    """Not knowing is no reason to go on."""

    def missing(path: str) -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    with pytest.raises(IncompleteUidMapError, match="cannot be read"):
        check_identity_map(missing)
