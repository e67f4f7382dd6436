"""Default keys: made for whoever means his own first, and for nobody else to use."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kmsd.access.decision import Authorizer, HostPolicy, NotAuthorizedError
from kmsd.access.default_keys import TEMPLATE
from kmsd.access.policy import MANAGEMENT_ACTIONS
from kmsd.api.errors import (
    AccessDeniedError,
    AuditUnavailableError,
    DryRunOperationError,
    InvalidAliasNameError,
    LimitExceededError,
    NotFoundError,
)
from kmsd.api.files import DECRYPT_FILE, ENCRYPT_FILE, DecryptFileRequest, EncryptFileRequest
from kmsd.api.keys import (
    CREATE_ALIAS,
    DESCRIBE_KEY,
    LIST_ALIASES,
    CreateAliasRequest,
    DescribeKeyRequest,
    ListAliasesRequest,
)
from kmsd.api.operation import KeyAccess
from kmsd.api.policies import SIMULATE_POLICY, Outcome, SimulatePolicyRequest
from kmsd.api.shapes import KeyManager
from kmsd.api.symmetric import (
    DECRYPT,
    ENCRYPT,
    GENERATE_DATA_KEY,
    REENCRYPT,
    DecryptRequest,
    EncryptRequest,
    GenerateDataKeyRequest,
    ReEncryptRequest,
)
from kmsd.audit.record import Kind
from kmsd.audit.writer import SyncMode, Trail
from kmsd.service.call import Session
from kmsd.service.key_owners import read_owner, unit_owner, user_owner
from tests.support.embedded import ACCOUNT, ALICE, BOB, ROOT, Embedded, Gate, kind_is, person
from tests.support.given_facts import NO_FACTS

OpenService = Callable[..., Awaitable[Embedded]]

DEFAULT, UNIT = "alias/kmsd/default", "alias/kmsd/unit"
NGINX = person(33, user="www-data", gid=33, unit="nginx.service")
# Of a service with DynamicUser=, whose uid is another's after a restart.
DYNAMIC = person(61200, user="worker", gid=61200, unit="worker.service")


async def encrypt(service: Embedded, session: Session = ALICE, key_id: str = DEFAULT) -> bytes:
    response = await service.ask(session, ENCRYPT, EncryptRequest(key_id=key_id, plaintext=memoryview(b"secret")))
    return response.ciphertext_blob


async def decrypt(service: Embedded, session: Session, blob: bytes, **members: Any) -> bytes:
    response = await service.ask(session, DECRYPT, DecryptRequest(ciphertext_blob=blob, **members))
    return bytes(response.plaintext)


async def key_of(service: Embedded, session: Session, alias: str = DEFAULT) -> str:
    response = await service.ask(session, DESCRIBE_KEY, DescribeKeyRequest(key_id=alias))
    return response.key_metadata.arn


def created(service: Embedded, kind: Kind = Kind.OUTCOME) -> list[dict[str, Any]]:
    return [one for one in service.lines() if (one["eventName"], one["eventType"]) == ("CreateDefaultKey", kind)]


async def test_the_first_use_makes_it(service: Embedded) -> None:
    """And the second uses it: one key, which decrypts without being named."""
    blobs = [await encrypt(service), await encrypt(service)]

    assert [await decrypt(service, ALICE, blob) for blob in blobs] == [b"secret"] * 2
    [row] = await service.store.keys(after=None, limit=9)
    assert (row.creator_uid, row.key_manager) == (1000, KeyManager.AWS)
    assert row.description == "default key of user alice (uid 1000)"
    whose = await service.store.default_key("uid:1000/user:alice")
    assert whose is not None
    assert (whose.key_id, whose.template) == (row.key_id, TEMPLATE)


async def test_the_trail_tells_who_had_it_made(service: Embedded) -> None:
    """An intent before, an outcome behind, on behalf of the caller, and then the request itself."""
    blob = await encrypt(service)

    intent, outcome, request = service.lines()
    assert [one["eventType"] for one in (intent, outcome, request)] == [Kind.INTENT, Kind.OUTCOME, Kind.REQUEST]
    assert intent["requestID"] == outcome["requestID"] != request["requestID"]
    assert intent["userIdentity"] == outcome["userIdentity"] == request["userIdentity"]
    assert intent["resources"] == outcome["resources"] == request["resources"]
    assert intent["requestParameters"] == {"owner": "uid:1000/user:alice", "onRequest": request["requestID"]}
    assert outcome["additionalEventData"]["storeSequence"] == service.store.sequence
    assert "default key may have it made" in intent["additionalEventData"]["decision"]
    assert "Allow its owner to use the key" in request["additionalEventData"]["decision"]
    assert request["requestParameters"]["keyId"] == DEFAULT
    assert blob


@pytest.mark.parametrize("alias", [DEFAULT, f"arn:aws:kms:local-host-1:{ACCOUNT}:{DEFAULT}"])
async def test_every_operation_that_takes_an_alias_takes_it(service: Embedded, alias: str) -> None:
    """Whichever comes first makes it, and all use the same."""
    data_key = GenerateDataKeyRequest(key_id=alias, number_of_bytes=32)
    arns = {
        (await service.ask(ALICE, GENERATE_DATA_KEY, data_key)).key_id,
        (await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=alias, plaintext=memoryview(b"x")))).key_id,
        await key_of(service, ALICE, alias),
    }
    mine = await service.make_key(ALICE)
    blob = await encrypt(service, ALICE, mine)
    moved = await service.ask(ALICE, REENCRYPT, ReEncryptRequest(ciphertext_blob=blob, destination_key_id=alias))

    assert {moved.key_id} == arns
    assert await decrypt(service, ALICE, moved.ciphertext_blob, key_id=alias) == b"secret"


async def test_files_take_it(service: Embedded) -> None:
    """Encrypted under it, a file is decrypted without naming it, or by it."""
    batch = await service.reply_to(ALICE, ENCRYPT_FILE, EncryptFileRequest(key_id=DEFAULT))
    header = service.response(batch, ENCRYPT_FILE).header
    for descriptor in batch.descriptors:
        os.close(descriptor)

    for named in (None, DEFAULT):
        batch = await service.reply_to(ALICE, DECRYPT_FILE, DecryptFileRequest(header=header, key_id=named))
        assert service.response(batch, DECRYPT_FILE).key_id == await key_of(service, ALICE)
        for descriptor in batch.descriptors:
            os.close(descriptor)
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, DECRYPT_FILE, DecryptFileRequest(header=header))


async def test_uses_at_once_make_one(service: Embedded) -> None:
    """Whoever is second waits for the first."""
    blobs = await asyncio.gather(*(encrypt(service) for _ in range(20)))

    assert len(await service.store.keys(after=None, limit=9)) == len(created(service)) == 1
    assert await decrypt(service, ALICE, blobs[7]) == b"secret"


async def test_each_means_his_own(service: Embedded) -> None:
    """One alias, in turns, and nobody's blob is another's."""
    blobs = {id(one): await encrypt(service, one) for one in (ALICE, BOB, ROOT, NGINX)}
    for reader in (ALICE, BOB, ROOT, NGINX):
        assert await decrypt(service, reader, blobs[id(reader)], key_id=DEFAULT) == b"secret"

    arns = {await key_of(service, one) for one in (ALICE, BOB, ROOT, NGINX)}

    assert len(arns) == 4
    with pytest.raises(AccessDeniedError):
        await decrypt(service, BOB, blobs[id(ALICE)])


async def test_a_unit_has_one_of_its_own(service: Embedded) -> None:
    """Whatever uid its processes have; it is another than the user's."""
    blob = await encrypt(service, NGINX, UNIT)

    assert await decrypt(service, person(0, user="root", unit="nginx.service"), blob) == b"secret"
    assert await key_of(service, NGINX, UNIT) != await key_of(service, NGINX)
    metadata = await service.ask(NGINX, DESCRIBE_KEY, DescribeKeyRequest(key_id=UNIT))
    assert metadata.key_metadata.description == "key of unit nginx.service"
    for stranger in (person(33, user="www-data", unit="mallory.service"), person(33, user="www-data"), ROOT):
        with pytest.raises(AccessDeniedError):
            await decrypt(service, stranger, blob)


