"""What kmsd does for default keys by itself: new material each year, and the policy of the newest template."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.access.default_keys import TEMPLATE, default_key_template
from kmsd.api.errors import AccessDeniedError, IntegrityError
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, DecryptResponse, EncryptRequest
from kmsd.audit.record import Kind
from kmsd.service.call import Session
from kmsd.service.seal import CONFIGURED
from kmsd.service.settling import Settling
from kmsd.store.base import Replace, StoreUnavailableError
from kmsd.store.rows import KeyRow
from tests.support.embedded import ALICE, BOB, Embedded, kind_is, person

OpenService = Callable[..., Awaitable[Embedded]]

DEFAULT = "alias/kmsd/default"
DAY_SECONDS = 24 * 3600


async def encrypt(service: Embedded, session: Session = ALICE, key_id: str = DEFAULT) -> bytes:
    request = EncryptRequest(key_id=key_id, plaintext=memoryview(b"secret"))
    return (await service.ask(session, ENCRYPT, request)).ciphertext_blob


async def decrypt(service: Embedded, blob: bytes, session: Session = ALICE) -> DecryptResponse:
    return await service.ask(session, DECRYPT, DecryptRequest(ciphertext_blob=blob))


async def default_key(service: Embedded) -> KeyRow:
    """Alice's, as the store has it."""
    row = await service.store.default_key("uid:1000/user:alice")
    assert row is not None
    key = await service.store.key(row.key_id)
    assert key is not None
    return key


def events(service: Embedded, name: str) -> list[dict[str, Any]]:
    return [one for one in service.lines() if one["eventName"] == name]


async def age(service: Embedded, template: int, policy: str) -> None:
    """Make alice's default key one of an earlier kmsd, which had another template."""
    row = await service.store.default_key("uid:1000/user:alice")
    assert row is not None
    key = await default_key(service)
    older = msgspec.structs.replace(key, policy=policy, version=key.version + 1)
    known = msgspec.structs.replace(row, template=template, version=row.version + 1)
    await service.store.commit(None, [Replace(older), Replace(known)])
    service.records.forget(key.key_id)


async def test_a_key_of_a_year_has_new_material(service: Embedded) -> None:
    """Not a day before; what was encrypted stays readable, and what is encrypted from then on has the new one."""
    before = await encrypt(service)
    service.wall_time += 364 * DAY_SECONDS
    await service.care.look()
    assert (await default_key(service)).current_material == 1
    service.wall_time += DAY_SECONDS

    await service.care.look()

    assert (await default_key(service)).current_material == 2
    behind = await encrypt(service)
    assert (behind[17:21], before[17:21]) == ((2).to_bytes(4, "big"), (1).to_bytes(4, "big"))
    answers = [await decrypt(service, blob) for blob in (before, behind)]
    assert [bytes(one.plaintext) for one in answers] == [b"secret"] * 2
    assert len({one.key_material_id for one in answers}) == 2
    await service.care.look()
    assert (await default_key(service)).current_material == 2
    service.wall_time += 365 * DAY_SECONDS
    await service.care.look()
    assert (await default_key(service)).current_material == 3
    assert bytes((await decrypt(service, before)).plaintext) == b"secret"


async def test_rotation_is_recorded_as_kmsds_own(service: Embedded) -> None:
    """With intent and outcome, on nobody's behalf."""
    await encrypt(service)
    service.wall_time += 366 * DAY_SECONDS
    await service.care.look()

    intent, outcome = events(service, "RotateKey")
    key = await default_key(service)
    material = await service.store.material(key.key_id, 2)
    assert material is not None
    assert (intent["eventType"], outcome["eventType"]) == (Kind.INTENT, Kind.OUTCOME)
    assert "userIdentity" not in intent
    assert intent["resources"] == [{"ARN": service.arns.key(key.key_id)}]
    assert intent["requestParameters"] == {"rotationType": "AUTOMATIC", "keyMaterialId": material.material_id}
    assert outcome["additionalEventData"]["storeSequence"] == service.store.sequence


async def test_keys_that_people_made_are_left_alone(service: Embedded) -> None:
    """However old they are, and whatever their policies say."""
    arn = await service.make_key(ALICE)
    service.wall_time += 4000 * DAY_SECONDS
    await service.care.look()

    [row] = await service.store.keys(after=None, limit=9)
    assert (row.key_id, row.version) == (arn.rpartition("/")[2], 1)


async def test_it_looks_once_a_day(service: Embedded) -> None:
    """When the daemon is unsealed, if it was sealed when it should have looked, and every day from then on."""
    await encrypt(service)
    service.wall_time += 365 * DAY_SECONDS
    await service.minutes.wake()
    await service.minutes.again()
    assert (await default_key(service)).current_material == 2

    await service.unsealing.seal()
    service.wall_time += 365 * DAY_SECONDS
    await service.unsealing.unseal(CONFIGURED, lambda: None)
    await service.minutes.again()
    assert (await default_key(service)).current_material == 3

    await age(service, 0, default_key_template("user:bob"))
    for expected in (0, TEMPLATE):
        service.wall_time += 12 * 3600
        await service.minutes.wake()
        await service.minutes.again()
        row = await service.store.default_key("uid:1000/user:alice")
        assert row is not None
        assert row.template == expected


