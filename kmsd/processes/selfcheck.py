"""The self-check: one child of each kind restricts itself as usual, and tells what it then looks like from inside."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable

import msgspec

from kmsd.processes.confinement import Confinement, Finding, Protection, State
from kmsd.processes.spawning import Entry
from kmsd.processes.zygote import SpawnError, Zygote, ZygoteGoneError

# Some ten findings of a few hundred bytes.
_MAX_REPORT_BYTES = 16 * 1024
# A child needs milliseconds; the rest is for a host that is starting.
_DEADLINE_SECONDS = 10.0
_decoder = msgspec.json.Decoder(tuple[Finding, ...])


def check_entry(kind: str) -> str:
    """Return the zygote's name for the self-check of a kind of process."""
    return f"check-{kind}"


def reporting(confinement: Confinement, enter: Callable[[], None]) -> Entry:
    """Return the entry of a child that calls `enter`, and sends what it finds over its one descriptor."""

    def report(descriptors: list[int]) -> None:
        with socket.socket(fileno=descriptors[0]) as channel:
            enter()
            channel.send(msgspec.json.encode(confinement.report()))

    return report


async def inspect_children(zygote: Zygote, kinds: Iterable[str]) -> tuple[Finding, ...]:
    """Return what a child of each of `kinds` found; one that tells nothing has no protection that is known of."""
    found = await asyncio.gather(*(_inspect(zygote, kind) for kind in kinds))
    return tuple(finding for findings in found for finding in findings)


async def _inspect(zygote: Zygote, kind: str) -> tuple[Finding, ...]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours:
        try:
            with theirs:
                await zygote.spawn(check_entry(kind), [theirs.fileno()])
            async with asyncio.timeout(_DEADLINE_SECONDS):
                data = await asyncio.get_running_loop().sock_recv(ours, _MAX_REPORT_BYTES)
            return _decoder.decode(data)
        except (OSError, TimeoutError, SpawnError, ZygoteGoneError, msgspec.DecodeError) as error:
            reason = f"the self-check of {kind} failed ({type(error).__name__})"
            return tuple(Finding(kind, protection, State.OFF, reason) for protection in (Protection.CALLS,))
