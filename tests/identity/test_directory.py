"""Names and ids of the host, each asked once and remembered for a while."""

from __future__ import annotations

import asyncio
import gc
import grp
import os
import pwd
from typing import Any

import pytest

from kmsd.identity.answering import Found, Kind, Subject
from kmsd.identity.directory import Directory
from kmsd.identity.lookups import NoAnswerError
from kmsd.identity.principals import NameServiceError
from tests.support.at_once import directory_of


class Asked:
    """A source that notes what it is asked, and answers with what it is told to."""

    def __init__(self) -> None:
        self.questions: list[tuple[Kind, Subject]] = []
        self.answers: dict[tuple[Kind, Subject], Found] = {}
        self.failure: NameServiceError | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def ask(self, kind: Kind, subject: Subject) -> Found:
        self.questions.append((kind, subject))
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return self.answers.get((kind, subject))


class Bench:
    """A directory whose time the test makes pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.source = Asked()
        self.directory = Directory(self.source, lambda: self.now, lifetime_seconds=10)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_the_systems_names_are_found_both_ways() -> None:
    """Root is there on every host."""
    names = directory_of()
    root, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name

    assert (await names.user_name(0), await names.uid_of(root)) == (root, 0)
    assert (await names.group_name(0), await names.gid_of(group)) == (group, 0)
    assert await names.groups_of(root) == frozenset(os.getgrouplist(root, 0))


async def test_ids_and_names_that_the_system_does_not_know_are_none() -> None:
    """Also the highest ids, and names nobody could have."""
    names = directory_of()

    assert await names.user_name(2**32 - 2) is None
    assert await names.group_name(2**32 - 2) is None
    assert await names.uid_of("no such user") is None
    assert await names.gid_of("no such group") is None
    assert await names.groups_of("no such user") == frozenset()


async def test_a_name_is_asked_for_again_after_its_lifetime(bench: Bench) -> None:
    """Within it, the name service is not asked twice."""
    await bench.directory.uid_of("alice")
    bench.now = 9.9
    await bench.directory.uid_of("alice")
    assert bench.source.questions == [("uid_of", "alice")]
    bench.now = 10.0
    await bench.directory.uid_of("alice")

    assert bench.source.questions == [("uid_of", "alice")] * 2


async def test_what_is_remembered_is_bounded(bench: Bench) -> None:
    """A user who connects as each of 65,536 subordinate uids does not fill the memory."""
    for uid in range(3_000_000_000, 3_000_010_000):
        await bench.directory.user_name(uid)

    assert len(bench.directory._remembered) <= 4096


async def test_many_who_wait_for_a_name_ask_once(bench: Bench) -> None:
    """And one who gives up does not take the answer from the others."""
    bench.source.answers["user_name", 1000] = "alice"
    bench.source.may_answer.clear()
    first, *others = [asyncio.create_task(bench.directory.user_name(1000)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    bench.source.may_answer.set()

    assert await asyncio.gather(*others) == ["alice", "alice"]
    assert bench.source.questions == [("user_name", 1000)]


async def test_a_question_that_hung_is_not_asked_again_soon(bench: Bench) -> None:
    """So that one name which the service hangs on does not take all its attention."""
    bench.source.failure = NoAnswerError("it hangs")
    with pytest.raises(NameServiceError):
        await bench.directory.user_name(1000)
    bench.source.failure = None
    with pytest.raises(NameServiceError, match="it hangs"):
        await bench.directory.user_name(1000)
    assert await bench.directory.user_name(1001) is None
    bench.now = 30.0

    assert await bench.directory.user_name(1000) is None


async def test_a_question_that_nobody_waits_for_any_more_may_fail(bench: Bench) -> None:
    """It is no fault that the log has to tell of."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    bench.source.may_answer.clear()
    bench.source.failure = NoAnswerError("hangs")
    waiting = asyncio.ensure_future(bench.directory.user_name(1000))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})

    bench.source.may_answer.set()
    with pytest.raises(NameServiceError):
        await bench.directory.uid_of("alice")
    bench.source.failure = None
    del waiting
    gc.collect()

    assert bench.source.questions == [("user_name", 1000), ("uid_of", "alice")]
    assert faults == []


async def test_that_nobody_can_be_asked_is_not_remembered(bench: Bench) -> None:
    """A child that is started anew is there in a moment."""
    bench.source.failure = NameServiceError("it is being started")
    with pytest.raises(NameServiceError):
        await bench.directory.user_name(1000)
    bench.source.failure = None

    assert await bench.directory.user_name(1000) is None


@pytest.mark.parametrize("one", [61184, 65519])
async def test_ids_of_services_that_run_have_no_names(bench: Bench, one: int) -> None:
    """The next service may be given the id, and would inherit what was meant for the name."""
    bench.source.answers |= {("user_name", one): "dyn", ("group_name", one): "dyn"}
    bench.source.answers |= {("uid_of", "dyn"): one, ("gid_of", "dyn"): one}
    names = bench.directory

    assert (await names.user_name(one), await names.group_name(one)) == (None, None)
    assert (await names.uid_of("dyn"), await names.gid_of("dyn")) == (None, None)


@pytest.mark.parametrize("one", [61183, 65520])
async def test_ids_beside_those_are_like_others(bench: Bench, one: int) -> None:
    """The range is systemd's, to the number."""
    bench.source.answers |= {("user_name", one): "carol", ("uid_of", "carol"): one}

    assert await bench.directory.user_name(one) == "carol"
    assert await bench.directory.uid_of("carol") == one


async def test_the_names_of_a_policy_are_looked_up_together(bench: Bench) -> None:
    """What else is among them is no name."""
    bench.source.answers |= {("uid_of", "alice"): 1000, ("gid_of", "alice"): 7}

    known = await bench.directory.known(["user:alice", "user:bob", "group:alice", "uid:5", "*", "unit:a.service"])

    assert (known.uid_of("alice"), known.gid_of("alice"), known.uid_of("bob")) == (1000, 7, None)
    assert (known.user_name(1000), known.group_name(7), known.user_name(7)) == ("alice", "alice", None)
    assert sorted(bench.source.questions) == [("gid_of", "alice"), ("uid_of", "alice"), ("uid_of", "bob")]


async def test_a_policys_names_are_not_known_in_part(bench: Bench) -> None:
    """Else those that could not be asked for would look as if they did not exist."""
    bench.source.failure = NameServiceError("away")

    with pytest.raises(NameServiceError):
        await bench.directory.known(["user:alice"])
