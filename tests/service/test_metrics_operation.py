"""What GetMetrics tells of requests and of keys."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.errors import (
    AccessDeniedError,
    KMSInvalidStateError,
    StorageError,
    ThrottlingError,
    UnknownOperationError,
    ValidationError,
)
from kmsd.api.keys import DESCRIBE_KEY, DescribeKeyRequest
from kmsd.api.metrics import GET_METRICS, GetMetricsRequest
from kmsd.api.operation import KeyState
from kmsd.api.symmetric import ENCRYPT, GENERATE_RANDOM, EncryptRequest, GenerateRandomRequest
from kmsd.metrics.meter import REQUEST_BOUNDS
from kmsd.service.batch import Batch
from kmsd.service.key_dates import DAY_MS, dated
from kmsd.store.base import Replace, StoreUnavailableError
from kmsd.store.rows import KeyRow
from kmsd.wire.codec import Request
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate, person, request_frame

UNIT = person(61234, user=None, gid=61234, unit="kmsd-metrics.service")
Series = dict[tuple[str, ...], float]


async def read(service: Embedded) -> dict[str, Series]:
    """The value of each series by its sample's name and the values of its labels, by the names of these in order."""
    text = (await service.ask(ROOT, GET_METRICS, GetMetricsRequest())).text
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def schedule(service: Embedded, arn: str, days: float) -> str:
    """Have a key destroyed in so many days; its id."""
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    deletion_ms = int(service.wall_time * 1000 + days * DAY_MS)
    new = dated(
        msgspec.structs.replace(
            row, key_state=KeyState.PENDING_DELETION, deletion_ms=deletion_ms, version=row.version + 1
        )
    )
    await service.store.commit(str(uuid.uuid4()), [Replace(new)])
    return row.key_id


async def test_requests_are_counted_by_operation_and_outcome(service: Embedded) -> None:
    """Those that succeed, and those that are refused, by the error's code."""
    arn = await service.make_key()
    for _ in range(3):
        await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))

    counted = (await read(service))["kmsd_requests_total"]

    assert counted == {
        ("CreateKey", "ok"): 1,
        ("Encrypt", "ok"): 3,
        ("Encrypt", "AccessDeniedException"): 1,
        ("DescribeKey", "AccessDeniedException"): 1,
    }
    assert (await read(service))["kmsd_requests_total"]["GetMetrics", "ok"] == 1


async def test_times_are_told_of_all_that_were_looked_at(service: Embedded) -> None:
    """Each observation is in the buckets from its own on, whichever kind of operation it was of."""
    await service.ask(BOB, STATUS, StatusRequest())
    await service.ask(BOB, GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=8))
    with pytest.raises(ValidationError):
        await service.ask(BOB, GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=0))

    told = await read(service)

    assert told["kmsd_request_duration_seconds_count"] == {("Status",): 1, ("GenerateRandom",): 2}
    for operation in ("Status", "GenerateRandom"):
        counts = [told["kmsd_request_duration_seconds_bucket"][str(bound), operation] for bound in REQUEST_BOUNDS]
        assert counts == sorted(counts)
        assert told["kmsd_request_duration_seconds_sum"][(operation,)] > 0


async def test_what_nobody_declared_is_one_series(service: Embedded) -> None:
    """However many names a peer makes up, and whatever stands in them."""
    for number in range(10_000):
        batch = Batch()
        name = f'{"x" * (number % 80)}"}}\n{number}\0'
        assert service.pipeline.serve(BOB, Request(1, name, memoryview(b"\x80")), batch) is None
        service.pipeline.finish(batch)

    counted = (await read(service))["kmsd_requests_total"]

    unknown = {key: value for key, value in counted.items() if key[0] == "unknown"}
    assert set(unknown) <= {("unknown", UnknownOperationError.code), ("unknown", ThrottlingError.code)}
    assert sum(unknown.values()) == 10_000
    assert len(counted) == len(unknown)


async def test_what_is_refused_unseen_is_counted(service: Embedded) -> None:
    """By its operation, if that is one."""
    for name in ("Encrypt", "Nonsense"):
        service.pipeline.refuse(BOB, Request(1, name, memoryview(b"\x80")), Batch(), ThrottlingError("too many"))

    told = await read(service)

    assert told["kmsd_requests_total"] == {("Encrypt", "ThrottlingException"): 1, ("unknown", "ThrottlingException"): 1}
    assert "kmsd_request_duration_seconds_count" not in told


async def test_who_hangs_up_is_counted(service: Embedded) -> None:
    """What came of his request is told to nobody."""
    arn = await service.make_key()
    service.store.gates["key"] = Gate()
    service.records.forget(arn.rpartition("/")[2])
    later = service.serve(ALICE, request_frame(DESCRIBE_KEY, DescribeKeyRequest(key_id=arn)), Batch())
    assert later is not None
    task = asyncio.ensure_future(later)
    await service.store.gates["key"].arrived.wait()
    task.cancel()
    await asyncio.wait([task])

    assert (await read(service))["kmsd_requests_total"]["DescribeKey", "canceled"] == 1