async def test_a_service_with_a_uid_for_its_life_has_its_units(service: Embedded) -> None:
    """After a restart it has another uid, and perhaps another service has this one."""
    blob = await encrypt(service, DYNAMIC)

    assert await key_of(service, DYNAMIC) == await key_of(service, DYNAMIC, UNIT)
    restarted = person(61300, user=None, unit="worker.service")
    assert await decrypt(service, restarted, blob, key_id=DEFAULT) == b"secret"
    with pytest.raises(AccessDeniedError):
        await decrypt(service, person(61200, user="other", unit="other.service"), blob)
    with pytest.raises(NotFoundError):
        await encrypt(service, person(61200, user="worker"))


@pytest.mark.parametrize(
    ("session", "alias", "words"),
    [
        (person(100_005, user=None), DEFAULT, "uid 100005 has no default key"),
        (ALICE, UNIT, "in no system unit"),
        (person(unit="session-3.scope"), UNIT, "session-3.scope has no key of its own"),
        (person(unit="run-u12.service"), UNIT, "run-u12.service has no key of its own"),
        (person(user="john doe"), DEFAULT, "'user:john doe' is not the name of a user"),
        (person(unit="getty@.service"), UNIT, "is a template"),
        (person(unit="run-p31-i44.service"), UNIT, "run-p31-i44.service has no key of its own"),
        (person(61200, user=None, unit="echo@3-4711-1000.service"), DEFAULT, "3-4711-1000.service has no key"),
        (person(unit="echo@3-4711-1000.service"), UNIT, "has no key of its own"),
        (person(unit="echo@0-12-4711_815-0.service"), UNIT, "has no key of its own"),
        (person(unit="echo@0-12-4711-0.service"), UNIT, "has no key of its own"),
        (person(unit="echo@7-unknown.service"), UNIT, "has no key of its own"),
        (person(unit="echo@7-12-unknown.service"), UNIT, "has no key of its own"),
        (person(unit="ssh@1-192.0.2.1:22-192.0.2.9:50122.service"), UNIT, "has no key of its own"),
        (person(unit="ssh@1-9-192.0.2.1:22-192.0.2.9:50122.service"), UNIT, "has no key of its own"),
        (person(unit="ssh@1-2001:db8::1:22-2001:db8::2:50122.service"), UNIT, "has no key of its own"),
        (person(unit="ssh@1-9-2:22-3:50122.service"), UNIT, "has no key of its own"),
        (person(unit="dbus-:1.2-org.example.Thing@0.service"), UNIT, "has no key of its own"),
    ],
)
async def test_who_has_none_is_told_why(service: Embedded, session: Session, alias: str, words: str) -> None:
    """Names that go to another next time are no owners; nothing is made."""
    with pytest.raises(NotFoundError, match=words):
        await encrypt(service, session, alias)

    assert await service.store.keys(after=None, limit=9) == []
    assert service.newest()["errorCode"] == "NotFoundException"


