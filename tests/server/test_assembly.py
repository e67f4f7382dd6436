"""The service as a whole, from open to close: what a start finds and settles, and what a stop leaves behind."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.errors import AuditUnavailableError, KmsError, SealedError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.api.keys import CREATE_KEY, CreateKeyRequest
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.audit.record import Kind
from kmsd.audit.verify import verify
from kmsd.config import Audit, Config
from kmsd.envelope.pool import WORKER_ENTRY
from kmsd.envelope.worker import run_worker
from kmsd.identity.principals import Administrators
from kmsd.logs import StructuredLogger
from kmsd.memory.arena import Arena
from kmsd.processes.zygote import Zygote
from kmsd.server.activation import Sockets
from kmsd.server.assembly import Service
from kmsd.server.foundation import Foundation
from kmsd.server.listener import bind
from kmsd.store.base import StoreFormatError, StoreUnavailableError
from tests.support.at_once import Processes, directory_of
from tests.support.embedded import ACCOUNT, ALICE, Answer, Embedded, MemoryRoot, answers_in, kind_is, request_frame

OpenService = Callable[..., Awaitable[Service]]


class OpenedService(Service):
    """One that knows whether its test has closed it."""

    closed = False

    async def close(self) -> None:
        self.closed = True
        await super().close()


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    """Before anything has a thread; those of earlier tests end a moment after them."""
    for _ in range(500):
        if len(list(Path("/proc/self/task").iterdir())) == 1:
            break
        time.sleep(0.01)
    zygote = Zygote.start({WORKER_ENTRY: run_worker})
    yield zygote
    asyncio.run(zygote.close())


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
async def open_assembled(zygote: Zygote, short_path: Path, log: io.StringIO) -> AsyncIterator[OpenService]:
    """Opens services on one store and one trail, one after the other."""
    opened: list[OpenedService] = []

    async def open_(config: Config | None = None) -> Service:
        service = await OpenedService.open(
            Foundation(
                config=config or Config(shutdown_grace_seconds=0.2),
                zygote=zygote,
                arena=Arena(256 * 1024),
                logger=StructuredLogger(log),
                root=MemoryRoot(),
                pin_configured=True,
                administrators=Administrators(uids=frozenset({os.getuid()})),
                admit=lambda _: None,
                directory=directory_of(),
                processes=Processes(),
                findings=[],
                host_policy=None,
                store_path=short_path / "store.sqlite",
                audit_path=short_path / "audit.log",
                founds=True,
                log_is_kept=False,
            )
        )
        assert isinstance(service, OpenedService)
        opened.append(service)
        return service

    yield open_
    for service in opened:
        if not service.closed:
            await service.close()


def trail(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "audit.log").read_bytes().splitlines(keepends=True)
    verify(lines)
    return [msgspec.json.decode(line) for line in lines]


async def ask(path: Path, frame: bytes | bytearray) -> Answer:
    """The answer to one request on a connection of its own."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await loop.sock_connect(client, str(path))
        await loop.sock_sendall(client, frame)
        [answer] = answers_in(await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 5))
    return answer


async def test_a_whole_life_is_in_the_trail(open_assembled: OpenService, short_path: Path) -> None:
    """Unsealed, started, used, stopped."""
    service = await open_assembled()
    await service.unseal()
    await service.listen(Sockets(bind(short_path / "s", 0o600)))

    answer = await ask(short_path / "s", request_frame(STATUS, StatusRequest()))
    await service.close()

    assert answer.error is None
    assert [record["eventName"] for record in trail(short_path)] == [
        "Unseal",
        "SignAuditTrail",
        "Start",
        "Status",
        "Stop",
        "SignAuditTrail",
    ]


async def test_before_it_is_unsealed_it_serves_what_needs_no_key(open_assembled: OpenService, short_path: Path) -> None:
    """And says that it is sealed."""
    service = await open_assembled()
    await service.listen(Sockets(bind(short_path / "s", 0o600)))

    status = await ask(short_path / "s", request_frame(STATUS, StatusRequest()))
    request = EncryptRequest(key_id="alias/a", plaintext=memoryview(b"x"))
    refused = await ask(short_path / "s", request_frame(ENCRYPT, request))

    assert b"sealed" in (status.result or b"")
    assert isinstance(refused.error, SealedError)


async def test_an_account_is_drawn_once(open_assembled: OpenService, short_path: Path) -> None:
    """Twelve digits, kept; and the region too, whatever the configuration says later."""
    found = set()
    for region in ("one-1", "two-2"):
        service = await open_assembled(Config(region=region))
        await service.unseal()
        await service.listen(Sockets(bind(short_path / region, 0o600)))
        answer = await ask(short_path / region, request_frame(STATUS, StatusRequest()))
        status = msgspec.msgpack.decode(answer.result or b"")
        found.add((status["Account"], status["Region"]))
        await service.close()

    [(account, region)] = found
    assert (len(account), account.isdigit(), account[0] != "0", region) == (12, True, True, "one-1")


