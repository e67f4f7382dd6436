"""Connections of one uid against a simple model: whatever happens in whatever order, the accounts are balanced."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kmsd.api.keys import CREATE_KEY, DESCRIBE_KEY, CreateKeyRequest, DescribeKeyRequest
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest
from kmsd.audit.record import Kind
from kmsd.audit.writer import SyncMode
from kmsd.config import Limits
from kmsd.server.limits import Shares
from tests.support.connected import ConnectedPeer
from tests.support.embedded import Embedded, Gate

_ResultT = TypeVar("_ResultT")
IN_FLIGHT = 3
numbers = st.integers(0, 2)


class Modelled(ConnectedPeer):
    """A peer, what it may expect, and whether it still can."""

    def __init__(self, service: Embedded, shares: Shares) -> None:
        super().__init__(service, shares, limits=None)
        self.expected: dict[int, str] = {}
        self.parked = 0


class Connections(RuleBasedStateMachine):
    """Peers ask, hang up and break the rules while the store stands still or moves; nothing is lost or kept."""

    sync = SyncMode.OS

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="kmsd-")
        self.service = self.run(Embedded.open(Path(self.folder.name), sync=self.sync))
        self.arn = self.run(self.service.make_key())
        self.shares = Shares(Limits(requests_in_flight_per_uid=IN_FLIGHT), time.monotonic)
        self.peers: list[Modelled] = []
        self.gate: Gate | None = None

    def run(self, work: Coroutine[Any, Any, _ResultT]) -> _ResultT:
        return self.runner.run(work)

    async def settle(self) -> None:
        """Let everything run that can: until the store's and the trail's threads had their turns too."""
        for _ in range(3):
            await asyncio.sleep(0.001)

    @rule()
    def connect(self) -> None:
        if len(self.peers) < 3:

            async def connect() -> None:
                self.peers.append(Modelled(self.service, self.shares))

            self.run(connect())

    def peer(self, number: int) -> Modelled | None:
        return self.peers[number] if number < len(self.peers) else None

    @rule(number=numbers, size=st.sampled_from([1, 100, 32 * 1024]), count=st.integers(1, 40))
    def ask_at_once(self, number: int, size: int, count: int) -> None:
        """Requests that are served without waiting are all answered."""
        if (peer := self.peer(number)) is None:
            return
        request = GenerateRandomRequest(number_of_bytes=size)

        async def ask() -> None:
            await peer.send(b"".join(peer.frame(GENERATE_RANDOM, request) for _ in range(count)))
            answers = [answer for answer in await peer.answers(count) if answer.id not in peer.expected]
            while len(answers) < count:
                answers += [answer for answer in await peer.answers(1) if answer.id not in peer.expected]
            assert all(answer.error is None for answer in answers)

        self.run(ask())

    @rule(number=numbers, change=st.booleans())
    def ask_the_store(self, number: int, change: bool) -> None:
        """Requests that await the store are answered when it moves; beyond the limit they are throttled at once."""
        if (peer := self.peer(number)) is None:
            return

        async def ask() -> None:
            before = self.shares.join(1000, known=True)
            throttled = before.in_flight >= IN_FLIGHT
            self.shares.leave(before)
            if change:
                await peer.ask(CREATE_KEY, CreateKeyRequest())
            else:
                await peer.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=self.arn))
            await self.settle()
            if throttled or self.gate is None:
                [answer] = await peer.answers(1)
                assert (answer.error is not None) is throttled
                assert answer.error is None or answer.error.code == "ThrottlingException"
            else:
                peer.parked += 1

        self.run(ask())

    @precondition(lambda self: self.gate is None)
    @rule()
    def stop_the_store(self) -> None:
        async def stop() -> None:
            self.gate = Gate()
            self.service.store.gates = {"material": self.gate, "commit": self.gate}

        self.run(stop())

    @precondition(lambda self: self.gate is not None)
    @rule()
    def move_the_store(self) -> None:
        """All that waited are answered."""

        async def move() -> None:
            assert self.gate is not None
            self.service.store.gates = {}
            self.gate.opened.set()
            self.gate = None
            for peer in self.peers:
                answers = await peer.answers(peer.parked)
                assert all(answer.error is None for answer in answers)
                peer.parked = 0

        self.run(move())

    @rule(number=numbers, last=st.sampled_from(["", "request", "change"]))
    def hang_up(self, number: int, last: str) -> None:
        """Also with a last request that nobody waits for."""
        if (peer := self.peer(number)) is None:
            return

        async def end() -> None:
            if last == "request":
                await peer.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=self.arn))
            elif last == "change":
                await peer.ask(CREATE_KEY, CreateKeyRequest())
            peer.hang_up()
            await peer.closed()

        self.run(end())
        self.peers.remove(peer)

    @rule(number=numbers, waiting=st.booleans(), breach=st.sampled_from([b"\x00\x00\x00\x01\xc0", b"\xff" * 8]))
    def break_the_rules(self, number: int, waiting: bool, breach: bytes) -> None:
        """Behind a request that waits for its first turn, or by itself: the last word is the error."""
        if (peer := self.peer(number)) is None:
            return

        async def end() -> None:
            frame = bytes(peer.frame(DESCRIBE_KEY, DescribeKeyRequest(key_id=self.arn))) if waiting else b""
            await peer.send(frame + breach)
            answers = await peer.until_end()
            assert (answers[-1].id, answers[-1].error and answers[-1].error.code) == (0, "ProtocolException")
            await peer.closed()
            peer.hang_up()

        self.run(end())
        self.peers.remove(peer)

    @rule(number=numbers)
    def finish(self, number: int) -> None:
        """A stop waits for what is being served."""
        if (peer := self.peer(number)) is None or peer.parked:
            return

        async def end() -> None:
            await asyncio.wait_for(peer.connection.finish(), 5)
            assert await peer.until_end() == []
            peer.hang_up()

        self.run(end())
        self.peers.remove(peer)

    @invariant()
    def accounts_are_balanced(self) -> None:
        self.run(self.settle())
        assert self.shares.connections == len(self.peers)
        for peer in self.peers:
            assert peer.share.in_flight == sum(one.parked for one in self.peers)
            assert peer.connection.unsent_bytes == 0

    def teardown(self) -> None:
        self.run(self.end())
        self.runner.close()
        self.folder.cleanup()

    async def end(self) -> None:
        for gate in self.service.store.gates.values():
            gate.opened.set()
        share = self.shares.join(1000, known=True)
        for peer in self.peers:
            peer.hang_up()
            await peer.closed()
        await self.service.pipeline.drain()
        await self.settle()
        assert (share.in_flight, share.connections, self.shares.connections) == (0, 1, 1)
        records = self.service.lines()
        begun = [record["requestID"] for record in records if record["eventType"] == Kind.INTENT]
        ended = [record["requestID"] for record in records if record["eventType"] == Kind.OUTCOME]
        assert sorted(begun) == sorted(ended)
        await self.service.close()


class AlwaysSynced(Connections):
    """The same, with every reply waiting for the disk."""

    sync = SyncMode.ALWAYS


TestConnections = Connections.TestCase
TestConnections.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestAlwaysSynced = AlwaysSynced.TestCase
TestAlwaysSynced.settings = settings(max_examples=6, stateful_step_count=12, deadline=None)
