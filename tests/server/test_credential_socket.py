"""The socket on which systemd asks for credentials, by real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kmsd.access.decision import HostPolicy
from kmsd.api.credentials import MAX_CREDENTIAL_BYTES, GetCredentialRequest
from kmsd.api.errors import AccessDeniedError
from kmsd.audit.record import Kind
from kmsd.audit.writer import SyncMode
from kmsd.config import Limits
from kmsd.identity.callers import Callers
from kmsd.identity.peer import peer_of
from kmsd.identity.principals import Administrators
from kmsd.logs import StructuredLogger
from kmsd.server.credential_socket import CredentialListener, SessionOf
from kmsd.server.listener import actor_of, bind
from kmsd.service.call import Session
from kmsd.service.loading import loaded
from kmsd.store.base import Delete, Insert, StoreUnavailableError
from kmsd.store.rows import CredentialRow
from tests.server.conftest import OpenService
from tests.support.at_once import Processes
from tests.support.embedded import ACCOUNT, BOB, ROOT, Embedded, Gate, kind_is
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user
from tests.support.systemd_peer import address, connected, credential, read

ROOT_FOLDER = Path(__file__).parent.parent.parent
UNIT, NAME = "nginx.service", "tls-key"
SECRET = os.urandom(3000)


async def from_systemd(_sock: object) -> Session:
    """Whoever runs the tests stands for systemd."""
    return ROOT


async def keep(
    service: Embedded, secret: bytes = SECRET, *, unit: str = UNIT, name: str = NAME, allowed: str = "uid:0"
) -> str:
    """Keep a credential under a key that `allowed` may use; its ARN."""
    statements = [
        {"Effect": "Allow", "Principal": {"Unix": "administrators"}, "Action": "kms:PutKeyPolicy", "Resource": "*"},
        {"Effect": "Allow", "Principal": {"Unix": allowed}, "Action": "kms:Decrypt", "Resource": "*"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    arn = await service.make_key(ROOT, policy=policy)
    key = await service.records.load(arn)
    context = GetCredentialRequest(unit=unit, name=name).encryption_context
    blob = (await loaded(lambda: service.cipher.encrypt(key, memoryview(secret), context))).blob
    row = CredentialRow(
        unit=unit, name=name, key_id=key.key_id, blob=blob, length=len(secret), creation_ms=0, version=1
    )
    await service.store.commit(None, [Insert(row)])
    return arn


Listen = Callable[..., contextlib.AbstractAsyncContextManager[Path]]


@pytest.fixture
def listen(short_path: Path) -> Listen:
    """Serves credentials of a service on a socket."""

    @contextlib.asynccontextmanager
    async def listening(service: Embedded, session_of: SessionOf = from_systemd) -> AsyncIterator[Path]:
        path = short_path / "c"
        listener = CredentialListener(
            asyncio.get_running_loop(),
            bind(path, 0o600),
            delivery=service.delivery,
            session_of=session_of,
            logger=StructuredLogger(service.log),
        )
        listener.start()
        yield path
        await listener.stop(5)

    return listening


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def handed_out(service: Embedded) -> list[dict[str, Any]]:
    return [line for line in service.lines() if line["eventName"] == "GetCredential"]


async def test_systemd_gets_the_secret_of_the_unit_it_starts(service: Embedded, listen: Listen) -> None:
    """All of it and nothing else, and the trail tells who got what under which key, and why."""
    arn = await keep(service)

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) == SECRET

    [record] = handed_out(service)
    assert record["requestParameters"] == {"unit": UNIT, "name": NAME}
    assert record["resources"] == [{"ARN": arn}]
    assert record["userIdentity"]["uid"] == 0
    assert record["additionalEventData"]["decision"] == "key policy: statement 2"
    assert "errorCode" not in record


@pytest.mark.parametrize("length", [1, MAX_CREDENTIAL_BYTES])
async def test_the_smallest_and_the_largest_come_whole(service: Embedded, listen: Listen, length: int) -> None:
    """In one piece each."""
    secret = os.urandom(length)
    await keep(service, secret)

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) == secret


async def test_many_units_start_at_once(service: Embedded, listen: Listen) -> None:
    """More than are served at a time."""
    await keep(service)

    async with listen(service) as path:
        got = await asyncio.gather(*(credential(path, address(UNIT, NAME)) for _ in range(150)))

    assert set(got) == {SECRET}
    assert len(handed_out(service)) == 150


async def test_another_unit_does_not_start_with_it(service: Embedded, listen: Listen) -> None:
    """Nor does the right one with another name; an empty credential would let it start."""
    await keep(service)

    async with listen(service) as path:
        assert await credential(path, address("other.service", NAME)) is None
        assert await credential(path, address(UNIT, "other")) is None

    assert {record["errorCode"] for record in handed_out(service)} == {"NotFoundException"}
    assert "no credential 'tls-key' is kept for other.service" in service.log.getvalue()


async def test_a_record_moved_to_another_unit_opens_for_nobody(service: Embedded, listen: Listen) -> None:
    """Were it not found out by its seal, the secret is bound to its unit and its name."""
    await keep(service, allowed="uid:0")
    row = await service.store.credential(UNIT, NAME)
    assert row is not None
    moved = CredentialRow(
        unit="other.service", name=NAME, key_id=row.key_id, blob=row.blob, length=row.length, creation_ms=0, version=1
    )
    await service.store.commit(None, [Insert(moved)])

    async with listen(service) as path:
        assert await credential(path, address("other.service", NAME)) is None

    assert handed_out(service)[-1]["errorCode"] == "InvalidCiphertextException"


@pytest.mark.parametrize(
    "source",
    [
        "",
        b"\0/unit/nginx.service/tls-key",
        b"\0x123/unit/nginx.service/tls-key",
        b"\0ABC/unit/nginx.service/tls-key",
        b"\0" + b"1" * 17 + b"/unit/nginx.service/tls-key",
        b"\0abc/user/nginx.service/tls-key",
        b"\0abc/unit/nginx.service",
        b"\0abc/unit/nginx.service/tls-key/",
        b"\0abc/unit/nginx.service/tls-key\n",
        b"\0abc/unit/nginx.service/tls-key\0",
        b"\0abc/unit/nginx.socket/tls-key",
        b"\0abc/unit/../tls-key",
        b"\0abc/unit/nginx.service/..",
        b"\0abc/unit/nginx.service/\xff",
        b"\0abc/unit//tls-key",
        b"\0" + bytes(range(100, 200)),
    ],
    ids=repr,
)
async def test_another_address_than_systemd_s_gets_nothing(
    service: Embedded, listen: Listen, source: bytes | str
) -> None:
    """Though it is root's."""
    await keep(service)

    async with listen(service) as path:
        assert await credential(path, source) is None

    [record] = handed_out(service)
    assert record["errorCode"] == "ValidationException"
    assert "requestParameters" not in record


