"""Grants in memory: read when somebody asks for his, as long as they are in force, and not too many of them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from kmsd.api.errors import AccessDeniedError, KmsError, StorageError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.api.grants import GrantConstraints, GrantOperation
from kmsd.api.keys import DESCRIBE_KEY, DescribeKeyRequest
from kmsd.service import granting
from kmsd.service.call import Session
from kmsd.store.base import Insert, StoreUnavailableError
from kmsd.store.rows import GrantRow
from tests.service.test_grants import encrypt, grant, revoke
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate, person
from tests.support.given_facts import GivenFacts

CAROL = person(1002, user="carol", gid=501)


def row(arn: str, number: int, **members: object) -> GrantRow:
    plain = {"grantee": "uid:1001", "grantee_text": "uid:1001", "operations": ["Encrypt"], **members}
    return GrantRow(
        grant_id=f"{number:064x}",
        key_id=arn.rpartition("/")[2],
        retiring="",
        name="",
        creation_ms=0,
        retiring_text="",
        issuer="uid:1000",
        version=1,
        **plain,  # type: ignore[arg-type] # members of a row
    )


async def add(service: Embedded, rows: list[GrantRow]) -> None:
    await service.store.commit(None, [Insert(one) for one in rows])


async def test_grants_are_asked_for_only_where_the_policy_does_not_decide(service: Embedded) -> None:
    """Who is permitted or refused by the key's policy does not wait for them."""
    arn = await service.make_key()
    service.store.faults["count_grants"] = StoreUnavailableError("broken")

    await encrypt(service, arn, ALICE)

    with pytest.raises(StorageError):
        await encrypt(service, arn)


async def test_grants_are_read_once(service: Embedded) -> None:
    """Also that there are none; also by many requests at once."""
    arn, other = await service.make_key(), await service.make_key()
    await grant(service, arn)
    service.store.calls.clear()

    await asyncio.gather(*(encrypt(service, arn) for _ in range(9)))
    for _ in range(2):
        with pytest.raises(AccessDeniedError):
            await encrypt(service, other)

    assert service.store.calls.count("count_grants") == 2


@pytest.mark.parametrize("operation", ["key", "file"])
async def test_what_waits_for_the_store_waits_for_grants_too(service: Embedded, operation: str) -> None:
    """Operations that manage keys, and files."""
    arn = await service.make_key()
    await grant(service, arn, operations=[GrantOperation.DESCRIBE_KEY, GrantOperation.GENERATE_DATA_KEY])

    if operation == "key":
        await service.ask(BOB, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    else:
        batch = await service.reply_to(BOB, ENCRYPT_FILE, EncryptFileRequest(key_id=arn))
        assert len(batch.descriptors) == 1
        batch.discard()


async def test_who_hangs_up_does_not_take_the_grants_with_him(service: Embedded) -> None:
    """Others who wait for the same get them."""
    arn = await service.make_key()
    await grant(service, arn)
    gate = service.store.gates["grants_read"] = Gate()
    leaving = asyncio.ensure_future(encrypt(service, arn))
    await gate.arrived.wait()
    staying = asyncio.ensure_future(encrypt(service, arn))
    await asyncio.sleep(0.05)

    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
    gate.opened.set()

    await staying
    assert service.store.calls.count("grants_read") == 1


async def test_all_of_many_grants_count(service: Embedded) -> None:
    """Those of each grantee are read in pages."""
    arn = await service.make_key()
    count = granting._FEW_ROWS + granting._PAGE_ROWS + 1
    own = [row(arn, n, context_equals={"n": f"{n}"}) for n in range(count)]
    others = [row(arn, count + n, grantee=f"uid:{2000 + n}", grantee_text="x") for n in range(100)]
    await add(service, own + others)

    for number in (0, granting._PAGE_ROWS - 1, granting._PAGE_ROWS, count - 1):
        await encrypt(service, arn, n=f"{number}")

    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn, n=f"{count}")
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn, CAROL, n="1")
    await encrypt(service, arn, person(2099, user=None, gid=2099))


async def test_who_is_in_very_many_groups_has_the_grants_of_all(service: Embedded) -> None:
    """More than one query can ask for."""
    arn = await service.make_key()
    groups = frozenset(range(10_000, 10_000 + 3 * granting._MOST_VALUES))
    member = Session(replace(BOB.caller, groups=groups), BOB.actor)
    await grant(service, arn, f"gid:{max(groups)}")

    await encrypt(service, arn, member)

    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)


