"""Who is calling, as real processes: other uids and groups, units, namespaces, and all that tries to be somebody else.

Control groups are made by hand, where the kernel's hierarchy can be written: they are what systemd would make.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import MalformedPolicyDocumentError
from kmsd.processes.capabilities import drop_capabilities
from kmsd_client import Client
from tests.support.connecting import ids
from tests.support.dev_daemon import DevDaemon
from tests.support.other_user import in_child
from tests.support.peer_process import Become, PeerProcess, member, show_program
from tests.support.raw_peer import request

pytestmark = pytest.mark.root

REFUSED = "AccessDeniedException"
UNIT = "kmsd-one.service"
# uids and gids that every Debian has (base-passwd): daemon, bin, sys, sync, games, man.
SIX = range(1, 7)
# A group that nobody has.
EXTRA = 47_110
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
PR_SET_DUMPABLE = 4
MOUNTED = Path("/sys/fs/cgroup")
# How often the kernel is asked for a certain pid; another process of the host may be faster.
PID_TRIES = 50


class Hierarchy:
    """The unified hierarchy of this machine, of which a slice is the test's own."""

    def __init__(self) -> None:
        roots = [MOUNTED, MOUNTED / "unified"]
        self.root = next((one for one in roots if (one / "cgroup.controllers").exists()), MOUNTED)
        self.slice = self.root / f"kmsdtest{os.getpid()}.slice"

    @property
    def within(self) -> tuple[str, ...]:
        """What has a daemon see this hierarchy where it is on other hosts."""
        if self.root == MOUNTED:
            return ()
        return ("unshare", "--mount", "sh", "-c", f'mount --bind {self.root} {MOUNTED} && exec "$@"', "sh")

    def group(self, path: str) -> Path:
        made = self.slice / path
        made.mkdir(parents=True, exist_ok=True)
        return made

    def remove(self) -> None:
        for folder, _, _ in os.walk(self.slice, topdown=False):
            Path(folder).rmdir()


@pytest.fixture(scope="module")
def hierarchy() -> Iterator[Hierarchy]:
    made = Hierarchy()
    try:
        made.group("")
    except OSError as error:
        pytest.skip(f"the unified hierarchy of control groups cannot be written here: {error}")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def daemon(module_path: Path, prepared: Path, hierarchy: Hierarchy) -> Iterator[DevDaemon]:
    """A daemon that others may connect to."""
    made = DevDaemon(shutil.copytree(prepared, module_path / "d"), shared=True, within=hierarchy.within)
    try:
        made.start()
        yield made
        made.stop()
    finally:
        made.end()


