"""What somebody is told who asks whether a key is still in use, and policies that ask the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kmsd.api.deletion import SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest
from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, NotFoundError, SealedError
from kmsd.api.keys import CREATE_ALIAS, DISABLE_KEY, CreateAliasRequest, EnableKeyRequest
from kmsd.api.policies import SIMULATE_POLICY, SimulatePolicyRequest
from kmsd.api.rotation import ROTATE_KEY_ON_DEMAND, RotateKeyOnDemandRequest
from kmsd.service.call import Session
from tests.support.embedded import ALICE, BOB, ROOT, Embedded
from tests.support.killed import open_again
from tests.support.uses import decrypt, encrypt, last_usage

DAY_SECONDS = 86_400


def protecting(days: int) -> str:
    """A policy that lets alice do everything, but not take away what was used within so many days."""
    condition = {"NumericLessThan": {"kms:TrailingDaysWithoutKeyUsage": str(days)}}
    everything = {"Effect": "Allow", "Principal": {"Unix": "user:alice"}, "Action": "kms:*", "Resource": "*"}
    protected = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["kms:DisableKey", "kms:ScheduleKeyDeletion"],
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [everything, protected | {"Condition": condition}]})


async def disable(service: Embedded, arn: str, session: Session = ALICE) -> None:
    await service.ask(session, DISABLE_KEY, EnableKeyRequest(key_id=arn))


async def test_a_key_that_was_never_used(service: Embedded) -> None:
    """Since it was made, and so it is told from when that is known."""
    arn = await service.make_key()

    told = await last_usage(service, arn)

    assert told.key_id == arn
    assert told.key_last_usage is None
    assert told.tracking_start_date == told.key_creation_date
    assert (told.uses, told.material) == ({}, [])


async def test_the_last_use_is_told_at_once(service: Embedded) -> None:
    """With its operation, its time, and the id by which it stands in the trail."""
    arn = await service.make_key()
    blob = await encrypt(service, arn)
    service.wall_time += 5
    await decrypt(service, blob)
    used = service.newest()["requestID"]

    told = await last_usage(service, arn)

    assert told.key_last_usage is not None
    assert (told.key_last_usage.operation, told.key_last_usage.kms_request_id) == ("Decrypt", used)
    assert told.key_last_usage.timestamp.timestamp() == pytest.approx(service.wall_time, abs=0.001)
    [material] = told.material
    assert (material.number, material.encrypted, material.decrypted) == (1, 1, 1)
    assert material.last_used == told.key_last_usage.timestamp
    assert told.uses == {"Decrypt": 1, "Encrypt": 1}


async def test_each_version_of_the_material_is_told_of(service: Embedded) -> None:
    """Behind a rotation the old one decrypts only, and one that nobody needs any more is seen not to."""
    arn = await service.make_key()
    blob = await encrypt(service, arn)
    await service.ask(ALICE, ROTATE_KEY_ON_DEMAND, RotateKeyOnDemandRequest(key_id=arn))
    await encrypt(service, arn)
    await decrypt(service, blob)

    told = await last_usage(service, arn)

    assert [(one.number, one.encrypted, one.decrypted) for one in told.material] == [(1, 1, 1), (2, 1, 0)]
    assert told.uses == {"Decrypt": 1, "Encrypt": 2}


async def test_it_is_told_of_a_key_in_any_state(service: Embedded) -> None:
    """A key that is disabled was disabled to see whether somebody misses it."""
    arn = await service.make_key()
    await encrypt(service, arn)
    await disable(service, arn)

    assert (await last_usage(service, arn)).uses == {"Encrypt": 1}


async def test_of_a_default_key_its_owner_and_administrators_are_told(service: Embedded) -> None:
    """It is kmsd's to delete, but who looks at keys sees whether this one is in use."""
    blob = await encrypt(service, "alias/kmsd/default")
    arn = service.newest()["resources"][0]["ARN"]
    await decrypt(service, blob)

    for session in (ALICE, ROOT):
        assert (await last_usage(service, arn, session)).uses == {"Decrypt": 1, "Encrypt": 1}
    with pytest.raises(AccessDeniedError):
        await last_usage(service, arn, BOB)


