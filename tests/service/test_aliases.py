"""Names of keys: who may give them, how many, and how they are listed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
import pytest

from kmsd.access.decision import DEFAULT_DENY
from kmsd.api.deletion import SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest
from kmsd.api.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ConflictError,
    InvalidAliasNameError,
    KmsError,
    KMSInvalidStateError,
    LimitExceededError,
    NotFoundError,
    UnsupportedOperationError,
    ValidationError,
)
from kmsd.api.keys import (
    CREATE_ALIAS,
    DELETE_ALIAS,
    DISABLE_KEY,
    LIST_ALIASES,
    UPDATE_ALIAS,
    CreateAliasRequest,
    DeleteAliasRequest,
    EnableKeyRequest,
    ListAliasesRequest,
    UpdateAliasRequest,
)
from kmsd.api.operation import KeyUsage
from kmsd.api.policies import PUT_KEY_POLICY, PutKeyPolicyRequest
from kmsd.api.shapes import AliasListEntry
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.service.call import Session
from kmsd.service.records import ALIASES_PER_KEY
from kmsd.store.base import Delete, Insert, Replace
from kmsd.store.rows import AliasRow, KeyRow
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate, person

OpenService = Callable[..., Awaitable[Embedded]]

# No key's.
OTHER_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"


async def name(service: Embedded, alias: str, arn: str, session: Session = ALICE) -> None:
    await service.ask(session, CREATE_ALIAS, CreateAliasRequest(alias_name=alias, target_key_id=arn))


async def move(service: Embedded, alias: str, arn: str, session: Session = ALICE) -> None:
    await service.ask(session, UPDATE_ALIAS, UpdateAliasRequest(alias_name=alias, target_key_id=arn))


async def remove(service: Embedded, alias: str, session: Session = ALICE) -> None:
    await service.ask(session, DELETE_ALIAS, DeleteAliasRequest(alias_name=alias))


async def disable(service: Embedded, arn: str) -> None:
    await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))


async def schedule_deletion(service: Embedded, arn: str) -> None:
    await service.ask(ALICE, SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest(key_id=arn))


async def put_policy(service: Embedded, arn: str, actions: Sequence[str]) -> None:
    """Let everybody do these things with a key, and nothing else."""
    statement = {"Effect": "Allow", "Principal": "*", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    request = PutKeyPolicyRequest(key_id=arn, policy=policy, bypass_policy_lockout_safety_check=True)
    await service.ask(ALICE, PUT_KEY_POLICY, request)


async def named_by(service: Embedded, alias: str) -> str:
    """The ARN of the key that encrypts for who names it so."""
    return (await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=alias, plaintext=memoryview(b"x")))).key_id


async def listed(service: Embedded, key_id: str | None = None) -> list[AliasListEntry]:
    return (await service.ask(BOB, LIST_ALIASES, ListAliasesRequest(key_id=key_id))).aliases


async def test_an_alias_is_listed_with_its_key(service: Embedded) -> None:
    """Its target is the bare id, as with AWS."""
    arn = await service.make_key()

    await name(service, "alias/mine", arn)

    [entry] = await listed(service)
    assert entry.alias_name == "alias/mine"
    assert entry.alias_arn == service.arns.alias("alias/mine")
    assert entry.target_key_id == arn.rpartition("/")[2]
    assert entry.creation_date == entry.last_updated_date


async def test_the_aliases_of_one_key_are_listed(service: Embedded) -> None:
    """By id or ARN; an alias names no key there, and of a key that is not there that is told."""
    first, second = await service.make_key(), await service.make_key()
    for alias, arn in (("alias/c", first), ("alias/a", first), ("alias/b", second)):
        await name(service, alias, arn)

    assert [entry.alias_name for entry in await listed(service)] == ["alias/a", "alias/b", "alias/c"]
    for form in (first, first.rpartition("/")[2]):
        assert [entry.alias_name for entry in await listed(service, form)] == ["alias/a", "alias/c"]
    for form in ("alias/a", service.arns.key(OTHER_ID), OTHER_ID):
        with pytest.raises(NotFoundError):
            await listed(service, form)


async def test_the_pages_of_aliases_are_all_aliases(service: Embedded) -> None:
    """In order, each once."""
    arn = await service.make_key()
    names = [f"alias/{number}" for number in range(5)]
    for alias in names:
        await name(service, alias, arn)
    found: list[str] = []
    marker, truncated = None, True
    while truncated:
        page = await service.ask(BOB, LIST_ALIASES, ListAliasesRequest(limit=2, marker=marker))
        found += [entry.alias_name for entry in page.aliases]
        marker, truncated = page.next_marker, page.truncated

    assert found == names


async def test_a_name_is_given_once(service: Embedded) -> None:
    """The first key keeps it."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)

    with pytest.raises(AlreadyExistsError, match=r"arn:aws:kms:\S+:alias/a already exists"):
        await name(service, "alias/a", second)

    [entry] = await listed(service)
    assert entry.target_key_id == first.rpartition("/")[2]


