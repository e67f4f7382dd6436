"""A change: its intent is on the disk before it is made, and its outcome is recorded whatever happens."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import AuditUnavailableError, KMSInternalError, LimitExceededError, StorageError
from kmsd.api.keys import CREATE_KEY, DESCRIBE_KEY, CreateKeyRequest, CreateKeyResponse, DescribeKeyRequest
from kmsd.audit.record import Kind
from kmsd.audit.writer import SyncMode, Trail
from kmsd.service.batch import Batch
from kmsd.service.call import Call
from kmsd.store.base import StoreUnavailableError
from tests.support.embedded import ALICE, Embedded, Gate, kind_is, request_frame

OpenService = Callable[..., Awaitable[Embedded]]


def kinds(service: Embedded) -> list[str]:
    return [record["eventType"] for record in service.lines()]


def outcome_of(service: Embedded) -> dict[str, Any]:
    """The one outcome in the trail, which has to follow the one intent of the same request."""
    [intent, outcome] = service.lines()
    assert (intent["eventType"], outcome["eventType"]) == (Kind.INTENT, Kind.OUTCOME)
    assert intent["requestID"] == outcome["requestID"]
    return outcome


def open_intents(path: Path) -> list[str]:
    """What the next start would find open."""
    trail = Trail.open(path, sync=SyncMode.OS, clock=lambda: 0.0)
    found = [intent.event_name for intent in trail.open_intents()]
    trail.close()
    return found


async def number_of_keys(service: Embedded) -> int:
    return len(await service.store.keys(after=None, limit=100))


async def test_the_intent_is_on_the_disk_before_anything_is_done(service: Embedded) -> None:
    """While the sync is not over the store is not even asked."""
    gate = service.trail.sync_gate = Gate()
    asked = asyncio.ensure_future(service.make_key())
    await gate.arrived.wait()

    assert kinds(service) == [Kind.INTENT]
    assert service.store.calls == []
    gate.opened.set()
    arn = await asked
    outcome = outcome_of(service)
    assert outcome["resources"] == [{"ARN": arn}]
    assert "errorCode" not in outcome


@pytest.mark.parametrize("also", [(), (Kind.REQUEST,)], ids=["intents only", "everything"])
async def test_without_a_recorded_intent_nothing_is_done(service: Embedded, also: tuple[Kind, ...]) -> None:
    """The caller is told that the trail cannot be written."""
    service.trail.refuses = kind_is(Kind.INTENT, *also)

    with pytest.raises(AuditUnavailableError):
        await service.make_key()

    assert await number_of_keys(service) == 0
    assert Kind.OUTCOME not in kinds(service)


async def test_without_a_synced_intent_nothing_is_done(service: Embedded) -> None:
    """An intent that stands in the trail gets its outcome also when its sync failed."""
    service.trail.unsyncable = True

    with pytest.raises(AuditUnavailableError):
        await service.make_key()

    assert await number_of_keys(service) == 0
    assert outcome_of(service)["errorCode"] == "AuditUnavailableException"


async def test_without_a_recorded_outcome_there_is_no_success(tmp_path: Path) -> None:
    """The change is made, but its caller is only told that the trail failed; the next start finds the open intent."""
    service = await Embedded.open(tmp_path)
    service.trail.refuses = kind_is(Kind.OUTCOME)

    with pytest.raises(AuditUnavailableError):
        await service.make_key()

    assert await number_of_keys(service) == 1
    assert kinds(service) == [Kind.INTENT]
    await service.close()
    assert open_intents(tmp_path / "audit.log") == ["CreateKey"]


async def test_a_refused_change_has_its_outcome(open_service: OpenService) -> None:
    """What the handler refuses is recorded as the outcome, once."""
    service = await open_service(keys_per_uid=0)

    with pytest.raises(LimitExceededError):
        await service.make_key()

    outcome = outcome_of(service)
    assert outcome["errorCode"] == "LimitExceededException"
    assert "committed" not in outcome["additionalEventData"]


@pytest.mark.parametrize(("call", "committed"), [("commit", False), ("committing", True)], ids=["before", "after"])
@pytest.mark.parametrize(
    ("fault", "told"),
    [(StoreUnavailableError("store: disk I/O error"), StorageError), (ZeroDivisionError(), KMSInternalError)],
    ids=["foreseen", "unforeseen"],
)
async def test_the_outcome_tells_whether_it_was_committed(
    service: Embedded, call: str, committed: bool, fault: Exception, told: type[Exception]
) -> None:
    """A store that fails, or anything unforeseen, may come before or after the commit: the record says which."""
    service.store.faults[call] = fault

    with pytest.raises(told):
        await service.make_key()

    outcome = outcome_of(service)
    assert outcome["additionalEventData"]["committed"] is committed
    assert await number_of_keys(service) == committed
    # So that it can be found: its id was drawn before the commit.
    assert len(outcome["resources"]) == 1


async def test_an_outcome_nobody_can_tell_stays_open(tmp_path: Path) -> None:
    """When the store cannot even say whether it committed, the next start has to find out."""
    service = await Embedded.open(tmp_path)
    service.store.faults["committing"] = service.store.faults["committed"] = StoreUnavailableError("store: gone")

    with pytest.raises(StorageError):
        await service.make_key()

    assert kinds(service) == [Kind.INTENT]
    await service.close()
    assert open_intents(tmp_path / "audit.log") == ["CreateKey"]


async def test_a_response_that_cannot_be_recorded_is_an_incident(open_service: OpenService) -> None:
    """Whatever is wrong with what the handler returns, the intent gets its outcome."""

    async def answer_nonsense(call: Call, request: CreateKeyRequest) -> object:
        return object()

    service = await open_service(handlers={CREATE_KEY: answer_nonsense})

    with pytest.raises(KMSInternalError):
        await service.make_key()

    assert outcome_of(service)["errorCode"] == "KMSInternalException"
    assert "AttributeError" in service.log.getvalue()


@pytest.mark.parametrize("where", ["sync", "count_keys", "commit", "committing"])
async def test_a_peer_that_hangs_up_loses_no_outcome(service: Embedded, where: str) -> None:
    """Whichever await its change is at, it goes on, and `drain` waits for its record."""
    gate = Gate()
    if where == "sync":
        service.trail.sync_gate = gate
    else:
        service.store.gates[where] = gate
    asked = asyncio.ensure_future(service.make_key())
    await gate.arrived.wait()

    asked.cancel()
    await asyncio.wait({asked})
    assert asked.cancelled()
    draining = asyncio.ensure_future(service.pipeline.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    gate.opened.set()
    await draining

    assert await number_of_keys(service) == 1
    assert "errorCode" not in outcome_of(service)


async def test_a_failure_after_the_peer_hung_up_is_recorded(service: Embedded) -> None:
    """Nobody waits for the error any more but the trail."""
    gate = service.store.gates["commit"] = Gate()
    service.store.faults["commit"] = StoreUnavailableError("store: disk I/O error")
    asked = asyncio.ensure_future(service.make_key())
    await gate.arrived.wait()

    asked.cancel()
    gate.opened.set()
    await asyncio.wait({asked})
    await service.pipeline.drain()

    assert outcome_of(service)["errorCode"] == "StorageException"


@pytest.mark.parametrize("change", ["asked for", "kmsd's own"])
async def test_a_failure_that_nobody_waits_for_is_no_fault_of_kmsds(service: Embedded, change: str) -> None:
    """Whoever hangs up on a change that fails does not make the log tell of faults."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    gate = service.store.gates["commit"] = Gate()
    service.store.faults["commit"] = StoreUnavailableError("store: disk I/O error")
    if change == "asked for":
        asked = asyncio.ensure_future(service.reply_to(ALICE, CREATE_KEY, CreateKeyRequest()))
    else:
        request = DescribeKeyRequest(key_id="alias/kmsd/default")
        asked = asyncio.ensure_future(service.reply_to(ALICE, DESCRIBE_KEY, request))
    await gate.arrived.wait()

    asked.cancel()
    await asyncio.wait({asked})
    gate.opened.set()
    await service.pipeline.drain()
    await service.own_changes.drain()

    assert outcome_of(service)["errorCode"] == "StorageException"
    # What was raised knows the frames it came through, and they the change.
    service.store.faults.clear()
    del asked
    gc.collect()
    assert faults == []