async def test_a_stop_stores_what_was_done_with_keys(open_assembled: OpenService, short_path: Path) -> None:
    """The next start need not count it from the trail, which does not tell of versions of the material."""
    service = await open_assembled()
    await service.unseal()
    await service.listen(Sockets(bind(short_path / "s", 0o600)))
    made = await ask(short_path / "s", request_frame(CREATE_KEY, CreateKeyRequest()))
    key_id = msgspec.msgpack.decode(made.result or b"")["KeyMetadata"]["KeyId"]
    request = EncryptRequest(key_id=key_id, plaintext=memoryview(b"x"))
    assert (await ask(short_path / "s", request_frame(ENCRYPT, request))).error is None
    await service.close()

    again = await open_assembled()
    await again.unseal()

    used = await again._store.usage(key_id)
    assert used is not None
    assert used.materials["1"].encrypted == 1


async def left_open(folder: Path) -> dict[str, str]:
    """Leave changes and a file open, as a killed daemon does; the request ids by what became of them."""
    service = await Embedded.open(folder)
    service.trail.refuses = kind_is(Kind.OUTCOME)
    with pytest.raises(AuditUnavailableError):
        await service.make_key()
    committed = service.newest()["requestID"]
    service.store.faults["commit"] = service.store.faults["committed"] = StoreUnavailableError("store: gone")
    with pytest.raises(KmsError):
        await service.make_key()
    uncommitted = service.newest()["requestID"]
    service.store.faults.clear()
    service.trail.refuses = None
    arn = await service.make_key()
    batch = await service.reply_to(ALICE, ENCRYPT_FILE, EncryptFileRequest(key_id=arn))
    batch.discard()
    begun = service.newest()["requestID"]
    await service.close()
    return {committed: "committed", uncommitted: "uncommitted", begun: "begun"}


async def test_a_start_settles_what_was_left_open(open_assembled: OpenService, short_path: Path) -> None:
    """Each intent and begin gets its one counterpart: the store knows whether a change was committed."""
    names = await left_open(short_path)
    before = len(trail(short_path))
    service = await open_assembled()
    await service.unseal()
    await service.close()

    settled = {names[record["requestID"]]: record for record in trail(short_path)[before:] if record["requestID"]}
    assert {name: record.get("errorCode") for name, record in settled.items()} == {
        "committed": None,
        "uncommitted": "KMSInternalException",
        "begun": "KMSInternalException",
    }
    assert {name: (record["eventType"], record["eventName"]) for name, record in settled.items()} == {
        "committed": (Kind.OUTCOME, "CreateKey"),
        "uncommitted": (Kind.OUTCOME, "CreateKey"),
        "begun": (Kind.END, "EncryptFile"),
    }
    for name, record in settled.items():
        assert record["userIdentity"]["uid"] == 1000
        assert record["additionalEventData"]["settledAtStart"] is True
        assert record["readOnly"] is (name == "begun")
    assert f":{ACCOUNT}:key/" in settled["begun"]["resources"][0]["ARN"]
    lines = (short_path / "audit.log").read_bytes().splitlines(keepends=True)
    assert verify(lines).open_intents == ()


async def test_what_is_settled_is_settled_once(open_assembled: OpenService, short_path: Path) -> None:
    """A second start finds nothing open."""
    await left_open(short_path)
    for _ in range(2):
        service = await open_assembled()
        await service.unseal()
        await service.close()

    records = trail(short_path)
    assert sum("settledAtStart" in record.get("additionalEventData", {}) for record in records) == 3


async def test_a_stop_that_cannot_be_recorded_wipes_the_keys_all_the_same(
    open_assembled: OpenService, short_path: Path
) -> None:
    """Everything is closed, and then the failure is told."""
    service = await open_assembled()
    await service.unseal()
    (short_path / "audit.log").rename(short_path / "elsewhere")

    with pytest.raises(AuditUnavailableError):
        await service.close()

    assert service.sealed
    (short_path / "elsewhere").rename(short_path / "audit.log")
    again = await open_assembled()  # neither file is locked any more
    await again.unseal()
    await again.close()


async def test_an_open_that_fails_holds_nothing(open_assembled: OpenService, short_path: Path) -> None:
    """The trail was opened before the store, and is closed again."""
    (short_path / "store.sqlite").write_bytes(b"this is no store" * 100)
    with pytest.raises(StoreFormatError):
        await open_assembled()

    (short_path / "store.sqlite").unlink()
    service = await open_assembled()
    await service.unseal()


@pytest.mark.parametrize("sync", ["interval", "always", "os"])
async def test_every_mode_of_the_trail_serves(open_assembled: OpenService, short_path: Path, sync: Any) -> None:
    """The configured one is told."""
    service = await open_assembled(Config(audit=Audit(sync=sync)))
    await service.unseal()
    await service.listen(Sockets(bind(short_path / "s", 0o600)))

    answer = await ask(short_path / "s", request_frame(STATUS, StatusRequest()))

    assert msgspec.msgpack.decode(answer.result or b"")["AuditSync"] == sync


async def test_a_store_that_vanished_is_no_new_one(open_assembled: OpenService, short_path: Path) -> None:
    """A trail that tells of keys is not continued with an empty store."""
    service = await open_assembled()
    await service.unseal()
    await service.close()
    (short_path / "store.sqlite").unlink()

    with pytest.raises(StoreFormatError, match="put the store back"):
        await open_assembled()