async def test_a_name_in_the_file_system_gets_nothing(service: Embedded, listen: Listen, short_path: Path) -> None:
    """Whatever it looks like."""
    await keep(service)
    place = short_path / "abc" / "unit" / UNIT
    place.mkdir(parents=True)

    async with listen(service) as path:
        assert await credential(path, str(place / NAME)) is None


async def test_another_user_gets_nothing_and_is_recorded(service: Embedded, listen: Listen) -> None:
    """Not a byte; above its audit budget it is counted only."""
    await keep(service)

    async def from_bob(_sock: object) -> Session:
        return BOB

    async with listen(service, from_bob) as path:
        assert await credential(path, address(UNIT, NAME)) == b""
        service.accounts.of(BOB).charge(1 << 40)
        assert await credential(path, address(UNIT, NAME)) == b""

    [record] = handed_out(service)
    assert record["errorCode"] == AccessDeniedError.code
    assert record["userIdentity"]["uid"] == 1001
    assert record["requestParameters"] == {"unit": UNIT, "name": NAME}
    summary = service.accounts.of(BOB).summary()
    assert summary is not None
    assert summary.details == {**(summary.details or {}), "count": 1, "operations": {"GetCredential": 1}}


@pytest.mark.parametrize("fault", [AccessDeniedError("nobody"), OSError("gone"), ValueError("a mistake")], ids=repr)
async def test_no_unit_starts_while_it_is_not_known_who_asks(
    service: Embedded, listen: Listen, fault: Exception
) -> None:
    """It may be systemd, for which nothing at all would be an empty credential."""
    await keep(service)

    async def from_nobody(_sock: object) -> Session:
        raise fault

    async with listen(service, from_nobody) as path:
        assert await credential(path, address(UNIT, NAME)) is None

    assert handed_out(service) == []


