"""What only the asyncio client does."""

import asyncio
import datetime as dt
import os
from typing import Any

import pytest

from kmsd.api.errors import ConnectionLostError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest, EncryptFileResponse
from kmsd.api.keys import CreateKeyResponse
from kmsd.api.operation import KeyState, KeyUsage
from kmsd.api.shapes import EncryptionAlgorithm, KeyManager, KeyMetadata, KeyOrigin, KeySpec
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest, GenerateRandomResponse
from kmsd_client import AsyncClient
from tests.client.scripted import Answer, ScriptedDaemon, comes_down_to, descriptors_open

RANDOM = GenerateRandomRequest(number_of_bytes=8)


def answer(name: str, request: Any) -> Answer:
    if name == "EncryptFile":
        reading, writing = os.pipe()
        os.write(writing, request.key_id.encode())
        os.close(writing)
        return EncryptFileResponse(key_id=request.key_id, header=b""), [reading]
    return GenerateRandomResponse(plaintext=memoryview(request.number_of_bytes.to_bytes(4, "big"))), []


def metadata(description: str) -> KeyMetadata:
    return KeyMetadata(
        account_id="123456789012",
        key_id="id",
        arn="arn",
        creation_date=dt.datetime(2030, 1, 2, 3, 4, 5, 678000, dt.UTC),
        enabled=True,
        description=description,
        key_usage=KeyUsage.ENCRYPT_DECRYPT,
        key_state=KeyState.ENABLED,
        origin=KeyOrigin.AWS_KMS,
        key_manager=KeyManager.CUSTOMER,
        key_spec=KeySpec.SYMMETRIC_DEFAULT,
        encryption_algorithms=[EncryptionAlgorithm.SYMMETRIC_DEFAULT],
        multi_region=False,
        current_key_material_id="0" * 64,
    )


async def ask(client: AsyncClient, number: int) -> int:
    response = await client.generate_random(number_of_bytes=number)
    return int.from_bytes(response.plaintext, "big")


async def ask_file(client: AsyncClient, key_id: str) -> bytes:
    response, (descriptor,) = await client.encrypt_file(key_id=key_id)
    assert response.key_id == key_id
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


async def test_many_calls_share_a_connection(daemon: ScriptedDaemon) -> None:
    """Each gets its own answer and its own descriptors."""
    daemon.answer = answer
    async with AsyncClient(daemon.path) as client:
        numbers, contents = await asyncio.gather(
            asyncio.gather(*(ask(client, number) for number in range(1, 101))),
            asyncio.gather(*(ask_file(client, f"key-{number}") for number in range(10))),
        )

    assert list(range(1, 101)) == numbers
    assert [f"key-{number}".encode() for number in range(10)] == contents
    assert daemon.accepted == 1


async def test_answers_may_come_in_another_order(daemon: ScriptedDaemon) -> None:
    """A slow operation does not hold up a quick one that was asked later."""
    daemon.answer = answer
    daemon.hold, daemon.held_back = "EncryptFile", 1
    async with AsyncClient(daemon.path) as client:
        slow = asyncio.create_task(ask_file(client, "slow"))
        await asyncio.sleep(0)

        assert await ask(client, 5) == 5
        assert await slow == b"slow"


async def test_requests_beyond_the_sockets_buffer_are_sent_in_the_end(daemon: ScriptedDaemon) -> None:
    """Sending goes on when the daemon reads on."""
    daemon.answer = lambda _name, request: (CreateKeyResponse(key_metadata=metadata(request.description)), [])
    async with AsyncClient(daemon.path) as client:
        calls = [client.create_key(description=str(number), policy="x" * 100_000) for number in range(50)]
        responses = await asyncio.gather(*calls)

    assert [str(number) for number in range(50)] == [response.key_metadata.description for response in responses]


@pytest.mark.parametrize("when", [0.0, 0.05])
async def test_a_cancelled_call_leaves_no_descriptor_behind(daemon: ScriptedDaemon, when: float) -> None:
    """Its answer is dropped when it comes, and the connection goes on."""
    daemon.answer = answer
    async with AsyncClient(daemon.path) as client:
        await ask(client, 1)
        before = descriptors_open()
        daemon.hold, daemon.held_back = "EncryptFile", 2
        call = asyncio.create_task(client.call_with_descriptors(ENCRYPT_FILE, EncryptFileRequest(key_id="a")))
        await asyncio.sleep(when)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await ask(client, 1)
        await ask_file(client, "b")

        assert comes_down_to(before)


async def test_closing_ends_the_calls_in_flight(daemon: ScriptedDaemon) -> None:
    """With an error of their own, not by waiting for ever."""
    daemon.hold, daemon.held_back = "GenerateRandom", 10**6
    client = AsyncClient(daemon.path)
    call = asyncio.create_task(client.call(GENERATE_RANDOM, RANDOM))
    await asyncio.to_thread(daemon.was_asked.wait, 5)
    await client.close()

    with pytest.raises(ConnectionLostError, match="closed"):
        await call
