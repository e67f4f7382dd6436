"""One uid can neither fill the audit trail nor hide in it: what it may have written is bounded, the rest is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.administration import (
    GET_AUDIT_RECORDS,
    SEAL,
    STATUS,
    GetAuditRecordsRequest,
    SealRequest,
    StatusRequest,
)
from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, KmsError, ThrottlingError
from kmsd.api.grants import RETIRE_GRANT, RetireGrantRequest
from kmsd.api.keys import (
    CREATE_KEY,
    DELETE_ALIAS,
    DESCRIBE_KEY,
    LIST_KEYS,
    CreateKeyRequest,
    DeleteAliasRequest,
    DescribeKeyRequest,
    ListKeysRequest,
)
from kmsd.api.operation import Operation
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.audit.writer import SyncMode
from kmsd.config import Limits
from kmsd.service.audit_budget import AuditBudget
from kmsd.service.batch import Batch
from kmsd.service.call import Session
from kmsd.service.grant_tokens import NONCE_BYTES, make_token
from kmsd.wire.codec import RequestDecoder
from kmsd.wire.framing import LENGTH_BYTES
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, answers_in, person, request_frame

PER_SECOND = 2_000
BURST = 20_000
SMALL = Limits(audit_bytes_per_second_per_uid=PER_SECOND, audit_burst_bytes_per_uid=BURST)
# No record of these tests is longer.
LONGEST_RECORD = 1_500

OpenService = Callable[..., Awaitable[Embedded]]


@pytest.fixture
async def service(open_service: OpenService) -> Embedded:
    return await open_service(limits=SMALL)


async def flood(service: Embedded, session: Session, arn: str, count: int) -> Counter[str]:
    """Ask so often to encrypt; what was answered, by error code."""
    answered: Counter[str] = Counter()
    for _ in range(count):
        try:
            await service.ask(session, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
            answered["done"] += 1
        except KmsError as error:
            answered[error.code] += 1
    return answered


def size(service: Embedded) -> int:
    return (service.directory / "audit.log").stat().st_size


def lines_of(service: Embedded, uid: int) -> list[dict[str, Any]]:
    """The lines of a uid's own requests."""
    lines = [line for line in service.lines() if line["eventType"] != "ServiceEvent"]
    return [line for line in lines if line["userIdentity"]["uid"] == uid]


def summaries(service: Embedded) -> list[dict[str, Any]]:
    return [line for line in service.lines() if line["eventName"] == "SummarizeRefusals"]


def counted(service: Embedded) -> Counter[str]:
    """How many refusals the summaries tell, by error code."""
    total: Counter[str] = Counter()
    for summary in summaries(service):
        details = summary["additionalEventData"]
        assert details["count"] == sum(details["errorCodes"].values())
        total.update(details["errorCodes"])
    return total


async def test_a_flood_of_refusals_takes_bounded_room_and_is_counted(service: Embedded) -> None:
    """What has no line of its own is in a summary, to the last one; others have every line of theirs."""
    arn = await service.make_key(ALICE)
    before = size(service)

    answered = await flood(service, BOB, arn, 500)
    mine = await flood(service, ALICE, arn, 5)
    grown = size(service) - before

    assert answered == {"AccessDeniedException": 500}, "it is told why, above the budget as below it"
    assert grown < BURST + 8 * LONGEST_RECORD
    assert mine == {"done": 5}
    assert len(lines_of(service, ALICE.caller.uid)) == 2 + 5, "the key's two, and five"
    service.accounts.close()
    written = len(lines_of(service, BOB.caller.uid))
    assert BURST // LONGEST_RECORD < written < 100
    assert counted(service) == {"AccessDeniedException": 500 - written}


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        (DELETE_ALIAS, DeleteAliasRequest(alias_name="alias/a")),
        (RETIRE_GRANT, RetireGrantRequest(grant_token=make_token("ab" * 32, bytes(NONCE_BYTES)))),
    ],
    ids=["DeleteAlias", "RetireGrant"],
)
async def test_what_is_decided_behind_an_intent_takes_bounded_room(
    service: Embedded, operation: Operation[Any, Any], request_: msgspec.Struct
) -> None:
    """It is known then that the caller has used up his budget, and not whether he may do it: he gets no intent."""
    before = size(service)
    answered: Counter[str] = Counter()
    for _ in range(100):
        with pytest.raises(KmsError) as refused:
            await service.ask(BOB, operation, request_)
        answered[refused.value.code] += 1

    assert size(service) - before < BURST + 2 * LONGEST_RECORD
    assert answered["ThrottlingException"] > 50
    service.accounts.close()
    assert counted(service) == {"ThrottlingException": answered["ThrottlingException"]}