async def test_keys_that_will_be_destroyed_are_counted_and_dated(service: Embedded) -> None:
    """Seconds until it happens, by key id; other keys are not told of."""
    arns = [await service.make_key() for _ in range(3)]
    soon = await schedule(service, arns[0], 2)
    later = await schedule(service, arns[1], 30)

    told = await read(service)

    assert told["kmsd_keys_pending_deletion"] == {(): 2}
    left = told["kmsd_key_deletion_seconds"]
    assert left == {(soon,): pytest.approx(2 * 86_400, abs=1), (later,): pytest.approx(30 * 86_400, abs=1)}
    service.wall_time += 3 * 86_400
    assert (await read(service))["kmsd_key_deletion_seconds"][(soon,)] == 0


async def test_a_clock_in_doubt_is_told(service: Embedded) -> None:
    """Nobody knows whether so much time has passed."""
    assert (await read(service))["kmsd_clock_in_doubt"] == {(): 0}

    service.time.step(366 * 86_400)

    assert (await read(service))["kmsd_clock_in_doubt"] == {(): 1}


async def test_uses_of_keys_that_will_be_destroyed_are_counted(service: Embedded) -> None:
    """Each refusal, however many of them are on record."""
    arn = await service.make_key()
    service.records.forget(await schedule(service, arn, 7))
    for _ in range(3):
        with pytest.raises(KMSInvalidStateError):
            await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))

    assert service.pending_uses.count == 3


async def test_what_is_overdue_is_told(service: Embedded) -> None:
    """For how long the first of it is, by the time that is certain."""
    await schedule(service, await service.make_key(), 4)
    assert (await read(service))["kmsd_housekeeping_lag_seconds"] == {(): 0}

    service.time.let_pass(2 * 86_400)

    # The warning, three days before.
    assert (await read(service))["kmsd_housekeeping_lag_seconds"] == {(): pytest.approx(86_400, abs=1)}


async def test_only_the_next_hundred_keys_are_dated(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted, unless there are more than are looked at; the reply is never too large for its frame."""
    row = await service.store.key((await service.make_key()).rpartition("/")[2])
    assert row is not None
    limits = []

    async def due(until_ms: int, *, limit: int) -> list[KeyRow]:
        limits.append((until_ms, limit))
        return [
            msgspec.structs.replace(
                row,
                key_id=str(uuid.UUID(int=number)),
                key_state=KeyState.PENDING_DELETION,
                deletion_ms=until_ms - number,
            )
            for number in range(count)
        ]

    monkeypatch.setattr(service.store, "keys_due", due)
    count = 999
    told = await read(service)
    assert told["kmsd_keys_pending_deletion"] == {(): 999}
    assert set(told["kmsd_key_deletion_seconds"]) == {(str(uuid.UUID(int=number)),) for number in range(899, 999)}

    count = limits[-1][1]
    told = await read(service)
    assert "kmsd_keys_pending_deletion" not in told
    assert len(told["kmsd_key_deletion_seconds"]) == 100


async def test_a_sealed_service_tells_the_rest(service: Embedded) -> None:
    """That it is sealed, and nothing of keys."""
    await schedule(service, await service.make_key(), 7)
    assert (await read(service))["kmsd_sealed"] == {(): 0}
    await service.unsealing.seal()

    told = await read(service)

    assert told["kmsd_sealed"] == {(): 1}
    assert told["kmsd_up"] == {(): 1}
    assert told["kmsd_requests_total"]["CreateKey", "ok"] == 1
    assert not {name for name in told if name.startswith(("kmsd_key", "kmsd_store_readable"))}


@pytest.mark.parametrize("fault", [StoreUnavailableError("disk I/O error"), StorageError("disk I/O error")])
async def test_a_store_that_fails_is_told_of(
    service: Embedded, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """Whoever watches must not be blind when something breaks."""

    async def fail(until_ms: int, *, limit: int) -> list[KeyRow]:
        raise fault

    monkeypatch.setattr(service.store, "keys_due", fail)

    told = await read(service)

    assert told["kmsd_store_readable"] == {(): 0}
    assert told["kmsd_up"] == {(): 1}


async def test_a_store_that_hangs_does_not_hold_the_answer_up(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of as one that fails."""

    async def hang(until_ms: int, *, limit: int) -> list[KeyRow]:
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(service.store, "keys_due", hang)

    assert (await read(service))["kmsd_store_readable"] == {(): 0}


async def test_administrators_and_the_monitoring_unit_may_ask(service: Embedded) -> None:
    """Others may not: it tells which keys are going to be destroyed, and who asks what how often."""
    await service.ask(UNIT, GET_METRICS, GetMetricsRequest())
    for session in (BOB, ALICE, person(61235, user=None, unit="other.service")):
        with pytest.raises(AccessDeniedError):
            await service.ask(session, GET_METRICS, GetMetricsRequest())


async def test_replies_withdrawn_are_counted(service: Embedded) -> None:
    """What was served, but could not be recorded."""
    service.trail.refuses = lambda _: True
    for _ in range(2):
        batch = Batch()
        service.serve(BOB, request_frame(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=8)), batch)
        service.pipeline.finish(batch)
    service.trail.refuses = None

    assert service.pipeline.withdrawn == 2