@pytest.mark.parametrize("unit", ["app@1.service", "backup@1-daily.service", "sync@a-1-2.service", "x@host:22.service"])
async def test_an_instance_that_somebody_named_has_one(service: Embedded, unit: str) -> None:
    """It has the same name tomorrow."""
    blob = await encrypt(service, person(unit=unit), UNIT)

    assert await decrypt(service, person(unit=unit), blob, key_id=UNIT) == b"secret"


@pytest.mark.parametrize(("attribute", "alias"), [("user", DEFAULT), ("unit", UNIT)])
async def test_who_cannot_be_told_has_none(service: Embedded, attribute: str, alias: str) -> None:
    """It is not known whose key it would be."""
    session = person(user=None, undetermined=frozenset({attribute}))
    with pytest.raises(AccessDeniedError, match="could not be found out"):
        await encrypt(service, session, alias)


async def test_a_service_with_a_uid_for_its_life_is_told_that_its_unit_is_not_known(service: Embedded) -> None:
    """It has a key: not to find it now is no word that it has none."""
    session = person(61200, user=None, undetermined=frozenset({"unit"}))
    with pytest.raises(AccessDeniedError, match="could not be found out"):
        await encrypt(service, session)


async def test_a_uid_that_goes_to_another_inherits_nothing(service: Embedded) -> None:
    """Nor does a name that does: both have a fresh key, and neither reads what was encrypted before."""
    blob = await encrypt(service)
    service.names.users = {"root": 0, "mallory": 1000, "alice": 1003}
    service.now += 3600  # names are looked up again

    for heir in (person(1000, user="mallory"), person(1003, user="alice")):
        with pytest.raises(AccessDeniedError):
            await decrypt(service, heir, blob)
        assert await decrypt(service, heir, await encrypt(service, heir)) == b"secret"

    assert len(await service.store.keys(after=None, limit=9)) == 3