async def test_a_summary_tells_who_what_how_often_and_when(service: Embedded) -> None:
    """That is what is left of the refusals."""
    arn = await service.make_key(ALICE)
    await flood(service, BOB, arn, 100)
    written = len(lines_of(service, BOB.caller.uid))
    with pytest.raises(ThrottlingError):
        await service.ask(BOB, LIST_KEYS, ListKeysRequest())
    refused = RequestDecoder().decode(memoryview(bytes(request_frame(LIST_KEYS, ListKeysRequest())))[LENGTH_BYTES:])
    service.pipeline.refuse(BOB, refused, Batch(), ThrottlingError("too many"))
    service.accounts.close()

    [summary] = summaries(service)
    assert summary["eventType"] == "ServiceEvent"
    assert summary["userIdentity"]["uid"] == BOB.caller.uid
    details = summary["additionalEventData"]
    assert details.pop("from") <= details.pop("to") <= summary["eventTime"]
    assert details == {
        "count": 102 - written,
        "errorCodes": {"AccessDeniedException": 100 - written, "ThrottlingException": 2},
        "operations": {"Encrypt": 100 - written, "ListKeys": 2},
    }


async def test_what_is_allowed_is_refused_before_it_is_done(service: Embedded) -> None:
    """Reading, changing and cryptography alike; the error says what is used up and when to ask again."""
    arn = await service.make_key(ALICE)
    blob = (await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))).ciphertext_blob
    answered = await flood(service, ALICE, arn, 100)
    assert set(answered) == {"done", "ThrottlingException"}
    written = service.trail.head[0]
    service.store.calls.clear()

    asked: list[tuple[Any, msgspec.Struct]] = [
        (ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x"))),
        (DECRYPT, DecryptRequest(ciphertext_blob=blob)),
        (DESCRIBE_KEY, DescribeKeyRequest(key_id=arn)),
        (CREATE_KEY, CreateKeyRequest()),
        (STATUS, StatusRequest()),
    ]
    for operation, request in asked:
        with pytest.raises(ThrottlingError, match=r"audit budget of uid 1000 is used up.*ask again in \d+ s") as told:
            await service.ask(ALICE, operation, request)
        assert told.value.retryable
        assert told.value.request_id
    assert "commit" not in service.store.calls
    assert service.trail.head[0] == written


async def test_after_a_pause_it_works_again(service: Embedded) -> None:
    """The summary stands before the first request that is served then."""
    arn = await service.make_key(ALICE)
    first = await flood(service, ALICE, arn, 100)
    assert service.accounts.count_exceeded() == 1
    service.now += 30.0
    assert service.accounts.count_exceeded() == 0

    again = await flood(service, ALICE, arn, 100)

    assert again["done"] > first["done"] // 2
    [summary] = summaries(service)
    assert summary["additionalEventData"]["count"] == first["ThrottlingException"]
    before, after = (
        [line["seq"] for line in lines_of(service, 1000) if (line["seq"] < summary["seq"]) is earlier]
        for earlier in (True, False)
    )
    assert len(before) == 2 + first["done"]
    assert len(after) == again["done"]


async def test_who_asks_on_comes_back_a_second_s_worth_at_a_time(service: Embedded) -> None:
    """Never giving up neither keeps a uid out nor lets it have more than its rate."""
    arn = await service.make_key(ALICE)
    await flood(service, BOB, arn, 100)
    before, asked = size(service), 0
    for _ in range(100):
        service.now += 0.1
        asked += sum((await flood(service, BOB, arn, 5)).values())

    assert size(service) - before < 10 * PER_SECOND + 4 * LONGEST_RECORD
    assert 3 <= len(summaries(service)) <= 10
    service.accounts.close()
    assert counted(service).total() + len(lines_of(service, BOB.caller.uid)) == 100 + asked


async def test_a_summary_is_written_every_minute(service: Embedded) -> None:
    """As long as there is something to tell."""
    arn = await service.make_key(ALICE)
    await flood(service, BOB, arn, 100)
    service.accounts.start()
    await service.summary_sleeps.wake()
    await service.summary_sleeps.again()
    assert len(summaries(service)) == 1
    assert service.summary_sleeps.seconds == [60.0, 60.0]

    await service.summary_sleeps.wake()
    await service.summary_sleeps.again()
    assert len(summaries(service)) == 1
    assert counted(service).total() + len(lines_of(service, BOB.caller.uid)) == 100


async def test_administrators_can_always_look_and_seal(service: Embedded) -> None:
    """Whatever they have done before; it is on record, and everything else of theirs waits."""
    arn = await service.make_key(ALICE)
    await flood(service, ROOT, arn, 100)
    with pytest.raises(ThrottlingError):
        await service.ask(ROOT, LIST_KEYS, ListKeysRequest())

    await service.ask(ROOT, STATUS, StatusRequest())
    await service.ask(ROOT, GET_AUDIT_RECORDS, GetAuditRecordsRequest())
    await service.ask(ROOT, SEAL, SealRequest())

    names = [line["eventName"] for line in lines_of(service, 0)]
    assert names[-4:] == ["Status", "GetAuditRecords", "Seal", "Seal"], "the last has an intent and an outcome"


async def test_others_cannot_fill_the_trail_by_looking(service: Embedded) -> None:
    """Status is for everybody, within the budget."""
    before = size(service)
    refusals = 0
    for _ in range(100):
        try:
            await service.ask(BOB, STATUS, StatusRequest())
        except ThrottlingError:
            refusals += 1
    assert refusals > 50
    assert size(service) - before < BURST + LONGEST_RECORD


async def test_what_was_begun_gets_its_outcome(open_service: OpenService) -> None:
    """An intent that uses the budget up is not left open."""
    service = await open_service(limits=Limits(audit_bytes_per_second_per_uid=1, audit_burst_bytes_per_uid=1))
    await service.make_key(ALICE)

    assert [line["eventType"] for line in lines_of(service, 1000)] == ["ApiCallIntent", "ApiCallOutcome"]
    with pytest.raises(ThrottlingError):
        await service.make_key(ALICE)


async def test_those_whom_passwd_does_not_know_share_a_budget(service: Embedded) -> None:
    """Who can make uids at will gets no fresh budget with each; the summary names some of them."""
    arn = await service.make_key(ALICE)
    before = size(service)
    for uid in range(100_000, 100_200):
        await flood(service, person(uid, user=None, gid=uid), arn, 1)
    with pytest.raises(AccessDeniedError):
        await service.ask(person(99_999, user=None), DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    assert size(service) - before < BURST + LONGEST_RECORD

    service.accounts.close()
    [summary] = summaries(service)
    assert len(summary["additionalEventData"]["uids"]) == 32
    written = [line for line in service.lines() if line["eventType"] == "ApiCall"]
    assert counted(service).total() + len(written) == 201
    assert (await flood(service, ALICE, arn, 1)) == {"done": 1}


async def test_a_summary_is_bounded_whatever_was_asked(service: Embedded) -> None:
    """Names that nobody declared are the peer's own text."""
    arn = await service.make_key(ALICE)
    await flood(service, BOB, arn, 100)
    decoder = RequestDecoder()
    for number in range(300):
        body = msgspec.msgpack.encode({"id": 1, "op": f"{number}" + "\u202e" * 20, "params": {}})
        assert service.pipeline.serve(BOB, decoder.decode(memoryview(body)), Batch()) is None
    before = size(service)
    service.accounts.close()

    assert size(service) - before < 32 * 64 * 6 + LONGEST_RECORD
    [summary] = summaries(service)
    details = summary["additionalEventData"]
    assert len(details["operations"]) == 32
    assert details["errorCodes"]["UnknownOperationException"] == 300


async def test_what_cannot_be_written_is_told_later(service: Embedded) -> None:
    """No count is lost to a trail that cannot be written for a while."""
    arn = await service.make_key(ALICE)
    answered = await flood(service, BOB, arn, 100)
    service.trail.refuses = lambda _: True
    service.now += 3600
    with pytest.raises(AuditUnavailableError):
        await service.ask(BOB, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
    assert '"recorded": "SummarizeRefusals"' in service.log.getvalue()
    service.trail.refuses = None

    service.accounts.close()

    assert counted(service).total() + len(lines_of(service, BOB.caller.uid)) == answered.total()


async def test_a_counted_refusal_is_answered_in_every_sync_mode(open_service: OpenService) -> None:
    """A batch without records has nothing to wait for."""
    service = await open_service(limits=SMALL, sync=SyncMode.ALWAYS)
    arn = await service.make_key(ALICE)
    await flood(service, BOB, arn, 100)
    batch = Batch()
    frame = request_frame(ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
    assert service.serve(BOB, frame, batch) is None
    service.pipeline.finish(batch)
    await service.pipeline.settle(batch)

    assert not batch.records
    [answer] = answers_in(batch.out)
    assert isinstance(answer.error, AccessDeniedError)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 3000)), max_size=60))
def test_no_more_is_written_than_rate_and_burst_allow(steps: list[tuple[float, int]]) -> None:
    """Over any time, but for a sixteenth of the burst and the last record; and who waits as told is let in."""
    now = 1000.0
    budget = AuditBudget(7, bytes_per_second=PER_SECOND, burst_bytes=BURST, clock=lambda: now, wall_clock=lambda: now)
    written = 0
    for pause, record in steps:
        now += pause
        if budget.exceeded and not budget.resume():
            continue
        written += record
        budget.charge(record)
        assert written <= BURST * 17 / 16 + PER_SECOND * (now - 1000.0) + record + 1e-6
    if budget.exceeded:
        now += (written + BURST) / PER_SECOND + 1
        assert budget.resume()
        assert not budget.exceeded