@pytest.mark.parametrize("alias", ["mine", "alias/", "alias/aws/s3", "alias/a b"])
async def test_names_that_may_not_be_given_are_refused(service: Embedded, alias: str) -> None:
    """Wrong in form, or the service's own."""
    arn = await service.make_key()

    with pytest.raises(InvalidAliasNameError):
        await name(service, alias, arn)


async def test_the_permission_is_needed_on_the_key_and_on_the_alias(service: Embedded) -> None:
    """The host policy lets administrators and kms-users name keys, if the key's policy lets them too."""
    arn = await service.make_key()
    outside = person(1000, gid=1000)

    with pytest.raises(AccessDeniedError, match=r"resource: arn:aws:kms:.*:key/"):
        await name(service, "alias/a", arn, BOB)
    with pytest.raises(AccessDeniedError, match=r"resource: arn:aws:kms:.*:alias/a"):
        await name(service, "alias/a", arn, outside)
    await name(service, "alias/a", arn, ROOT)


async def test_the_target_is_no_alias(service: Embedded) -> None:
    """As with AWS: a key id or key ARN."""
    arn = await service.make_key()
    await name(service, "alias/a", arn)

    with pytest.raises(NotFoundError):
        await name(service, "alias/b", "alias/a")


async def test_a_key_has_a_bounded_number_of_names(service: Embedded) -> None:
    """Also when all are given at the same time."""
    arn = await service.make_key()

    given = await asyncio.gather(
        *(name(service, f"alias/{number}", arn) for number in range(ALIASES_PER_KEY + 5)), return_exceptions=True
    )

    assert given.count(None) == ALIASES_PER_KEY
    assert sum(isinstance(one, LimitExceededError) for one in given) == 5
    page = await service.ask(BOB, LIST_ALIASES, ListAliasesRequest(limit=100))
    assert len(page.aliases) == ALIASES_PER_KEY


async def row_of(service: Embedded, arn: str) -> KeyRow:
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    return row


async def change(service: Embedded, arn: str, **members: str) -> None:
    """Change what nobody can be asked to change."""
    row = await row_of(service, arn)
    await service.store.commit(None, [Replace(msgspec.structs.replace(row, version=row.version + 1, **members))])
    service.records.forget(row.key_id)


async def give_names(service: Embedded, arn: str, count: int) -> None:
    """Give a key so many aliases, alias/0 and so on, all at once."""
    key_id = arn.rpartition("/")[2]
    rows = [
        AliasRow(name=f"alias/{number}", key_id=key_id, creation_ms=0, updated_ms=0, version=1)
        for number in range(count)
    ]
    await service.store.commit(None, [Insert(row) for row in rows])
    service.records.forget(key_id)


