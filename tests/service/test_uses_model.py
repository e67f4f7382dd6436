"""Whatever becomes of flushes, seals and processes, the uses that are told are those that happened."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd.envelope.pool import FileOutcome
from kmsd.service.seal import CONFIGURED
from kmsd.store.base import StoreUnavailableError
from tests.support.embedded import Embedded
from tests.support.killed import open_again
from tests.support.uses import decrypt, encrypt, encrypt_file, last_usage, re_encrypt

KEYS = 2
FULL = StoreUnavailableError("the store cannot be written: No space left on device")
USES = [("encrypt", 0), ("encrypt", 1), ("decrypt", 0), ("re_encrypt", 0), ("re_encrypt", 1), ("begin_file", 1)]
EVENTS = ("end_files", "forget", "flush", "fail_before", "fail_behind", "recover", "seal", "stop", "kill")


class World:
    """A service that goes through what happens, and what happened."""

    def __init__(self, service: Embedded, arns: list[str], blob: bytes) -> None:
        self._service = service
        self._arns = arns
        # Of the first key.
        self._blob = blob
        self._happened: list[Counter[str]] = [Counter(Encrypt=1), Counter()]

    async def step(self, event: str, number: int) -> None:
        """Let one thing happen."""
        await getattr(self, event)(number)

    async def encrypt(self, number: int) -> None:
        await encrypt(self._service, self._arns[number])
        self._happened[number]["Encrypt"] += 1

    async def decrypt(self, number: int) -> None:
        await decrypt(self._service, self._blob)
        self._happened[number]["Decrypt"] += 1

    async def re_encrypt(self, number: int) -> None:
        await re_encrypt(self._service, self._blob, self._arns[number])
        for one in (0, number):
            self._happened[one]["ReEncrypt"] += 1

    async def begin_file(self, number: int) -> None:
        await encrypt_file(self._service, self._arns[number])
        self._happened[number]["EncryptFile"] += 1

    async def end_files(self, _: int) -> None:
        for stream in self._service.pool.streams:
            if not stream.reported.done():
                stream.reported.set_result(FileOutcome(plaintext_bytes=1, message_bytes=2, error=None))
        await asyncio.gather(*(stream.acknowledged for stream in self._service.pool.streams))

    async def forget(self, number: int) -> None:
        self._service.records.forget(self._arns[number].rpartition("/")[2])

    async def fail_before(self, _: int) -> None:
        self._service.store.faults["commit"] = FULL

    async def fail_behind(self, _: int) -> None:
        self._service.store.faults["committing"] = FULL

    async def recover(self, _: int) -> None:
        self._service.store.faults.clear()

    async def flush(self, _: int) -> None:
        await self._service.uses.keep_if_possible()

    async def seal(self, _: int) -> None:
        await self._service.unsealing.seal()
        await self._service.unsealing.unseal(CONFIGURED, lambda: None)

    async def stop(self, number: int) -> None:
        await self.end_files(number)
        await self.flush(number)
        await self.kill(number)

    async def kill(self, _: int) -> None:
        self._service = await open_again(self._service)

    async def check(self) -> None:
        """What is told is what happened."""
        for arn, happened in zip(self._arns, self._happened, strict=True):
            told = await last_usage(self._service, arn)
            assert told.uses.pop("EncryptFile", 0) in range(happened["EncryptFile"], 2 * happened["EncryptFile"] + 1)
            assert told.uses == {name: number for name, number in happened.items() if name != "EncryptFile"}

    async def close(self) -> None:
        """End it."""
        await self._service.close()


async def live(directory: Path, events: list[tuple[str, int]]) -> None:
    service = await Embedded.open(directory)
    arns = [await service.make_key() for _ in range(KEYS)]
    world = World(service, arns, await encrypt(service, arns[0]))
    try:
        for event, number in events:
            await world.step(event, number)
            await world.check()
    finally:
        await world.close()


@settings(max_examples=10)
@given(st.lists(st.sampled_from(USES + [(event, 0) for event in EVENTS]), min_size=8, max_size=20))
def test_what_is_told_is_what_happened(events: list[tuple[str, int]]) -> None:
    """A file that was under way at a kill may count twice, and nothing counts less than it happened."""
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(live(Path(directory), events))
