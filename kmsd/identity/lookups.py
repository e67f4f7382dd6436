"""Look-ups in a process of their own: the names of users and groups, and which program a process runs.

A name service is other people's code and asks other processes of the host; /proc and the account database are outside
what the daemon may open. So children that hold no key, write nothing and connect to nobody but this host's services
answer these questions; the daemon believes them about names and programs, as it would believe the libraries.

Question and answer are one datagram each of a SOCK_SEQPACKET pair. The daemon waits for an answer for a bounded time,
and after a time-out asks nothing for a while: a name service that hangs must not hold up everybody for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from kmsd.identity.peer import program_of
from kmsd.identity.principals import HostNames, NameServiceError

# The zygote's names for `run_lookups`: one child for names, and one that looks at processes, as what the one needs the
# other must not have.
LOOKUPS_ENTRY = "lookups"
PROGRAMS_ENTRY = "programs"
# A path has at most 4,096 bytes, and each may be spelled out as four.
_MAX_DATAGRAM_BYTES = 20 * 1024
# A directory in the network that answers at all does so within a fraction of this. All callers wait meanwhile.
_DEADLINE_SECONDS = 2
# Then no name is known for so long. Who connects again and again, as a user whom the service does not find, can hold
# the daemon up for a small part of the time only.
_REST_SECONDS = 30
# A question that hangs ends the child some time after the daemon has given it up.
_CHILD_SECONDS = 2 * _DEADLINE_SECONDS


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What is asked; `number` is in the answer, so that a late one is not taken for the next."""

    number: int
    kind: Literal["user_name", "group_name", "uid_of", "gid_of", "program_of"]
    subject: int | str


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What was found; None: nothing."""

    number: int
    found: int | str | None


def run_lookups(descriptors: list[int]) -> None:
    """Answer questions until the daemon closes its end; `descriptors` is this end. Made to be a zygote's entry."""
    names = HostNames()
    ask = {
        "user_name": names.user_name,
        "group_name": names.group_name,
        "uid_of": names.uid_of,
        "gid_of": names.gid_of,
        "program_of": _program,
    }
    decoder = msgspec.msgpack.Decoder(Question)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=descriptors[0]) as daemon:
        while datagram := daemon.recv(_MAX_DATAGRAM_BYTES):
            question = decoder.decode(datagram)
            signal.setitimer(signal.ITIMER_REAL, _CHILD_SECONDS)  # SIGALRM ends it
            found = ask[question.kind](question.subject)  # type: ignore[operator] # the daemon asks what fits
            signal.setitimer(signal.ITIMER_REAL, 0)
            daemon.send(_encoded(Answer(question.number, found)))


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


class Lookups:
    """The daemon's side. `connect` starts the child and returns the socket to it; nothing is known until `start`.

    A child that ends or does not answer is replaced; until then everything raises NameServiceError.
    """

    def __init__(self, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        self._connect = connect
        self._starting: asyncio.Task[None] | None = None
        self._channel: socket.socket | None = None
        self._numbers = itertools.count()
        self._decoder = msgspec.msgpack.Decoder(Answer)

    async def start(self) -> None:
        """Start the child."""
        channel = await self._connect()
        # The kernel's own time limits: Python's would make the socket non-blocking.
        limit = struct.pack("ll", _DEADLINE_SECONDS, 0)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._channel = channel

    def close(self) -> None:
        """Let the child end."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def user_name(self, uid: int) -> str | None:
        """Return the name of `uid`; raises NameServiceError."""
        return self._text("user_name", uid)

    def group_name(self, gid: int) -> str | None:
        """Return the name of `gid`; raises NameServiceError."""
        return self._text("group_name", gid)

    def uid_of(self, name: str) -> int | None:
        """Return the uid of the user `name`; raises NameServiceError."""
        return self._number("uid_of", name)

    def gid_of(self, name: str) -> int | None:
        """Return the gid of the group `name`; raises NameServiceError."""
        return self._number("gid_of", name)

    def program_of(self, pid: int) -> str | None:
        """Return the path of the program that the process runs, None if it cannot be determined."""
        with contextlib.suppress(NameServiceError):
            return self._text("program_of", pid)
        return None

    def _text(self, kind: Literal["user_name", "group_name", "program_of"], subject: int) -> str | None:
        found = self._ask(kind, subject)
        return found if isinstance(found, str) else None

    def _number(self, kind: Literal["uid_of", "gid_of"], subject: str) -> int | None:
        found = self._ask(kind, subject)
        return found if isinstance(found, int) else None

    def _ask(
        self,
        kind: Literal["user_name", "group_name", "uid_of", "gid_of", "program_of"],
        subject: int | str,
    ) -> int | str | None:
        channel = self._channel
        if channel is None:
            raise NameServiceError("the process for look-ups is being started anew")
        question = Question(next(self._numbers), kind, subject)
        rest_seconds = 0
        try:
            channel.send(msgspec.msgpack.encode(question))
            answer = self._decoder.decode(channel.recv(_MAX_DATAGRAM_BYTES))
            if answer.number == question.number:
                return answer.found
        except BlockingIOError:  # how SO_RCVTIMEO and SO_SNDTIMEO end a wait
            rest_seconds = _REST_SECONDS
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            pass  # it ended, or answers nonsense
        self.close()
        self._starting = asyncio.get_running_loop().create_task(self._start_anew(rest_seconds))
        raise NameServiceError("the name service does not answer")

    async def _start_anew(self, rest_seconds: float) -> None:
        while True:
            await asyncio.sleep(rest_seconds)
            try:
                return await self.start()
            except (OSError, RuntimeError):  # no process can be made just now
                rest_seconds = _REST_SECONDS
