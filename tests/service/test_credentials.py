"""Secrets that are kept for units: who may keep them, what is told of them, and that nobody reads them back."""

from __future__ import annotations

import asyncio
import os
from types import CoroutineType
from typing import Any

import pytest

from kmsd.api.credentials import (
    CREATE_CREDENTIAL,
    DELETE_CREDENTIAL,
    LIST_CREDENTIALS,
    MAX_CREDENTIAL_BYTES,
    CreateCredentialRequest,
    CredentialListEntry,
    DeleteCredentialRequest,
    ListCredentialsRequest,
)
from kmsd.api.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ConflictError,
    InvalidMarkerError,
    NotFoundError,
    SealedError,
    ValidationError,
)
from kmsd.service.batch import Batch
from kmsd.service.call import Session
from kmsd.store.base import RowChangedError
from tests.support.embedded import ALICE, ROOT, Embedded, Gate, request_frame
from tests.support.systemd_peer import address

UNIT, NAME = "nginx.service", "tls-key"


async def keep(
    service: Embedded,
    secret: bytes = b"secret",
    *,
    unit: str = UNIT,
    name: str = NAME,
    overwrite: bool = False,
    session: Session = ROOT,
) -> str:
    request = CreateCredentialRequest(unit=unit, name=name, plaintext=memoryview(secret), overwrite=overwrite)
    return (await service.ask(session, CREATE_CREDENTIAL, request)).key_id


async def delete(service: Embedded, unit: str = UNIT, name: str = NAME, *, session: Session = ROOT) -> None:
    await service.ask(session, DELETE_CREDENTIAL, DeleteCredentialRequest(unit=unit, name=name))


async def listed(service: Embedded, **members: Any) -> list[CredentialListEntry]:
    return (await service.ask(ROOT, LIST_CREDENTIALS, ListCredentialsRequest(**members))).credentials


async def handed_out(service: Embedded, unit: str = UNIT, name: str = NAME) -> bytes:
    got: list[bytes] = []
    await service.delivery.deliver(ROOT, address(unit, name), lambda secret: got.append(bytes(secret)))
    return b"".join(got)


@pytest.mark.parametrize("length", [1, 4097, MAX_CREDENTIAL_BYTES])
async def test_what_is_kept_is_handed_out(service: Embedded, length: int) -> None:
    """To its unit, also when it is larger than what Encrypt takes."""
    secret = os.urandom(length)

    arn = await keep(service, secret)

    assert await handed_out(service) == secret
    [entry] = await listed(service)
    assert (entry.unit, entry.name, entry.length) == (UNIT, NAME, length)
    assert arn.endswith(entry.key_id)


async def test_each_unit_has_a_key_of_its_own(service: Embedded) -> None:
    """One for all its secrets."""
    arns = [await keep(service, unit=unit, name=name) for unit in (UNIT, "app@1.service") for name in ("a", "b")]

    assert arns[0] == arns[1]
    assert arns[2] == arns[3]
    assert arns[0] != arns[2]


async def test_an_existing_one_is_replaced_only_on_request(service: Embedded) -> None:
    """Then the next start of the unit has the new one."""
    await keep(service, b"old")

    with pytest.raises(AlreadyExistsError, match=r"'tls-key' is kept for nginx\.service already"):
        await keep(service, b"new")
    assert await handed_out(service) == b"old"

    await keep(service, b"new", overwrite=True)
    assert await handed_out(service) == b"new"
    assert len(await listed(service)) == 1


async def test_a_change_by_somebody_else_meanwhile_is_told(service: Embedded) -> None:
    """Nothing was done, and the same may succeed later."""
    await keep(service)
    service.store.faults["commit"] = RowChangedError("credentials", "nginx.service")

    with pytest.raises(ConflictError):
        await keep(service, overwrite=True)
    with pytest.raises(ConflictError):
        await delete(service)


async def test_what_is_deleted_is_gone(service: Embedded) -> None:
    """And may be kept anew."""
    await keep(service)
    await delete(service)

    assert await listed(service) == []
    with pytest.raises(NotFoundError, match=r"no credential 'tls-key' is kept for nginx\.service"):
        await handed_out(service)
    with pytest.raises(NotFoundError):
        await delete(service)
    await keep(service, b"again")
    assert await handed_out(service) == b"again"


async def test_lists_are_whole_and_in_order(service: Embedded) -> None:
    """Page by page, of all units or of one."""
    kept = [(unit, name) for unit in ("a.service", "b@x.service") for name in ("one", "two", "zwei")]
    for unit, name in reversed(kept):
        await keep(service, unit=unit, name=name)
    found: list[tuple[str, str]] = []
    marker, truncated = None, True
    while truncated:
        page = await service.ask(ROOT, LIST_CREDENTIALS, ListCredentialsRequest(limit=2, marker=marker))
        found += [(entry.unit, entry.name) for entry in page.credentials]
        marker, truncated = page.next_marker, page.truncated

    assert found == kept
    assert [entry.name for entry in await listed(service, unit="a.service")] == ["one", "two", "zwei"]
    with pytest.raises(InvalidMarkerError):
        await listed(service, marker="nonsense")


