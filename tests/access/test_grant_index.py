"""Grants of one caller on one key: found by what is asked, as if each were looked at."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access.grants import GRANTABLE_ACTIONS, Grant, GrantIndex
from tests.support.given_facts import GivenFacts

CONTEXTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"), max_size=3)
ACTIONS = ["kms:Decrypt", "kms:Encrypt", "kms:CreateGrant", "kms:DescribeKey", "kms:RetireGrant"]


@st.composite
def grants(draw: st.DrawFn) -> list[Grant]:
    """Some grants, each with one constraint or none."""
    made = []
    for number in range(draw(st.integers(0, 6))):
        constraint = draw(st.sampled_from([None, "equals", "subset"]))
        made.append(
            Grant(
                grant_id=f"{number}",
                actions=draw(st.frozensets(st.sampled_from(ACTIONS), min_size=1)),
                equals=draw(CONTEXTS) if constraint == "equals" else None,
                subset=draw(CONTEXTS) if constraint == "subset" else None,
            )
        )
    return made


def permits(grant: Grant, action: str, context: dict[str, str] | None) -> bool:
    """AWS's rule, read off one grant."""
    if action not in grant.actions:
        return False
    if action in {"kms:CreateGrant", "kms:DescribeKey", "kms:RetireGrant"} or (
        grant.equals is None and not grant.subset
    ):
        return True
    if context is None:
        return False
    if grant.equals is not None:
        return grant.equals == context
    return all(context.get(name) == value for name, value in (grant.subset or {}).items())


@given(made=grants(), action=st.sampled_from(ACTIONS), context=st.none() | CONTEXTS)
def test_a_grant_is_found_if_one_permits_it(made: list[Grant], action: str, context: dict[str, str] | None) -> None:
    """And it is one that does."""
    found = GrantIndex(made).find(action, context)
    permitting = {one.grant_id for one in made if permits(one, action, context)}

    assert found in permitting if permitting else found is None


@given(made=grants(), action=st.sampled_from(ACTIONS), context=st.none() | CONTEXTS)
def test_a_step_says_what_the_index_finds(made: list[Grant], action: str, context: dict[str, str] | None) -> None:
    """Explaining looks at each grant by itself."""
    for grant in made:
        if action in grant.actions:
            assert grant.step(action, GivenFacts(context=context)).holds is permits(grant, action, context)


@pytest.mark.parametrize(
    ("grant", "context", "reason"),
    [
        (Grant("1", frozenset()), None, "the grantee is the caller"),
        (Grant("1", frozenset(), equals={"a": "b"}), None, "the request can have no encryption context, and the grant"),
        (
            Grant("1", frozenset(), equals={"a": "b"}),
            {"a": "b", "c": "d"},
            "the encryption context is not exactly what",
        ),
        (
            Grant("1", frozenset(), subset={"a": "b"}),
            {"a": "c"},
            "the encryption context has not what the grant wants for 'a'",
        ),
    ],
)
def test_a_step_says_why(grant: Grant, context: dict[str, str] | None, reason: str) -> None:
    """For people who ask."""
    step = grant.step("kms:Decrypt", GivenFacts(context=context))

    assert step.reason.startswith(reason)
    assert (step.origin, step.effect) == ("grant 1", "Allow")


def test_the_same_grant_is_found_every_time() -> None:
    """Of several that permit it without a constraint, the one with the lowest id."""
    made = [Grant(f"{number}", frozenset({"kms:Decrypt"})) for number in (3, 1, 2)]

    assert GrantIndex(made).find("kms:Decrypt", {}) == "1"
    assert GrantIndex(reversed(made)).find("kms:Decrypt", None) == "1"


def test_finding_one_of_many_takes_no_longer() -> None:
    """Constraints that share most of their pairs are told apart by the one that they do not share."""
    many = [Grant(f"{n:064}", frozenset({"kms:Decrypt"}), subset={"app": "db", "n": f"{n}"}) for n in range(20_000)]
    index = GrantIndex(many)
    began = time.perf_counter()
    found = [index.find("kms:Decrypt", {"app": "db", "n": f"{n}", "more": "x"}) for n in range(0, 20_000, 20)]
    missed = [index.find("kms:Decrypt", {"app": "db", "n": "none"}) for _ in range(1000)]

    assert found == [f"{n:064}" for n in range(0, 20_000, 20)]
    assert missed == [None] * 1000
    assert time.perf_counter() - began < 0.5


def test_grants_permit_what_aws_lets_them() -> None:
    """Actions of grants are those of operations, and using, not managing, a key is what most of them are."""
    assert {"kms:Decrypt", "kms:GenerateDataKey", "kms:CreateGrant", "kms:RetireGrant"} < GRANTABLE_ACTIONS
    assert GRANTABLE_ACTIONS.isdisjoint({"kms:PutKeyPolicy", "kms:RevokeGrant", "kms:ScheduleKeyDeletion"})


def test_grants_that_permit_nothing_new_take_no_memory_and_no_time() -> None:
    """As many as a key may have, of one constraint."""
    alike = [Grant(f"{n:064}", frozenset({"kms:Decrypt"}), subset={"app": "db"}) for n in range(50_000)]
    index = GrantIndex(alike)
    began = time.perf_counter()
    missed = [index.find("kms:Encrypt", {"app": "db"}) for _ in range(1000)]

    assert missed == [None] * 1000
    assert index.find("kms:Decrypt", {"app": "db"}) == f"{0:064}"
    assert time.perf_counter() - began < 0.5


@given(made=grants(), action=st.sampled_from(ACTIONS), context=CONTEXTS)
def test_a_grant_under_a_grant_is_never_wider(made: list[Grant], action: str, context: dict[str, str]) -> None:
    """However long the chain: what the last one permits, the first one does."""
    chain: list[Grant] = []
    for grant in made:
        if not chain or chain[-1].covers(grant):
            chain.append(grant)

    if chain and permits(chain[-1], action, context):
        assert permits(chain[0], action, context)


@given(made=grants())
def test_a_grant_covers_itself_and_what_permits_less(made: list[Grant]) -> None:
    """With fewer actions, and with more pairs."""
    for grant in made:
        assert grant.covers(grant)
        for action in grant.actions:
            assert grant.covers(Grant("less", frozenset({action}), grant.equals, grant.subset))
        if grant.equals is None:
            stricter = {**(grant.subset or {}), "more": "pairs"}
            assert grant.covers(Grant("less", grant.actions, subset=stricter))
            assert grant.covers(Grant("less", grant.actions, equals=stricter))


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        (Grant("1", frozenset({"a"})), Grant("2", frozenset({"a", "b"}))),
        (Grant("1", frozenset({"a"}), equals={"c": "d"}), Grant("2", frozenset({"a"}))),
        (Grant("1", frozenset({"a"}), equals={"c": "d"}), Grant("2", frozenset({"a"}), subset={"c": "d"})),
        (Grant("1", frozenset({"a"}), equals={"c": "d"}), Grant("2", frozenset({"a"}), equals={"c": "d", "e": "f"})),
        (Grant("1", frozenset({"a"}), subset={"c": "d"}), Grant("2", frozenset({"a"}))),
        (Grant("1", frozenset({"a"}), subset={"c": "d"}), Grant("2", frozenset({"a"}), subset={"c": "x", "e": "f"})),
        (Grant("1", frozenset({"a"}), subset={"c": "d"}), Grant("2", frozenset({"a"}), equals={"e": "f"})),
    ],
)
def test_a_grant_does_not_cover_what_permits_more(parent: Grant, child: Grant) -> None:
    """Other actions, or encryption contexts that it does not permit."""
    assert not parent.covers(child)