async def test_keys_are_named_by_id_or_arn(service: Embedded) -> None:
    """As in AWS: an alias may mean another key tomorrow."""
    arn = await service.make_key()
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/mine", target_key_id=arn))

    assert (await last_usage(service, arn.rpartition("/")[2])).key_id == arn
    with pytest.raises(NotFoundError):
        await last_usage(service, "alias/mine")
    with pytest.raises(NotFoundError):
        await last_usage(service, f"{arn[:-12]}{'0' * 12}")


async def test_who_may_not_ask_is_told_nothing(service: Embedded) -> None:
    """Neither is anybody while kmsd is sealed."""
    arn = await service.make_key()
    with pytest.raises(AccessDeniedError):
        await last_usage(service, arn, BOB)
    await service.unsealing.seal()
    with pytest.raises(SealedError):
        await last_usage(service, arn)


async def test_a_policy_keeps_a_key_that_was_used_lately(service: Embedded) -> None:
    """Whole days count, from the last use on, also when it is not stored yet."""
    arn = await service.make_key(policy=protecting(30))
    service.wall_time += 30 * DAY_SECONDS
    await encrypt(service, arn)
    service.wall_time += 30 * DAY_SECONDS - 1
    with pytest.raises(AccessDeniedError):
        await disable(service, arn)
    service.wall_time += 1

    await disable(service, arn)


async def test_a_policy_keeps_a_key_from_being_deleted(service: Embedded) -> None:
    """As it keeps it from being disabled; while it is pending deletion, what it was used for is told still."""
    arn = await service.make_key(policy=protecting(7))
    await encrypt(service, arn)
    request = ScheduleKeyDeletionRequest(key_id=arn)
    service.wall_time += 7 * DAY_SECONDS - 1
    with pytest.raises(AccessDeniedError):
        await service.ask(ALICE, SCHEDULE_KEY_DELETION, request)
    service.wall_time += 1

    await service.ask(ALICE, SCHEDULE_KEY_DELETION, request)

    assert (await last_usage(service, arn)).uses == {"Encrypt": 1}


async def test_a_policy_keeps_a_key_that_was_made_lately(service: Embedded) -> None:
    """A key that was never used is as old as what is known of it."""
    arn = await service.make_key(policy=protecting(30))
    made = (await last_usage(service, arn)).key_creation_date.timestamp()
    service.wall_time = made + 29 * DAY_SECONDS
    with pytest.raises(AccessDeniedError):
        await disable(service, arn)
    service.wall_time = made + 30 * DAY_SECONDS + 1

    await disable(service, arn)


async def test_what_is_not_known_yet_counts_as_used(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a kill, until the trail has told what was used before it."""
    arn = await service.make_key(policy=protecting(30))
    service.wall_time += 31 * DAY_SECONDS

    def fails(*_: Any, **__: Any) -> list[str]:
        raise AuditUnavailableError("audit trail: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(service.trail), "read", fails)
        service = await open_again(service)
        with pytest.raises(AccessDeniedError):
            await disable(service, arn)
    try:
        await service.uses.recount()
        await disable(service, arn)
    finally:
        await service.close()


async def test_when_a_key_was_used_is_not_told_by_way_of_policies(service: Embedded) -> None:
    """Who may not look at a key cannot have his own policy ask in his place."""
    arn = await service.make_key()
    await encrypt(service, arn)
    allowing = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "kms:DisableKey",
        "Resource": "*",
        "Condition": {"NumericLessThan": {"kms:TrailingDaysWithoutKeyUsage": "30"}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowing]})
    request = SimulatePolicyRequest(actions=["kms:DisableKey"], key_id=arn, policy=policy)

    decisions = [
        (await service.ask(session, SIMULATE_POLICY, request)).results[0].decision for session in (ALICE, BOB, ROOT)
    ]

    assert decisions == ["allowed", "implicitDeny", "allowed"]