async def test_an_alias_is_moved_to_another_key(service: Embedded) -> None:
    """From the very next request on it means that one; it is as old as before, and was changed now."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    [before] = await listed(service)
    assert await named_by(service, "alias/a") == first

    await move(service, "alias/a", second)

    assert await named_by(service, "alias/a") == second
    [entry] = await listed(service)
    assert entry.target_key_id == second.rpartition("/")[2]
    assert (entry.creation_date, entry.last_updated_date >= before.last_updated_date) == (before.creation_date, True)
    assert await listed(service, first) == []
    assert await listed(service, second) == [entry]


async def test_an_alias_may_be_moved_to_where_it_is(service: Embedded) -> None:
    """It stays there; a key with as many aliases as it may have keeps them."""
    arn = await service.make_key()
    await give_names(service, arn, ALIASES_PER_KEY)

    await move(service, "alias/7", arn)

    assert await named_by(service, "alias/7") == arn


async def test_an_alias_is_taken_away(service: Embedded) -> None:
    """From the very next request on it means nothing, and can be given anew."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    assert await named_by(service, "alias/a") == first

    await remove(service, "alias/a")

    with pytest.raises(NotFoundError, match=f"Alias {service.arns.alias('alias/a')} is not found"):
        await named_by(service, "alias/a")
    assert await listed(service) == []
    await name(service, "alias/a", second)
    assert await named_by(service, "alias/a") == second


async def test_an_alias_that_is_not_there_is_not_changed(service: Embedded) -> None:
    """It is told by its ARN."""
    arn = await service.make_key()

    for refused in (move(service, "alias/a", arn), remove(service, "alias/a")):
        with pytest.raises(NotFoundError, match=f"^Alias {service.arns.alias('alias/a')} is not found.$"):
            await refused


@pytest.mark.parametrize("alias", ["alias/kmsd/default", "alias/kmsd/unit", "alias/aws/s3", "mine", "alias/a b"])
async def test_names_that_nobody_gives_are_not_changed(service: Embedded, alias: str) -> None:
    """What default keys are called is kmsd's, also when there is such a key."""
    arn = await service.make_key()
    await named_by(service, "alias/kmsd/default")

    for refused in (move(service, alias, arn), remove(service, alias), remove(service, alias, ROOT)):
        with pytest.raises(InvalidAliasNameError):
            await refused

    assert await named_by(service, "alias/kmsd/default") != arn


@pytest.mark.parametrize("session", [person(1000, gid=1000), BOB], ids=["outside kms-users", "another"])
async def test_whom_the_host_policy_does_not_let_changes_no_alias(service: Embedded, session: Session) -> None:
    """Whatever the keys' policies let him do, and whether there is such an alias or not."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    for arn in (first, second):
        await put_policy(service, arn, ["kms:*"])

    for alias in ("alias/a", "alias/none"):
        for refused in (move(service, alias, second, session), remove(service, alias, session)):
            with pytest.raises(AccessDeniedError, match=f"on resource: {service.arns.alias(alias)} "):
                await refused

    assert await named_by(service, "alias/a") == first


@pytest.mark.parametrize("refusing", ["former", "new"])
async def test_both_keys_have_to_let_the_caller_move_an_alias(service: Embedded, refusing: str) -> None:
    """Each by its own policy: the message names the one that does not."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    closed = first if refusing == "former" else second
    await put_policy(service, closed, ["kms:Encrypt", "kms:PutKeyPolicy"])

    with pytest.raises(AccessDeniedError, match=f"kms:UpdateAlias on resource: {closed} "):
        await move(service, "alias/a", second)

    assert await named_by(service, "alias/a") == first


