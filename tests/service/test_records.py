"""Key records: verified rows in memory, a bounded number of them, and not for longer than names may be trusted."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import pytest
from msgspec import structs

from kmsd.api.errors import AccessDeniedError, InvalidArnError, NotFoundError
from kmsd.api.keys import CREATE_ALIAS, CreateAliasRequest
from kmsd.api.operation import KeyAccess
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.identity.principals import NameServiceError
from kmsd.service.granting import NAMES_TRUSTED_SECONDS
from kmsd.service.records import NAMES_MISSED_SECONDS, KeyNotLoadedError
from kmsd.store.base import Replace
from kmsd.store.rows import AliasRow
from tests.support.embedded import ALICE, BOB, Embedded

OpenService = Callable[..., Awaitable[Embedded]]


def policy_for(principal: str) -> str:
    statement = {"Effect": "Allow", "Principal": {"Unix": principal}, "Action": "kms:*", "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


async def test_a_key_is_loaded_once_for_each_name(service: Embedded) -> None:
    """What was loaded is found again by the name it was asked by, without the store."""
    arn = await service.make_key()
    with pytest.raises(KeyNotLoadedError) as missing:
        service.records.get(arn)
    await missing.value.load()

    record = service.records.get(arn)
    assert record.arn == arn
    assert await service.records.fetch(arn, KeyAccess.ANY) is record
    with pytest.raises(KeyNotLoadedError):
        service.records.get(record.key_id)
    assert service.store.calls.count("key") == 1


async def test_the_least_recently_used_is_forgotten(open_service: OpenService) -> None:
    """The cache holds as many keys as its capacity says."""
    service = await open_service(keys_in_memory=2)
    arns = [await service.make_key() for _ in range(3)]
    for arn in arns[:2]:
        await service.records.load(arn)
    service.records.get(arns[0])

    await service.records.load(arns[2])

    service.records.get(arns[2])
    with pytest.raises(KeyNotLoadedError):
        service.records.get(arns[1])


async def test_unknown_names_are_errors_and_not_remembered(service: Embedded) -> None:
    """A name that exists later is found later."""
    with pytest.raises(NotFoundError, match=r"Alias arn:aws:kms:.*:alias/later is not found"):
        await service.records.load("alias/later")
    with pytest.raises(NotFoundError, match="does not exist"):
        await service.records.load("1234abcd-12ab-34cd-56ef-1234567890ab")
    with pytest.raises(InvalidArnError):
        await service.records.load("arn:nonsense")
    arn = await service.make_key()
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/later", target_key_id=arn))

    assert (await service.records.load("alias/later")).arn == arn


async def test_where_ids_are_asked_for_aliases_are_not_taken(service: Embedded) -> None:
    """Also not from memory."""
    arn = await service.make_key()
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/a", target_key_id=arn))
    await service.records.fetch("alias/a", KeyAccess.ANY)

    with pytest.raises(NotFoundError, match="no alias"):
        await service.records.fetch("alias/a", KeyAccess.ID_OR_ARN)


async def test_names_are_looked_up_again_after_a_while(service: Embedded) -> None:
    """When a policy's user comes to have another uid, it allows nothing any more to the one or the other."""
    arn = await service.make_key(policy=policy_for("user:bob"), bypass_policy_lockout_safety_check=True)
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"))
    await service.ask(BOB, ENCRYPT, request)
    service.names.users["bob"] = 4000
    await service.ask(BOB, ENCRYPT, request)

    service.now += NAMES_TRUSTED_SECONDS + 1

    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, request)


async def test_names_that_could_not_be_looked_up_are_asked_for_again_soon(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name service that was away for a moment does not refuse anybody for a minute."""
    arn = await service.make_key(policy=policy_for("user:bob"), bypass_policy_lockout_safety_check=True)
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"))
    with monkeypatch.context() as patch:
        patch.setattr(service.names, "uid_of", mock.Mock(side_effect=NameServiceError("it is away")))
        with pytest.raises(AccessDeniedError):
            await service.ask(BOB, ENCRYPT, request)

    service.now += NAMES_MISSED_SECONDS + 1

    await service.ask(BOB, ENCRYPT, request)


async def test_a_policy_without_names_is_trusted_for_ever(service: Embedded) -> None:
    """Uids do not change."""
    arn = await service.make_key(policy=policy_for("uid:1000"))
    await service.records.load(arn)

    service.now += 1e9

    assert service.records.get(arn).arn == arn


async def test_sealing_forgets_every_key(service: Embedded) -> None:
    """What was verified under a key that is gone counts no more."""
    arn = await service.make_key()
    await service.records.load(arn)

    service.records.forget_all()

    with pytest.raises(KeyNotLoadedError):
        service.records.get(arn)


async def test_what_was_forgotten_is_read_anew(service: Embedded) -> None:
    """By every name that it was asked by; other keys stay."""
    arn, other = await service.make_key(), await service.make_key()
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/a", target_key_id=arn))
    for name in (arn, "alias/a", other):
        await service.records.load(name)

    service.records.forget(service.records.get(arn).key_id)

    for name in (arn, "alias/a"):
        with pytest.raises(KeyNotLoadedError):
            service.records.get(name)
    assert service.records.get(other).arn == other


async def test_a_load_under_way_does_not_bring_back_what_was_changed(service: Embedded) -> None:
    """What was read before a change is read once more: the record is the one after it."""
    arn = await service.make_key()
    key_id = arn.rpartition("/")[2]
    row = await service.store.key(key_id)
    assert row is not None
    changed = structs.replace(row, description="changed", version=row.version + 1)
    aliases = service.store.aliases

    async def change_meanwhile(**arguments: Any) -> list[AliasRow]:
        service.store.aliases = aliases  # type: ignore[method-assign] # once
        await service.store.commit("m", [Replace(changed)])
        service.records.forget(key_id)
        return await aliases(**arguments)

    service.store.aliases = change_meanwhile  # type: ignore[method-assign] # behind the row, before the record
    record = await service.records.load(arn)

    assert record.row.description == "changed"
    assert service.records.get(arn) is record


async def test_a_record_has_its_aliases(service: Embedded) -> None:
    """As of now: a new one makes the record new."""
    arn = await service.make_key()
    assert (await service.records.load(arn)).aliases == ()

    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/a", target_key_id=arn))

    assert (await service.records.fetch(arn, KeyAccess.ANY)).aliases == ("alias/a",)