async def test_only_administrators_keep_list_and_delete(service: Embedded) -> None:
    """By the shipped host policy."""
    await keep(service)

    with pytest.raises(AccessDeniedError):
        await keep(service, name="other", session=ALICE)
    with pytest.raises(AccessDeniedError):
        await delete(service, session=ALICE)
    with pytest.raises(AccessDeniedError):
        await service.ask(ALICE, LIST_CREDENTIALS, ListCredentialsRequest())


@pytest.mark.parametrize(
    "unit", ["nginx", "nginx.socket", ".service", "a/b.service", "a b.service", "x" * 250 + ".service"]
)
async def test_units_that_systemd_would_not_have_are_refused(service: Embedded, unit: str) -> None:
    """Whatever their form."""
    with pytest.raises(ValidationError):
        await keep(service, unit=unit)


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n"])
async def test_names_that_are_none_are_refused(service: Embedded, name: str) -> None:
    """They become the names of files."""
    with pytest.raises(ValidationError):
        await keep(service, name=name)


async def test_names_that_systemd_could_not_ask_by_are_refused(service: Embedded) -> None:
    """Together they may be as long as its address has room for."""
    unit = "u" * 40 + ".service"
    await keep(service, unit=unit, name="n" * 35)

    with pytest.raises(ValidationError, match="83 characters together"):
        await keep(service, unit=unit, name="n" * 36)
    assert len(b"\0" + b"f" * 16 + f"/unit/{unit}/{'n' * 35}".encode()) == 107


@pytest.mark.parametrize("secret", [b"", bytes(MAX_CREDENTIAL_BYTES + 1)], ids=["empty", "large"])
async def test_an_empty_or_too_large_secret_is_refused(service: Embedded, secret: bytes) -> None:
    """Nothing is kept."""
    with pytest.raises(ValidationError):
        await keep(service, secret)
    assert await listed(service) == []


async def test_the_trail_tells_who_kept_what_for_whom_and_never_the_secret(service: Embedded) -> None:
    """Each change has its intent and its outcome."""
    arn = await keep(service, b"marked-secret")
    await delete(service)

    records = [line for line in service.lines() if line["eventName"].endswith("Credential")]
    assert [(one["eventName"], one["eventType"]) for one in records] == [
        ("CreateCredential", "ApiCallIntent"),
        ("CreateCredential", "ApiCallOutcome"),
        ("DeleteCredential", "ApiCallIntent"),
        ("DeleteCredential", "ApiCallOutcome"),
    ]
    assert all(one["requestParameters"]["unit"] == UNIT for one in records)
    assert records[1]["resources"] == records[3]["resources"] == [{"ARN": arn}]
    assert b"marked" not in (service.directory / "audit.log").read_bytes()
    assert b"marked" not in (service.directory / "store.sqlite").read_bytes()


async def test_a_sealed_service_keeps_nothing(service: Embedded) -> None:
    """It has no keys to keep it under."""
    service.gate.closed = True

    with pytest.raises(SealedError):
        await keep(service)


@pytest.mark.parametrize("hang_up", [False, True])
@pytest.mark.parametrize("where", ["credential", "commit"])
async def test_the_request_is_wiped_once_it_was_served(service: Embedded, where: str, *, hang_up: bool) -> None:
    """And not before: who hangs up does not change what is kept."""
    secret = os.urandom(100)
    request = CreateCredentialRequest(unit=UNIT, name=NAME, plaintext=memoryview(secret))
    await keep(service, name="other")
    gate = service.store.gates[where] = Gate()
    later = service.serve(ROOT, request_frame(CREATE_CREDENTIAL, request), Batch())
    assert isinstance(later, CoroutineType)
    assert later.cr_frame is not None
    kept = later.cr_frame.f_locals["params"]
    task = asyncio.ensure_future(later)
    await gate.arrived.wait()

    if hang_up:
        task.cancel()
        await asyncio.wait({task})
    assert secret in kept
    gate.opened.set()
    await asyncio.wait({task})
    await service.pipeline.drain()
    await asyncio.sleep(0)

    assert not any(kept)
    assert await handed_out(service) == secret


async def test_a_request_that_is_refused_is_wiped(service: Embedded) -> None:
    """Who may keep nothing leaves nothing."""
    request = CreateCredentialRequest(unit=UNIT, name=NAME, plaintext=memoryview(os.urandom(100)))
    later = service.serve(ALICE, request_frame(CREATE_CREDENTIAL, request), Batch())
    assert isinstance(later, CoroutineType)
    assert later.cr_frame is not None
    kept = later.cr_frame.f_locals["params"]

    with pytest.raises(AccessDeniedError):
        service.response(await later, CREATE_CREDENTIAL)

    assert not any(kept)
