"""Look-ups in processes of their own: what each child answers to the daemon (kmsd.identity.lookups).

A name service is other people's code and asks other processes of the host; /proc, the control groups and the account
database are outside what the daemon may open. So children that hold no key, write nothing and connect to nobody but
this host's services answer these questions. What one needs the others must not have, so there are three kinds.
"""

from __future__ import annotations

import os
import pwd
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from kmsd.identity.cgroups import Cgroups
from kmsd.identity.peer import MAX_GROUPS
from kmsd.identity.principals import HostNames
from kmsd.identity.process import program_of

# The zygote's names for the entries of this module.
LOOKUPS_ENTRY = "lookups"
PROGRAMS_ENTRY = "programs"
CGROUPS_ENTRY = "cgroups"
# A path has at most 4,096 bytes, and each may be spelled out as four.
MAX_DATAGRAM_BYTES = 20 * 1024
# Names that are looked up at a time, so that one which the service hangs on does not hold up the others.
NAMES_AT_A_TIME = 4
# Processes that are looked for in one reading of the tree of control groups.
_PROCESSES_AT_A_TIME = 256

Kind = Literal["user_name", "group_name", "uid_of", "gid_of", "groups_of", "program_of", "cgroup_of"]
Subject = int | str | tuple[int, int | None]
Found = int | str | list[int] | None


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What is asked; `number` is in the answer. The subject of "cgroup_of" is a pid and the number of the group."""

    number: int
    kind: Kind
    subject: Subject


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What was found; None: nothing."""

    number: int
    found: Found


def run_names(descriptors: list[int]) -> None:
    """Answer questions about users and groups until the daemon closes its end; `descriptors` is this end.

    Made to be a zygote's entry, as the others are.
    """
    names = HostNames()
    ask = {
        "user_name": names.user_name,
        "group_name": names.group_name,
        "uid_of": names.uid_of,
        "gid_of": names.gid_of,
        "groups_of": groups_of,
    }
    with socket.socket(fileno=descriptors[0]) as daemon:
        for _ in range(NAMES_AT_A_TIME):
            threading.Thread(target=_answer, args=(daemon, ask), daemon=True).start()
        # A thread that hangs in the name service does not see that nobody waits any more.
        hangs_up = select.poll()
        hangs_up.register(daemon, 0)
        hangs_up.poll()
        os._exit(0)


def run_programs(descriptors: list[int]) -> None:
    """Answer which program a process runs."""
    with socket.socket(fileno=descriptors[0]) as daemon:
        _answer(daemon, {"program_of": _program})


def run_cgroups(descriptors: list[int]) -> None:
    """Answer which control group a process is in. Who asks meanwhile is answered together."""
    cgroups = Cgroups()
    decoder = msgspec.msgpack.Decoder(Question)
    with socket.socket(fileno=descriptors[0]) as daemon:
        while datagram := daemon.recv(MAX_DATAGRAM_BYTES):
            questions = [decoder.decode(datagram)]
            while len(questions) < _PROCESSES_AT_A_TIME and (more := _received(daemon)):
                questions.append(decoder.decode(more))
            processes = [question.subject for question in questions if isinstance(question.subject, tuple)]
            for question, path in zip(questions, cgroups.paths_of(processes), strict=True):
                daemon.send(_encoded(Answer(question.number, path)))


def groups_of(user: str) -> list[int] | None:
    """Return the groups in which the user `user` is; None for nobody, or for more of them than a peer may have."""
    try:
        groups = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except (KeyError, OSError):
        return None
    return groups if len(groups) <= MAX_GROUPS else None


def _received(daemon: socket.socket) -> bytes:
    """Return the next question, nothing if none has come yet."""
    try:
        return daemon.recv(MAX_DATAGRAM_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def _answer(daemon: socket.socket, ask: dict[str, Callable[[Any], Found]]) -> None:
    decoder = msgspec.msgpack.Decoder(Question)
    while datagram := daemon.recv(MAX_DATAGRAM_BYTES):
        question = decoder.decode(datagram)
        daemon.send(_encoded(Answer(question.number, ask[question.kind](question.subject))))


def _encoded(answer: Answer) -> bytes:
    try:
        return msgspec.msgpack.encode(answer)
    except UnicodeEncodeError:  # a name that is no text is nobody's here
        return msgspec.msgpack.encode(Answer(answer.number, None))


def _program(pid: int) -> str | None:
    try:
        return program_of(pid)
    except OSError:
        return None