async def test_administrators_cannot_decrypt_and_the_log_tells_that_they_tried(
    service: Embedded, tmp_path: Path
) -> None:
    """A host policy that allows them everything does not reach it."""
    blob, arn = await encrypt(service), await key_of(service, ALICE)
    directory = tmp_path / "policy.d"
    directory.mkdir()
    everything = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    (directory / "10-all.json").write_text(json.dumps({"Version": "2012-10-17", "Statement": [everything]}))
    service.pipeline._authorizer.adopt(HostPolicy.load(directory, account=ACCOUNT, names=service.names))

    with pytest.raises(AccessDeniedError):
        await decrypt(service, ROOT, blob)

    record = service.newest()
    assert (record["eventName"], record["errorCode"]) == ("Decrypt", "AccessDeniedException")
    assert (record["userIdentity"]["uid"], record["resources"]) == (0, [{"ARN": arn}])
    # They see it, though.
    metadata = await service.ask(ROOT, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    assert metadata.key_metadata.key_manager is KeyManager.AWS


@pytest.mark.parametrize("session", [ALICE, BOB, ROOT], ids=["its owner", "somebody", "an administrator"])
async def test_nobody_can_change_it(service: Embedded, session: Session) -> None:
    """Its policy, its state, its grants, its tags and names are kmsd's."""
    record = await service.records.fetch(await key_of(service, ALICE), KeyAccess.ID_OR_ARN)
    authorizer = Authorizer(HostPolicy.load(None, account=ACCOUNT, names=service.names))
    looking = {"DescribeKey", "GetKeyPolicy", "GetKeyRotationStatus", "ListGrants", "ListKeyRotations"}
    looking |= {"GetKeyLastUsage", "ListKeyPolicies", "ListResourceTags"}

    for action in set(MANAGEMENT_ACTIONS) - {f"kms:{one}" for one in looking}:
        with pytest.raises(NotAuthorizedError):
            authorizer.authorize(session.caller, action, resource=record.arn, key_policy=record.policy, facts=NO_FACTS)


async def test_a_dry_run_makes_none(service: Embedded) -> None:
    """Nobody could take it back. Who has one is told what is to be told."""
    dry = EncryptRequest(key_id=DEFAULT, plaintext=memoryview(b"x"), dry_run=True)
    with pytest.raises(NotFoundError, match="user:alice has no such key yet, the first use makes it"):
        await service.ask(ALICE, ENCRYPT, dry)
    assert await service.store.keys(after=None, limit=9) == []

    await encrypt(service)
    with pytest.raises(DryRunOperationError):
        await service.ask(ALICE, ENCRYPT, dry)


async def test_the_host_policy_can_withhold_it(service: Embedded, tmp_path: Path) -> None:
    """For one of the aliases, for example; the refusal is on record, and nothing is made."""
    directory = tmp_path / "policy.d"
    directory.mkdir()
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "kms:CreateDefaultKey",
        "Resource": f"arn:aws:kms:*:*:{UNIT}",
    }
    (directory / "10-none.json").write_text(json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    service.pipeline._authorizer.adopt(HostPolicy.load(directory, account=ACCOUNT, names=service.names))

    with pytest.raises(AccessDeniedError, match="kms:CreateDefaultKey"):
        await encrypt(service, NGINX, UNIT)

    assert "explicit deny" in service.newest()["errorMessage"]
    assert await service.store.keys(after=None, limit=9) == []
    assert await encrypt(service, NGINX)


async def test_it_counts_as_a_key_of_who_had_it_made(open_service: OpenService) -> None:
    """So that uids and units cannot fill the store."""
    service = await open_service(keys_per_uid=1)
    await encrypt(service, NGINX)

    with pytest.raises(LimitExceededError):
        await encrypt(service, NGINX, UNIT)


@pytest.mark.parametrize("fault", ["intent", "sync"])
async def test_without_an_intent_on_the_disk_none_is_made(service: Embedded, fault: str) -> None:
    """The caller is told of the trail."""
    if fault == "intent":
        service.trail.refuses = kind_is(Kind.INTENT)
    else:
        service.trail.unsyncable = True

    with pytest.raises(AuditUnavailableError):
        await encrypt(service)

    assert await service.store.keys(after=None, limit=9) == []
    service.trail.refuses, service.trail.unsyncable = None, False
    assert await encrypt(service)


async def test_a_daemon_that_is_killed_leaves_one_of_two_states(tmp_path: Path) -> None:
    """Behind the commit, before the outcome: the key is there, the intent is open, and the next use finds the key."""
    service = await Embedded.open(tmp_path)
    service.trail.refuses = kind_is(Kind.OUTCOME)
    with pytest.raises(AuditUnavailableError):
        await encrypt(service)
    [intent] = created(service, Kind.INTENT)
    assert await service.store.committed([intent["requestID"]]) == {intent["requestID"]}
    service.trail.refuses = None

    assert await decrypt(service, ALICE, await encrypt(service)) == b"secret"
    assert len(await service.store.keys(after=None, limit=9)) == 1
    await service.close()
    trail = Trail.open(tmp_path / "audit.log", sync=SyncMode.OS, clock=lambda: 0.0)
    assert [one.event_name for one in trail.open_intents()] == ["CreateDefaultKey"]
    trail.close()


async def test_who_hangs_up_leaves_it_whole(service: Embedded) -> None:
    """It is made to its end, once, and recorded."""
    gate = service.store.gates["commit"] = Gate()
    request = EncryptRequest(key_id=DEFAULT, plaintext=memoryview(b"x"))
    asked = asyncio.ensure_future(service.reply_to(ALICE, ENCRYPT, request))
    await gate.arrived.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    again = asyncio.ensure_future(encrypt(service))
    gate.opened.set()

    assert await decrypt(service, ALICE, await again) == b"secret"
    assert len(await service.store.keys(after=None, limit=9)) == 1
    assert len([one for one in created(service) if "errorCode" not in one]) == 1


async def test_aliases_of_ones_own_are_listed(service: Embedded) -> None:
    """In their place among the others, and by their key; those that mean no key yet are not."""
    arn = await service.make_key(ALICE)
    for name in ("alias/a", "alias/z"):
        await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name=name, target_key_id=arn))

    async def listed(session: Session, **members: Any) -> list[str]:
        response = await service.ask(session, LIST_ALIASES, ListAliasesRequest(**members))
        if response.next_marker is None:
            return [one.alias_name for one in response.aliases]
        later = await listed(session, **{**members, "marker": response.next_marker})
        return [one.alias_name for one in response.aliases] + later

    assert await listed(NGINX) == ["alias/a", "alias/z"]
    default, unit = await key_of(service, NGINX), await key_of(service, NGINX, UNIT)
    assert await listed(NGINX, limit=1) == ["alias/a", DEFAULT, UNIT, "alias/z"]
    assert await listed(NGINX, key_id=unit) == [UNIT]
    assert await listed(NGINX, key_id=default) == [DEFAULT]
    assert await listed(ALICE, key_id=default) == []
    assert await listed(BOB) == ["alias/a", "alias/z"]


