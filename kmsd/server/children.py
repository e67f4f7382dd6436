"""The children that look things up for the daemon, one of each kind."""

from __future__ import annotations

import socket
from functools import partial

from kmsd.identity.answering import CGROUPS_ENTRY, LOOKUPS_ENTRY, PROGRAMS_ENTRY
from kmsd.identity.callers import ProcessLookups
from kmsd.identity.directory import Directory
from kmsd.identity.lookups import Lookups
from kmsd.processes.zygote import Zygote


class LookupChildren:
    """Made by `zygote`; what they are asked raises NameServiceError until `start`."""

    def __init__(self, zygote: Zygote) -> None:
        names, programs, cgroups = self._lookups = [
            Lookups(partial(_connect, zygote, entry)) for entry in (LOOKUPS_ENTRY, PROGRAMS_ENTRY, CGROUPS_ENTRY)
        ]
        self.directory = Directory(names)
        self.processes = ProcessLookups(programs, cgroups)

    async def start(self) -> None:
        """Start them."""
        for lookups in self._lookups:
            await lookups.start()

    def close(self) -> None:
        """Let them end."""
        for lookups in self._lookups:
            lookups.close()


async def _connect(zygote: Zygote, entry: str) -> socket.socket:
    """Start a child that runs `entry` and return the socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            await zygote.spawn(entry, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
    return ours