@pytest.fixture
def owner(daemon: DevDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


@pytest.fixture
def unit(hierarchy: Hierarchy) -> Path:
    return hierarchy.group(f"system.slice/{UNIT}")


MakeKey = Callable[..., str]


@pytest.fixture
def make_key(owner: Client) -> MakeKey:
    """Makes keys whose policy has statements about Encrypt."""

    def make(*statements: dict[str, Any]) -> str:
        return owner.create_key(policy=policy(*statements)).key_metadata.arn

    return make


def policy(*statements: dict[str, Any]) -> str:
    """A key policy with these statements beside the one that lets the creator do all but use it."""
    creator = {"Effect": "Allow", "Principal": {"Unix": "uid:0"}, "NotAction": "kms:Encrypt"}
    about_encrypt = [{"Action": "kms:Encrypt"} | one for one in statements]
    listed = [{"Resource": "*"} | one for one in (creator, *about_encrypt)]
    return json.dumps({"Version": "2012-10-17", "Statement": listed})


def allow(*principals: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": {"Unix": list(principals)}}


def deny(*principals: str) -> dict[str, Any]:
    return {"Effect": "Deny", "Principal": {"Unix": list(principals)}}


def user(uid: int, *groups: int) -> Become:
    return ids(uid, uid, list(groups))


def newest(daemon: DevDaemon) -> dict[str, Any]:
    identity: dict[str, Any] = [one for one in daemon.records() if one["eventName"] == "Encrypt"][-1]["userIdentity"]
    return identity


def test_six_users_get_what_is_theirs(daemon: DevDaemon, make_key: MakeKey) -> None:
    """By uid, by name, and by group; all at the same time."""
    key = make_key(allow("uid:1", "user:bin", "gid:3", "group:games"), deny("user:man"))
    peers = [PeerProcess(daemon.socket, user(uid)) for uid in SIX]

    # sync is of no group but its own here, which nobody names; man is denied.
    found = {uid: peer.encrypt(key) for uid, peer in zip(SIX, peers, strict=True)}

    assert found == {1: "ok", 2: "ok", 3: "ok", 4: REFUSED, 5: REFUSED, 6: REFUSED}
    for peer in peers:
        with peer:
            pass


def test_supplementary_groups_decide(daemon: DevDaemon, make_key: MakeKey) -> None:
    """For and against; also one among many."""
    key = make_key(allow(f"gid:{EXTRA}"), deny("gid:6"))
    many = range(60_000, 60_400)

    with (
        PeerProcess(daemon.socket, user(4, EXTRA, 5)) as member_of_it,
        PeerProcess(daemon.socket, user(4, *many, EXTRA)) as member_of_many,
        PeerProcess(daemon.socket, user(4, 5)) as other,
        PeerProcess(daemon.socket, user(4, EXTRA, 6)) as denied,
    ):
        found = [peer.encrypt(key) for peer in (member_of_it, member_of_many, other, denied)]

    assert found == ["ok", "ok", REFUSED, REFUSED]


def test_a_connection_keeps_the_identity_of_who_opened_it(daemon: DevDaemon, make_key: MakeKey) -> None:
    """Handed to a process of another uid, it does what its opener may, and the record names the opener."""
    key = make_key(allow("uid:2"))
    with PeerProcess(daemon.socket, user(2)) as opener:
        pid = os.fork()
        if pid == 0:
            try:
                user(3)()
                code = 0 if opener.encrypt(key) == "ok" else 1
            except BaseException:  # noqa: BLE001 - a child tells by its exit code
                code = 2
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        identity = newest(daemon)

        assert (identity["uid"], identity["pid"]) == (2, opener.pid)
        with PeerProcess(daemon.socket, user(3)) as other:
            assert other.encrypt(key) == REFUSED


def test_a_process_that_becomes_another_user_is_that_user_from_its_next_connection_on(
    daemon: DevDaemon, make_key: MakeKey
) -> None:
    """What it has open stays what it was."""
    key = make_key(allow("uid:0"))
    early: list[socket.socket] = []

    def connect() -> None:
        early.append(socket.socket(socket.AF_UNIX))
        early[0].connect(str(daemon.socket))
        early[0].sendall(request(1, "Encrypt", {"KeyId": key, "Plaintext": b"x"}))

    with PeerProcess(daemon.socket, connect, user(3)) as peer:
        assert peer.encrypt(key) == REFUSED
        assert newest(daemon)["uid"] == 3
        outcomes = {
            (one["userIdentity"]["uid"], one.get("errorCode"))
            for one in daemon.records()
            if one.get("userIdentity", {}).get("pid") == peer.pid
        }

    assert outcomes == {(0, None), (3, REFUSED)}


def test_a_program_never_lets_anybody_in(owner: Client, make_key: MakeKey) -> None:
    """So no policy can say so, neither as a principal nor as the only condition."""
    key = make_key()
    for statement in (
        allow(f"exe:{sys.executable}"),
        {"Effect": "Allow", "Principal": "*", "Condition": {"StringEquals": {"kmsd:Executable": "/usr/bin/restic"}}},
    ):
        with pytest.raises(MalformedPolicyDocumentError):
            owner.put_key_policy(key_id=key, policy=policy(statement))


def test_the_program_is_that_of_the_moment_of_connecting(
    daemon: DevDaemon, make_key: MakeKey, short_path: Path
) -> None:
    """A process that runs another one afterwards is still denied, and the record names the first."""
    own = str(Path("/proc/self/exe").readlink())
    key = make_key(allow("uid:0"), deny(f"exe:{own}"))
    asked = request(1, "Encrypt", {"KeyId": key, "Plaintext": b"x"})
    (short_path / "frame").write_bytes(asked)
    # With capabilities the daemon, which has none, may not see what it runs; that would deny it as well.
    with PeerProcess(daemon.socket, drop_capabilities, show_program) as peer:
        assert peer.encrypt(key) == REFUSED
        assert newest(daemon)["exe"] == own
        pid = os.fork()
        if pid == 0:
            os.dup2(peer.peer.socket.fileno(), 1)
            os.execv("/bin/cat", ["cat", str(short_path / "frame")])  # noqa: S606 - a program of this test
        os.waitpid(pid, 0)
        reply = peer.peer.reply()
        other = make_key(allow("uid:0"), deny("exe:/nothing/else"))

        assert reply is not None
        assert reply["error"]["code"] == REFUSED
        assert peer.encrypt(other) == "ok"


def test_a_program_that_is_hidden_is_denied_whatever_it_is(daemon: DevDaemon, make_key: MakeKey) -> None:
    """Another user's cannot be seen without capabilities, which the daemon has none of."""
    key = make_key(allow("uid:3"), deny("exe:/nothing/else"))

    with PeerProcess(daemon.socket, user(3)) as peer:
        assert peer.encrypt(key) == REFUSED
        assert newest(daemon)["exe"] is None


def test_a_unit_is_its_processes_whoever_they_are(
    daemon: DevDaemon, make_key: MakeKey, hierarchy: Hierarchy, unit: Path
) -> None:
    """Also in groups that it made below itself; and nobody else."""
    key = make_key(allow(f"unit:{UNIT}"))
    delegated = hierarchy.group(f"system.slice/{UNIT}/sub/other.service")
    other = hierarchy.group("system.slice/kmsd-two.service")
    found = {}
    for name, group in {"unit": unit, "delegated": delegated, "other": other}.items():
        with PeerProcess(daemon.socket, member(group), user(3)) as peer:
            found[name] = (peer.encrypt(key), newest(daemon)["unit"])
    with PeerProcess(daemon.socket, user(3)) as peer:
        found["none"] = (peer.encrypt(key), newest(daemon)["unit"])

    assert found["unit"] == found["delegated"] == ("ok", UNIT)
    assert found["other"] == (REFUSED, "kmsd-two.service")
    assert found["none"][0] == REFUSED


def test_a_unit_of_a_users_manager_is_another_one(
    daemon: DevDaemon, make_key: MakeKey, hierarchy: Hierarchy, unit: Path
) -> None:
    """Of the same name, and named by its user in policies and in the record."""
    of_system, of_user = make_key(allow(f"unit:{UNIT}")), make_key(allow(f"user-unit:1000/{UNIT}"))
    group = hierarchy.group(f"user-1000.slice/user@1000.service/app.slice/{UNIT}")

    with PeerProcess(daemon.socket, member(group), user(1000)) as peer:
        assert [peer.encrypt(of_system), peer.encrypt(of_user)] == [REFUSED, "ok"]
        assert newest(daemon)["unit"] == f"user-unit:1000/{UNIT}"
    with PeerProcess(daemon.socket, member(unit), user(1000)) as peer:
        assert [peer.encrypt(of_system), peer.encrypt(of_user)] == ["ok", REFUSED]


def test_what_a_login_starts_is_in_no_unit(daemon: DevDaemon, make_key: MakeKey, hierarchy: Hierarchy) -> None:
    """Whatever groups it makes; that it is in none is known, so a Deny of units passes it by."""
    key = make_key(allow("uid:3"), deny(f"unit:{UNIT}"))
    group = hierarchy.group(f"user-3.slice/session-1.scope/{UNIT}")

    with PeerProcess(daemon.socket, member(group), user(3)) as peer:
        assert peer.encrypt(key) == "ok"
        assert newest(daemon)["unit"] is None


def test_a_process_is_in_the_unit_it_was_in_when_it_connected(
    daemon: DevDaemon, make_key: MakeKey, hierarchy: Hierarchy, unit: Path
) -> None:
    """A connection that is known does not change."""
    key = make_key(allow(f"unit:{UNIT}"))

    with PeerProcess(daemon.socket, member(unit), user(3)) as peer:
        assert peer.encrypt(key) == "ok"
        (hierarchy.group("system.slice/kmsd-two.service") / "cgroup.procs").write_text(str(peer.pid))
        assert peer.encrypt(key) == "ok"


def successor(pid: int, become: Become) -> int | None:
    """Have a process get a pid that was another's; return it, or None if somebody else was faster."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    child = os.fork()
    if child == 0:
        try:
            become()
            signal.pause()
        finally:
            os._exit(0)
    if child == pid:
        return child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_pid_that_is_used_again_gives_nobody_a_unit(daemon: DevDaemon, make_key: MakeKey, unit: Path) -> None:
    """Who connects and ends before he is accepted, so that a process of the unit has his pid then, is not the unit."""
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        pytest.skip("this kernel lets nobody choose the next pid")
    key, open_to_all = make_key(allow(f"unit:{UNIT}")), make_key(allow("uid:3"), deny(f"unit:{UNIT}"))
    joins = member(unit)
    for _ in range(PID_TRIES):
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with PeerProcess(daemon.socket, user(3)) as thief:
                pid = thief.pid
                thief.end()
                service = successor(pid, joins)
                if service is None:
                    continue
                joined = time.monotonic() + 10
                while str(pid) not in (unit / "cgroup.procs").read_text().split() and time.monotonic() < joined:
                    time.sleep(0.005)
                os.kill(daemon.pid, signal.SIGCONT)

                assert thief.encrypt(key) == REFUSED
                identity = newest(daemon)
                assert (identity["pid"], identity["unit"], identity["exe"]) == (pid, None, None)
                # Whether he was in the unit cannot be told, so that he is denied like one who was.
                assert thief.encrypt(open_to_all) == REFUSED
                os.kill(service, signal.SIGKILL)
                os.waitpid(service, 0)
                return
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
    pytest.skip("the pid was always taken by somebody else")


def unshared(flags: int) -> Become:
    def become() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(flags) != 0:
            raise OSError(ctypes.get_errno(), "unshare(2)")

    return become


def attempt(become: Become) -> str:
    try:
        become()
    except OSError as error:
        return str(error)
    return "ok"


def dumpable() -> None:
    """Own one's files in /proc again, which are root's after a change of the uid."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)


def in_new_process() -> None:
    """Go on in a child, as only children are in a new PID namespace."""
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        os._exit(0)


def test_a_peer_in_another_user_namespace_is_who_it_is_here(daemon: DevDaemon, make_key: MakeKey) -> None:
    """Root in there, or nobody: here it has its own uid."""
    own, roots = make_key(allow("uid:3")), make_key(allow("uid:0"))

    def map_to_root() -> None:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text("0 3 1")

    def asks(*become: Become) -> None:
        with PeerProcess(daemon.socket, user(3), *become) as peer:
            assert [peer.encrypt(own), peer.encrypt(roots)] == ["ok", REFUSED]
            assert newest(daemon)["uid"] == 3

    if in_child(lambda: attempt(unshared(CLONE_NEWUSER))) != "ok":
        pytest.skip("this host lets nobody make user namespaces")
    asks(unshared(CLONE_NEWUSER))
    asks(dumpable, unshared(CLONE_NEWUSER), map_to_root)


def test_a_peer_in_a_pid_namespace_below_is_in_its_unit(daemon: DevDaemon, make_key: MakeKey, unit: Path) -> None:
    """Its pid is the one that it has here."""
    key = make_key(allow(f"unit:{UNIT}"))

    with PeerProcess(daemon.socket, member(unit), unshared(CLONE_NEWPID), in_new_process) as peer:
        assert peer.encrypt(key) == "ok"
        identity = newest(daemon)

    assert identity["unit"] == UNIT
    assert identity["pid"] > 1


def test_of_a_peer_above_the_daemon_s_pid_namespace_no_unit_is_known(
    module_path: Path, prepared: Path, hierarchy: Hierarchy, unit: Path
) -> None:
    """It has no pid there: no Allow of a unit fits, and every Deny does."""
    within = (*hierarchy.within, "unshare", "--pid", "--mount-proc", "--fork", "--kill-child")
    contained = DevDaemon(shutil.copytree(prepared, module_path / "p"), shared=True, within=within)
    try:
        contained.start()
        with contained.client() as client:
            statements = ([allow(f"unit:{UNIT}")], [allow("uid:3")], [allow("uid:3"), deny("unit:another.service")])
            keys = [client.create_key(policy=policy(*one)).key_metadata.arn for one in statements]

        with PeerProcess(contained.socket, member(unit), user(3)) as peer:
            assert [peer.encrypt(key) for key in keys] == [REFUSED, "ok", REFUSED]
            identity = newest(contained)
    finally:
        contained.end()

    assert (identity["pid"], identity["unit"], identity["exe"]) == (0, None, None)


def test_who_connects_all_the_time_is_known_each_time(
    daemon: DevDaemon, make_key: MakeKey, hierarchy: Hierarchy
) -> None:
    """New units and old ones, one after the other."""
    units = [f"kmsd-{number}.service" for number in range(8)]
    key = make_key(allow(*(f"unit:{name}" for name in units[::2])))

    for number, name in itertools.chain(enumerate(units), enumerate(units)):
        with PeerProcess(daemon.socket, member(hierarchy.group(f"system.slice/{name}")), user(3)) as peer:
            assert peer.encrypt(key) == ("ok" if number % 2 == 0 else REFUSED)