@pytest.mark.root
async def test_who_asks_is_what_the_kernel_says(service: Embedded, listen: Listen, short_path: Path) -> None:
    """A child of another uid that binds systemd's address gets nothing, and root gets the secret."""
    await keep(service)
    open_to_all(short_path)

    async def from_kernel(sock: Any) -> Session:
        callers = Callers(service.known, Processes(), Administrators(uids=frozenset({0})))
        caller = await callers.caller_of(peer_of(sock), None)
        return Session(caller, actor_of(caller))

    async with listen(service, from_kernel) as path:
        open_to_all(path)
        asked = address(UNIT, NAME)
        stolen = await asyncio.to_thread(as_user, DAEMON_UID, DAEMON_GID, lambda: f"got {read(path, asked)!r}")
        given = await credential(path, address(UNIT, NAME))

    assert stolen == "got b''"
    assert given == SECRET
    assert [record["userIdentity"]["uid"] for record in handed_out(service)] == [DAEMON_UID, 0]


async def test_the_key_s_policy_decides(service: Embedded, listen: Listen) -> None:
    """Whoever keeps a secret under a key that the unit may not use keeps it for nobody."""
    await keep(service, allowed="uid:1000")

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) is None

    assert handed_out(service)[-1]["errorCode"] == AccessDeniedError.code


async def test_an_administrator_s_permission_is_not_the_unit_s(service: Embedded, listen: Listen) -> None:
    """systemd is root, and so an administrator; the unit is not."""
    await keep(service, allowed="administrators")

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) is None


async def test_the_host_policy_may_deny_it(service: Embedded, listen: Listen) -> None:
    """The one that the documentation shows, which names the units that may have credentials."""
    await keep(service)
    await keep(service, unit="other.service", allowed="unit:other.service")
    chapter = (ROOT_FOLDER / "kmsd/access/POLICY.md").read_text().partition("\n## Credentials\n")[2]
    shown = chapter.partition("```json\n")[2].partition("```")[0]
    service.authorizer.adopt(HostPolicy({"10-units.json": shown}, account=ACCOUNT, names=service.names))

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) == SECRET
        assert await credential(path, address("other.service", NAME)) is None

    refused = handed_out(service)[-1]
    assert refused["errorCode"] == AccessDeniedError.code
    assert "No unit but these gets a credential" in refused["additionalEventData"]["decision"]
    # Administrators can be told why.
    assert service.refusals.find(refused["requestID"]) is not None


async def test_a_sealed_daemon_hands_out_nothing(service: Embedded, listen: Listen) -> None:
    """Until it is unsealed."""
    await keep(service)

    async with listen(service) as path:
        service.gate.closed = True
        assert await credential(path, address(UNIT, NAME)) is None
        service.gate.open()
        assert await credential(path, address(UNIT, NAME)) == SECRET

    assert [record.get("errorCode") for record in handed_out(service)] == ["SealedException", None]


async def test_nothing_leaves_without_its_record(service: Embedded, listen: Listen) -> None:
    """A trail that cannot be written stops units from starting."""
    await keep(service)

    async with listen(service) as path:
        service.trail.refuses = kind_is(Kind.REQUEST)
        assert await credential(path, address(UNIT, NAME)) is None
        service.trail.refuses = None
        assert await credential(path, address(UNIT, NAME)) == SECRET

    assert len(handed_out(service)) == 1
    assert "event_not_recorded" in service.log.getvalue()