async def test_a_change_that_was_never_begun_leaves_no_trace(service: Embedded) -> None:
    """A peer that hangs up before its request had its first turn changes nothing."""
    later = service.serve(ALICE, request_frame(CREATE_KEY, CreateKeyRequest()), Batch())
    assert later is not None
    asked = asyncio.ensure_future(later)

    asked.cancel()
    await asyncio.wait({asked})
    await service.pipeline.drain()

    assert service.lines() == []


async def test_many_changes_at_once_each_have_their_outcome(service: Embedded) -> None:
    """Some are hung up on at any time, and the trail is balanced when all is over."""
    asked = [asyncio.ensure_future(service.make_key()) for _ in range(20)]
    for turn in range(10):
        await asyncio.sleep(0)
        asked[2 * turn].cancel()
    await asyncio.wait(asked)
    await service.pipeline.drain()

    records = service.lines()
    begun = {record["requestID"] for record in records if record["eventType"] == Kind.INTENT}
    ended = [record["requestID"] for record in records if record["eventType"] == Kind.OUTCOME]
    assert set(ended) == begun
    assert len(ended) == len(begun) == await number_of_keys(service)


async def test_what_is_recorded_of_a_new_key_has_the_names_of_the_trail(service: Embedded) -> None:
    """Members of members are in lowerCamel as well, as CloudTrail has them."""
    response: CreateKeyResponse = await service.ask(
        ALICE,
        CREATE_KEY,
        CreateKeyRequest(tags=[{"TagKey": "team", "TagValue": "blue"}]),  # type: ignore[list-item] # encoded alike
    )

    outcome = outcome_of(service)
    assert outcome["requestParameters"]["tags"] == [{"tagKey": "team", "tagValue": "blue"}]
    metadata = outcome["responseElements"]["keyMetadata"]
    assert metadata["keyId"] == response.key_metadata.key_id
    assert metadata["AWSAccountId"] == response.key_metadata.account_id
    assert metadata["encryptionAlgorithms"] == ["SYMMETRIC_DEFAULT"]