@pytest.mark.parametrize("operation", ["move", "remove"])
async def test_the_record_of_a_refusal_tells_what_refused_it(service: Embedded, operation: str) -> None:
    """Not what had let the caller act on the other key before."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    await put_policy(service, first, ["kms:Encrypt"])

    with pytest.raises(AccessDeniedError):
        await (move(service, "alias/a", second) if operation == "move" else remove(service, "alias/a"))

    assert service.newest()["errorCode"] == "AccessDeniedException"
    assert service.newest()["additionalEventData"]["decision"] == DEFAULT_DENY


async def test_its_key_has_to_let_the_caller_take_an_alias_away(service: Embedded) -> None:
    """By its policy."""
    arn = await service.make_key()
    await name(service, "alias/a", arn)
    await put_policy(service, arn, ["kms:Encrypt"])

    with pytest.raises(AccessDeniedError, match=f"kms:DeleteAlias on resource: {arn} "):
        await remove(service, "alias/a")

    assert await named_by(service, "alias/a") == arn


async def test_an_alias_moves_from_a_key_in_any_state(service: Embedded) -> None:
    """Above all from one that is to be destroyed; but not to one."""
    first, second, third = [await service.make_key() for _ in range(3)]
    await name(service, "alias/a", first)
    await schedule_deletion(service, first)

    await move(service, "alias/a", second)
    await disable(service, second)
    await move(service, "alias/a", third)

    assert await named_by(service, "alias/a") == third
    with pytest.raises(KMSInvalidStateError, match=f"^{first} is pending deletion.$"):
        await move(service, "alias/a", first)
    await move(service, "alias/a", second)
    [entry] = await listed(service)
    assert entry.target_key_id == second.rpartition("/")[2]


async def test_an_alias_is_taken_from_a_key_in_any_state(service: Embedded) -> None:
    """Whatever becomes of the key."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    await name(service, "alias/b", second)
    await schedule_deletion(service, first)
    await disable(service, second)

    await remove(service, "alias/a")
    await remove(service, "alias/b")

    assert await listed(service) == []


async def test_an_alias_of_a_key_that_is_gone_can_be_moved_and_taken_away(service: Embedded) -> None:
    """Nobody's policy is left to ask but the host's."""
    arn = await service.make_key()
    rows = [
        AliasRow(name=f"alias/{one}", key_id=OTHER_ID, creation_ms=0, updated_ms=0, version=1) for one in ("a", "b")
    ]
    await service.store.commit(None, [Insert(row) for row in rows])

    await move(service, "alias/a", arn)
    await remove(service, "alias/b")

    [entry] = await listed(service)
    assert (entry.alias_name, entry.target_key_id) == ("alias/a", arn.rpartition("/")[2])


async def test_an_alias_stays_with_keys_for_the_same(service: Embedded) -> None:
    """Who encrypts by it must not find a key that signs."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    await change(service, second, key_usage=KeyUsage.SIGN_VERIFY)

    with pytest.raises(ValidationError, match="cannot be moved between keys for ENCRYPT_DECRYPT and SIGN_VERIFY"):
        await move(service, "alias/a", second)

    assert await named_by(service, "alias/a") == first


async def test_a_key_takes_no_more_aliases_than_it_may_have(service: Embedded) -> None:
    """Not by moving either, also when all are moved at the same time."""
    first, second = await service.make_key(), await service.make_key()
    await give_names(service, first, ALIASES_PER_KEY - 2)
    for number in range(5):
        await name(service, f"alias/more/{number}", second)

    moved = await asyncio.gather(
        *(move(service, f"alias/more/{number}", first) for number in range(5)), return_exceptions=True
    )

    assert moved.count(None) == 2
    assert sum(isinstance(one, LimitExceededError) for one in moved) == 3


async def test_the_aliases_of_default_keys_are_the_only_ones_they_have(service: Embedded) -> None:
    """Should a default key's policy ever let somebody name it, the operation does not."""
    owned = await named_by(service, "alias/kmsd/default")
    mine = await service.make_key()
    await change(service, owned, policy=(await row_of(service, mine)).policy)
    await name(service, "alias/a", mine)

    for refused in (name(service, "alias/b", owned), move(service, "alias/a", owned)):
        with pytest.raises(UnsupportedOperationError, match="is managed by kmsd"):
            await refused