async def test_nothing_leaves_before_its_record_is_on_the_disk(open_service: OpenService, listen: Listen) -> None:
    """Where the trail is synced for every answer."""
    service = await open_service(sync=SyncMode.ALWAYS)
    await keep(service)

    async with listen(service) as path:
        service.trail.unsyncable = True
        assert await credential(path, address(UNIT, NAME)) is None


async def test_a_secret_does_not_leave_behind_a_seal(open_service: OpenService, listen: Listen) -> None:
    """One that was ready when kmsd was sealed stays, and is wiped."""
    service = await open_service(sync=SyncMode.ALWAYS)
    await keep(service)
    before = service.arena.used_bytes
    sync = service.trail.sync

    async def sync_and_seal() -> None:
        await sync()
        service.gate.closed = True

    service.trail.sync = sync_and_seal  # type: ignore[method-assign] # what happens meanwhile

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) is None

    assert service.arena.used_bytes <= before + 1024
    assert handed_out(service)[-1]["errorCode"] == "SealedException"


@pytest.mark.parametrize("fault", [StoreUnavailableError("no space"), ValueError("a mistake")], ids=repr)
async def test_whatever_fails_the_unit_does_not_start(service: Embedded, listen: Listen, fault: Exception) -> None:
    """Foreseen or not."""
    await keep(service)

    async with listen(service) as path:
        service.store.faults["credential"] = fault
        assert await credential(path, address(UNIT, NAME)) is None

    assert "errorCode" in handed_out(service)[-1]


async def test_a_store_that_hangs_is_not_waited_for(service: Embedded, listen: Listen) -> None:
    """A unit that does not start tells more than one that never does."""
    await keep(service)

    async with listen(service) as path:
        gate = service.store.gates["credential"] = Gate()
        assert await credential(path, address(UNIT, NAME)) is None
        gate.opened.set()

    assert handed_out(service)[-1]["errorCode"] == "DependencyTimeoutException"


async def test_a_deleted_credential_is_gone_at_once(service: Embedded, listen: Listen) -> None:
    """The next start of the unit fails."""
    await keep(service)
    row = await service.store.credential(UNIT, NAME)
    assert row is not None

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) == SECRET
        await service.store.commit(None, [Delete(row)])
        assert await credential(path, address(UNIT, NAME)) is None


async def test_peers_that_go_away_or_read_nothing_hold_nobody_up(service: Embedded, listen: Listen) -> None:
    """Nor do those that send something."""
    await keep(service)

    async with listen(service) as path:
        for source in (address(UNIT, NAME), address("other.service", NAME), ""):
            connected(path, source).close()
        with connected(path, address("other.service", NAME)):
            assert await credential(path, address(UNIT, NAME)) == SECRET


async def test_a_stop_leaves_nobody_with_an_empty_credential(service: Embedded, short_path: Path) -> None:
    """Whoever was accepted has an answer, and be it that there is none."""
    await keep(service)
    gate = service.store.gates["credential"] = Gate()
    path = short_path / "c"
    listener = CredentialListener(
        asyncio.get_running_loop(),
        bind(path, 0o600),
        delivery=service.delivery,
        session_of=from_systemd,
        logger=StructuredLogger(service.log),
    )
    listener.start()
    asking = asyncio.ensure_future(credential(path, address(UNIT, NAME)))
    await gate.arrived.wait()

    await listener.stop(0)

    assert await asking is None
    gate.opened.set()


async def test_no_secret_is_told_anywhere(open_service: OpenService, listen: Listen) -> None:
    """Neither the trail nor the log has it."""
    service = await open_service(limits=Limits())
    await keep(service, b"marked-secret")

    async with listen(service) as path:
        assert await credential(path, address(UNIT, NAME)) == b"marked-secret"

    assert "marked" not in service.log.getvalue()
    assert b"marked" not in (service.directory / "audit.log").read_bytes()