@pytest.mark.parametrize("switch", ["intent", "commit", "outcome"])
async def test_a_kill_leaves_one_of_two_states(tmp_path: Path, switch: str) -> None:
    """Old material or new, never a number without material; the next start tells which in the trail."""
    service = await Embedded.open(tmp_path)
    blob = await encrypt(service)
    service.wall_time += 365 * DAY_SECONDS
    # From this moment on nothing reaches the trail, as if the process had ended.
    kinds = {"intent": (Kind.INTENT, Kind.OUTCOME)}.get(switch, (Kind.OUTCOME,))
    service.trail.refuses = kind_is(*kinds)
    if switch == "commit":
        service.store.faults["commit"] = StoreUnavailableError("gone")
    await service.care.look()
    assert "default_key_not_changed" in service.log.getvalue()
    rotated = switch == "outcome"
    service.store.faults.clear()
    await service.close()

    service = await Embedded.open(tmp_path, initialize=False)
    await service.unsealing.unseal(CONFIGURED, lambda: None)
    await Settling(service.store, service.trail).settle()
    await service.minutes.again()
    assert bytes((await decrypt(service, blob)).plaintext) == b"secret"
    assert bytes((await decrypt(service, await encrypt(service))).plaintext) == b"secret"
    assert (await default_key(service)).current_material == (2 if rotated else 1)
    outcomes = [one for one in events(service, "RotateKey") if one["eventType"] == Kind.OUTCOME]
    assert ["errorCode" in one for one in outcomes] == ([] if switch == "intent" else [not rotated])
    await service.close()


async def test_an_older_template_is_replaced(service: Embedded) -> None:
    """kmsd's own policy, in place of the one it had written; it is recorded, and done once."""
    await encrypt(service)
    await age(service, 0, default_key_template("user:alice").replace("kms:GetKeyPolicy", "kms:PutKeyPolicy"))
    await service.care.look()
    await service.care.look()

    key, row = await default_key(service), await service.store.default_key("uid:1000/user:alice")
    assert row is not None
    assert (key.policy, row.template) == (default_key_template("user:alice"), TEMPLATE)
    assert [one["eventType"] for one in events(service, "UpdateDefaultKeyPolicy")] == [Kind.INTENT, Kind.OUTCOME]
    assert events(service, "UpdateDefaultKeyPolicy")[0]["requestParameters"] == {
        "owner": "uid:1000/user:alice",
        "template": TEMPLATE,
        "replaces": 0,
    }


async def test_the_next_request_is_decided_by_the_new_policy(service: Embedded) -> None:
    """It is not remembered as it was."""
    blob = await encrypt(service)
    await age(service, 0, default_key_template("user:bob"))
    with pytest.raises(AccessDeniedError):
        await decrypt(service, blob)

    await service.care.look()

    assert bytes((await decrypt(service, blob)).plaintext) == b"secret"


async def test_a_new_template_lets_no_heir_in(service: Embedded) -> None:
    """The name is not looked up again: it meant the uid that it had when the key was made."""
    blob = await encrypt(service)
    service.names.users = {"root": 0, "alice": 1003, "mallory": 1000}
    await age(service, 0, "{}")
    await service.care.look()

    assert (await default_key(service)).policy_principals == {"user:alice": 1000}
    for heir in (person(1003, user="alice"), person(1000, user="mallory")):
        with pytest.raises(AccessDeniedError):
            await decrypt(service, blob, heir)


async def test_a_template_of_a_newer_kmsd_stays(service: Embedded) -> None:
    """An older kmsd on a newer one's store takes nothing back."""
    await encrypt(service)
    await age(service, TEMPLATE + 1, default_key_template("user:alice"))
    await service.care.look()

    assert events(service, "UpdateDefaultKeyPolicy") == []


async def test_what_fails_is_logged_and_holds_nothing_up(service: Embedded) -> None:
    """The next key has its turn, and the one that failed has it on the next day."""
    await encrypt(service)
    await encrypt(service, BOB)
    service.wall_time += 365 * DAY_SECONDS
    service.trail.unsyncable = True
    await service.care.look()
    assert service.log.getvalue().count("default_key_not_changed") == 2
    service.trail.unsyncable = False
    await service.care.look()

    keys = await service.store.keys(after=None, limit=9)
    assert [key.current_material for key in keys] == [2, 2]


async def test_a_record_that_was_changed_holds_nothing_up(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is logged, all others have their turn, and the day is done: it does not begin anew each minute."""
    await encrypt(service)
    await encrypt(service, BOB)
    damaged = (await default_key(service)).key_id
    whole = service.store.key

    async def read(key_id: str) -> KeyRow | None:
        if key_id == damaged:
            raise IntegrityError("a record was changed")
        return await whole(key_id)

    monkeypatch.setattr(service.store, "key", read)
    service.wall_time += 365 * DAY_SECONDS
    await service.care.look()
    monkeypatch.undo()

    assert service.log.getvalue().count("default_key_not_changed") == 1
    keys = await service.store.keys(after=None, limit=9)
    assert {key.creator_uid: key.current_material for key in keys} == {1000: 1, 1001: 2}