@pytest.mark.parametrize(
    ("change_key", "refusal"),
    [(schedule_deletion, KMSInvalidStateError), (partial(put_policy, actions=("kms:Encrypt",)), AccessDeniedError)],
    ids=["state", "policy"],
)
async def test_who_waited_for_another_is_asked_again_for_his_permission(
    service: Embedded, change_key: Callable[[Embedded, str], Awaitable[None]], refusal: type[KmsError]
) -> None:
    """And the key for its state: either may have changed by the time that it is his turn."""
    arn = await service.make_key()
    gate = service.store.gates["commit"] = Gate()
    first = asyncio.ensure_future(name(service, "alias/a", arn))
    await gate.arrived.wait()
    waiting = asyncio.ensure_future(name(service, "alias/b", arn))
    # He was permitted once when he has his intent.
    while [line["eventName"] for line in service.lines()].count("CreateAlias") < 2:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)
    del service.store.gates["commit"]
    await change_key(service, arn)

    gate.opened.set()

    with pytest.raises(ConflictError):
        await first
    with pytest.raises(refusal):
        await waiting
    assert await listed(service) == []


async def test_who_waits_for_one_key_keeps_nobody_from_another(service: Embedded) -> None:
    """Whatever takes so long there."""
    first, second = await service.make_key(), await service.make_key()
    gate = service.store.gates["commit"] = Gate()
    waiting = asyncio.ensure_future(name(service, "alias/a", first))
    await gate.arrived.wait()
    del service.store.gates["commit"]

    await asyncio.wait_for(name(service, "alias/b", second), 10)

    assert [entry.alias_name for entry in await listed(service)] == ["alias/b"]
    gate.opened.set()
    await waiting


async def test_all_aliases_of_a_key_are_taken_away_at_once(service: Embedded) -> None:
    """One after the other, however they were asked for."""
    arn = await service.make_key()
    for number in range(5):
        await name(service, f"alias/{number}", arn)

    await asyncio.gather(*(remove(service, f"alias/{number}") for number in range(5)))

    assert await listed(service) == []


of_each_change = pytest.mark.parametrize("overtaken", ["policy", "state", "alias"])


@of_each_change
@pytest.mark.parametrize("operation", ["create", "move to", "move from", "remove"])
async def test_nothing_slips_in_between_permission_and_commit(
    service: Embedded, operation: str, overtaken: str
) -> None:
    """A key or an alias that somebody changed there is not the one that was looked at; nothing is done."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)
    before = await listed(service)
    arn = second if operation == "move to" else first
    gate = service.store.gates["commit"] = Gate()
    asked = {
        "create": partial(name, service, "alias/b", first),
        "move to": partial(move, service, "alias/a", second),
        "move from": partial(move, service, "alias/a", second),
        "remove": partial(remove, service, "alias/a"),
    }
    changing = asyncio.ensure_future(asked[operation]())
    await gate.arrived.wait()
    del service.store.gates["commit"]
    if overtaken == "policy":
        await put_policy(service, arn, ["kms:Encrypt", "kms:PutKeyPolicy"])
    elif overtaken == "state":
        await schedule_deletion(service, arn)
    elif operation == "create":
        taken = AliasRow(name="alias/b", key_id=OTHER_ID, creation_ms=0, updated_ms=0, version=1)
        await service.store.commit(None, [Insert(taken)])
    else:
        row = await service.store.alias("alias/a")
        assert row is not None
        await service.store.commit(None, [Delete(row)])

    gate.opened.set()

    with pytest.raises(AlreadyExistsError if (operation, overtaken) == ("create", "alias") else ConflictError):
        await changing
    if overtaken != "alias":
        assert await listed(service) == before


async def test_the_records_name_the_alias_and_all_its_keys(service: Embedded) -> None:
    """In the outcome: which key the alias named is found out only then."""
    first, second = await service.make_key(), await service.make_key()
    await name(service, "alias/a", first)

    await move(service, "alias/a", second)
    moved = service.newest()
    await remove(service, "alias/a")
    removed = service.newest()

    assert moved["requestParameters"] == {"aliasName": "alias/a", "targetKeyId": second}
    assert [one["ARN"] for one in moved["resources"]] == [second, first]
    assert removed["requestParameters"] == {"aliasName": "alias/a"}
    assert [one["ARN"] for one in removed["resources"]] == [second]