async def test_a_simulation_means_the_key_of_whom_it_is_about(service: Embedded) -> None:
    """And makes none."""
    about_bob = SimulatePolicyRequest(actions=["kms:Decrypt"], key_id=DEFAULT, principals=["user:bob"])
    with pytest.raises(NotFoundError, match="user:bob has no such key yet"):
        await service.ask(ROOT, SIMULATE_POLICY, about_bob)
    assert await service.store.keys(after=None, limit=9) == []

    theirs = await key_of(service, BOB)
    told = await service.ask(ROOT, SIMULATE_POLICY, about_bob)
    own = await service.ask(BOB, SIMULATE_POLICY, SimulatePolicyRequest(actions=["kms:Decrypt"], key_id=DEFAULT))

    for answer in (told, own):
        assert (answer.resource, answer.results[0].decision) == (theirs, Outcome.ALLOWED)


async def test_the_names_are_nobodys_to_give(service: Embedded) -> None:
    """An alias that people make does not come in between."""
    arn = await service.make_key(ALICE)
    with pytest.raises(InvalidAliasNameError):
        await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name=DEFAULT, target_key_id=arn))


async def test_after_a_seal_it_is_the_same(service: Embedded) -> None:
    """What is remembered of it is still so."""
    blob = await encrypt(service)
    service.seal.seal()
    await service.seal.unseal(lambda _: asyncio.sleep(0))

    assert await decrypt(service, ALICE, blob, key_id=DEFAULT) == b"secret"
    assert await key_of(service, ALICE)


async def test_few_places_in_memory_are_enough(open_service: OpenService) -> None:
    """Which key is whose is looked up again."""
    service = await open_service(keys_in_memory=2)
    users = [person(uid, user=f"user{uid}") for uid in range(2000, 2006)]
    service.names.users |= {f"user{uid}": uid for uid in range(2000, 2006)}
    blobs = [await encrypt(service, one) for one in users]

    assert [await decrypt(service, one, blob, key_id=DEFAULT) for one, blob in zip(users, blobs, strict=True)] == [
        b"secret"
    ] * 6


@pytest.mark.parametrize("owner", [user_owner(7, "DOM\\al"), user_owner(0, "root"), unit_owner("a@b.service")])
def test_an_owner_is_read_as_it_was_written(owner: Any) -> None:
    """The store knows it by its text alone."""
    assert read_owner(owner.text) == owner


def test_a_key_of_a_unit_that_would_be_given_none_is_still_looked_after() -> None:
    """An earlier kmsd made it."""
    assert read_owner("unit:ssh@1-2-0.service").principal == "unit:ssh@1-2-0.service"
