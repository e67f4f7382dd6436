"""Names of keys: who may give them, how many, and how they are listed."""

from __future__ import annotations

import asyncio

import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    InvalidAliasNameError,
    LimitExceededError,
    NotFoundError,
)
from kmsd.api.keys import CREATE_ALIAS, LIST_ALIASES, CreateAliasRequest, ListAliasesRequest
from kmsd.api.shapes import AliasListEntry
from kmsd.service.records import ALIASES_PER_KEY
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, person


async def name(service: Embedded, alias: str, arn: str, session: object = ALICE) -> None:
    request = CreateAliasRequest(alias_name=alias, target_key_id=arn)
    await service.ask(session, CREATE_ALIAS, request)  # type: ignore[arg-type] # a Session


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
    """By id or ARN; an alias names no key there."""
    first, second = await service.make_key(), await service.make_key()
    for alias, arn in (("alias/c", first), ("alias/a", first), ("alias/b", second)):
        await name(service, alias, arn)

    assert [entry.alias_name for entry in await listed(service)] == ["alias/a", "alias/b", "alias/c"]
    for form in (first, first.rpartition("/")[2]):
        assert [entry.alias_name for entry in await listed(service, form)] == ["alias/a", "alias/c"]
    with pytest.raises(NotFoundError):
        await listed(service, "alias/a")


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