async def test_grants_in_memory_are_bounded(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten, and read again; whatever was just read can be used, however much it is."""
    monkeypatch.setattr(granting, "MAX_CONSTRAINED", 10)
    monkeypatch.setattr(granting, "MAX_CALLERS", 3)
    arns = [await service.make_key() for _ in range(3)]
    for position, arn in enumerate(arns):
        await add(
            service, [row(arn, 100 * position + n, context_equals={"n": f"{n}"}) for n in range(8 + position * 8)]
        )

    for _ in range(2):
        for arn in arns:
            await encrypt(service, arn, n="7")
            assert service.records._grants._constrained <= max(10, 24)
    service.store.calls.clear()
    await encrypt(service, arns[2], n="7")
    assert "count_grants" not in service.store.calls
    for uid in range(3000, 3010):
        with pytest.raises(AccessDeniedError):
            await encrypt(service, arns[0], person(uid, user=None, gid=uid))
        assert len(service.records._grants._kept) <= 3

    service.records.forget_all()

    assert (service.records._grants._constrained, len(service.records._grants._kept)) == (0, 0)


async def test_a_revoked_grant_is_not_brought_back_by_who_was_reading(service: Embedded) -> None:
    """A slow look at the old rows is not what the next request is decided by."""
    arn = await service.make_key()
    made = await grant(service, arn)
    gate = service.store.gates["grants_read"] = Gate()
    reading = asyncio.ensure_future(encrypt(service, arn))
    await gate.arrived.wait()
    del service.store.gates["grants_read"]

    await revoke(service, arn, made.grant_id)
    asked = asyncio.ensure_future(encrypt(service, arn))
    with pytest.raises(AccessDeniedError):
        await asked
    gate.opened.set()
    with contextlib.suppress(KmsError):
        await reading  # it came before the grant went: either answer is right

    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)


async def test_names_are_looked_up_again_without_reading_the_grants(service: Embedded) -> None:
    """As long as they lead where they did."""
    arn = await service.make_key()
    await grant(service, arn)
    await encrypt(service, arn)
    service.store.calls.clear()

    service.now += granting.NAMES_TRUSTED_SECONDS + 1
    await encrypt(service, arn)

    assert "count_grants" not in service.store.calls
    service.names.users["bob"] = 4000
    service.now += granting.NAMES_TRUSTED_SECONDS + 1
    with pytest.raises(AccessDeniedError):
        await encrypt(service, arn)


async def test_sealing_forgets_grants(service: Embedded) -> None:
    """What was verified under a key that is gone counts no more."""
    arn = await service.make_key()
    await grant(service, arn)
    await encrypt(service, arn)

    service.records.forget_all()
    service.store.faults["count_grants"] = StoreUnavailableError("sealed")

    with pytest.raises(StorageError):
        await encrypt(service, arn)


async def test_an_explanation_shows_the_caller_s_grants(service: Embedded) -> None:
    """The first of them, and the one that decides, if there is one."""
    arn = await service.make_key()
    await add(service, [row(arn, n, context_equals={"n": f"{n}"}) for n in range(granting._MAX_STEPS + 8)])
    with pytest.raises(AccessDeniedError) as refused:
        await encrypt(service, arn, n="x")

    refusal = service.refusals.find(refused.value.request_id)

    assert refusal is not None
    steps = [step for step in refusal.explanation.trace if step.origin.startswith("grant ")]
    assert len(steps) == granting._MAX_STEPS
    assert not any(step.holds for step in steps)
    facts = GivenFacts(context={"n": f"{granting._MAX_STEPS + 7}"})
    told = service.records.get(arn).grants.steps(BOB.caller, "kms:Encrypt", facts)
    assert told[-1].holds
    assert told[-1].origin == f"grant {granting._MAX_STEPS + 7:064x}"
    assert ROOT.caller.grantees not in service.records.get(arn).grants._held


async def test_constraints_and_grants_without_them_stand_side_by_side(service: Embedded) -> None:
    """What needs no encryption context is found first."""
    arn = await service.make_key()
    await grant(service, arn, constraints=GrantConstraints(encryption_context_equals={"a": "b"}))
    plain = await grant(service, arn)

    await encrypt(service, arn, a="b")

    assert service.newest()["additionalEventData"]["decision"] == f"grant {plain.grant_id}"
