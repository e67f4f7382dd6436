"""SubscribeEvents: what subscribers are sent, slow ones and those that hang up, and what becomes an event."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmsd.api.administration import SEAL, SealRequest
from kmsd.api.errors import AccessDeniedError, KmsError, KMSInvalidStateError, LimitExceededError, ThrottlingError
from kmsd.api.events import (
    SUBSCRIBE_EVENTS,
    Event,
    SubscribeEventsRequest,
    SubscribeEventsResponse,
    decode_event,
)
from kmsd.api.keys import DESCRIBE_KEY, DescribeKeyRequest
from kmsd.api.operation import KeyState
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.config import Limits
from kmsd.service import event_feed, events, pending_uses
from kmsd.service.audit_trouble import AuditTrouble
from kmsd.service.call import Session
from kmsd.service.event_feed import EventFeed
from kmsd.service.pending_uses import EVERY_SECONDS
from kmsd.service.unsealing import system_record
from kmsd.store.base import Replace
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, person

EVENT = system_record("TokenBack")


class Subscription:
    """One end of a stream."""

    def __init__(self, response: SubscribeEventsResponse, channel: socket.socket) -> None:
        self.response = response
        self.channel = channel
        self._rest = b""

    async def next(self) -> Event | None:
        """The next event, None at the end of the stream."""
        while b"\n" not in self._rest:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.channel, 65536), 10)
            if not data:
                assert self._rest == b""
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return decode_event(line)

    async def all(self) -> list[Event]:
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@asynccontextmanager
async def subscribed(service: Embedded, session: Session = ROOT, **members: object) -> AsyncIterator[Subscription]:
    request = SubscribeEventsRequest(**members)  # type: ignore[arg-type] # members of any test
    batch = await asyncio.wait_for(service.reply_to(session, SUBSCRIBE_EVENTS, request), 10)
    response = service.response(batch, SUBSCRIBE_EVENTS)
    [descriptor] = batch.descriptors
    with socket.socket(fileno=descriptor) as channel:
        channel.setblocking(False)
        yield Subscription(response, channel)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever is waited for tells nobody
            await asyncio.sleep(0.001)


async def happened(service: Embedded, count: int = 1) -> list[int]:
    """So many events; their numbers."""
    service.trail.append([EVENT] * count)
    head = service.trail.head[0]
    log = await service.feed.opened()
    await until(lambda: log.last == head)
    return [*range(head - count + 1, head + 1)]


async def test_a_stream_ends_behind_the_last_event(service: Embedded) -> None:
    """From any number on, and the answer tells where it ends."""
    numbers = await happened(service, 3)

    for after, left in ((0, numbers), (numbers[0], numbers[1:]), (numbers[0] + 1, numbers[2:]), (numbers[2], [])):
        async with subscribed(service, after_sequence=after) as subscription:
            assert [event.sequence for event in await subscription.all()] == left
            assert subscription.response.after_sequence == after
            assert subscription.response.until_sequence == max(after, numbers[-1])
            assert subscription.response.dropped_until == 0


async def test_a_number_that_the_trail_has_not_got_yet_is_no_beginning(service: Embedded) -> None:
    """It is of another trail, or a mistake; the answer says where the stream begins instead."""
    await happened(service)
    head = service.trail.head[0]

    async with subscribed(service, after_sequence=99, follow=True) as subscription:
        assert (subscription.response.after_sequence, subscription.response.until_sequence) == (head, head)
        numbers = await happened(service, 2)

        assert [(await told(subscription)).sequence for _ in numbers] == numbers


async def test_without_a_beginning_only_what_happens_from_now_on_comes(service: Embedded) -> None:
    """A follower gets it at once."""
    await happened(service)
    async with subscribed(service) as subscription:
        assert await subscription.all() == []
    async with subscribed(service, follow=True) as subscription:
        assert subscription.response.after_sequence == subscription.response.until_sequence
        numbers = await happened(service, 2)

        assert [(await told(subscription)).sequence for _ in numbers] == numbers


async def told(subscription: Subscription) -> Event:
    event = await subscription.next()
    assert event is not None
    return event


async def test_events_since_a_time(service: Embedded) -> None:
    """In whole seconds, as events tell them."""
    numbers = await happened(service, 2)
    now = dt.datetime.fromtimestamp(time.time(), dt.UTC)

    async with subscribed(service, since=now - dt.timedelta(minutes=1)) as subscription:
        assert [event.sequence for event in await subscription.all()] == numbers
    async with subscribed(service, since=now + dt.timedelta(minutes=1)) as subscription:
        assert await subscription.all() == []
        assert subscription.response.after_sequence == numbers[-1]


async def test_sealing_is_told_while_sealed(service: Embedded) -> None:
    """And events can be asked for then."""
    async with subscribed(service, follow=True) as subscription:
        await service.ask(ROOT, SEAL, SealRequest())
        event = await told(subscription)
    async with subscribed(service, after_sequence=0) as subscription:
        again = await told(subscription)

    assert (event.detail_type, event.detail["by"]) == ("Sealed", "root")
    assert again == event


async def test_only_administrators_and_the_unit_are_told(service: Embedded) -> None:
    """Events say who did what; each subscription is on record."""
    unit = Session(dataclasses.replace(ALICE.caller, unit="kmsd-events.service"), ALICE.actor)
    with pytest.raises(AccessDeniedError):
        await service.ask(ALICE, SUBSCRIBE_EVENTS, SubscribeEventsRequest())
    async with subscribed(service, unit, after_sequence=5, follow=True):
        record = service.newest()

    assert (record["eventName"], record.get("errorCode")) == ("SubscribeEvents", None)
    assert record["requestParameters"] == {"afterSequence": 5, "follow": True}


async def test_who_is_slow_misses_nothing(service: Embedded) -> None:
    """The daemon waits for him, and goes on with everything else."""
    async with subscribed(service, after_sequence=0, follow=True) as slow:
        slow.channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        numbers = await happened(service, 2000)
        async with subscribed(service, after_sequence=0) as quick:
            assert [event.sequence for event in await quick.all()] == numbers

        assert [(await told(slow)).sequence for _ in numbers] == numbers


@pytest.mark.parametrize("sent", [0, 3000])
async def test_who_hangs_up_is_noticed(service: Embedded, sent: int) -> None:
    """While nothing happens, and while he is being sent more than he takes."""
    async with subscribed(service, after_sequence=0, follow=True):
        if sent:
            await happened(service, sent)
        assert len(service.events._subscribers) == 1

    await until(lambda: not service.events._subscribers)


async def test_who_speaks_is_hung_up_on(service: Embedded) -> None:
    """There is nothing to say."""
    async with subscribed(service, follow=True) as subscription:
        subscription.channel.send(b"?")
        with pytest.raises(ConnectionResetError):
            await subscription.all()


async def test_subscriptions_are_bounded(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """By uid, and in all; whoever ends one makes room."""
    monkeypatch.setattr(events, "MOST", 3)
    monkeypatch.setattr(events, "MOST_PER_UID", 2)
    other = person(0, user="toor", gid=0, administrator=True)
    other.place = 1
    async with subscribed(service, follow=True), subscribed(service, follow=True):
        with pytest.raises(LimitExceededError, match="by this uid"):
            await service.ask(ROOT, SUBSCRIBE_EVENTS, SubscribeEventsRequest())
        async with subscribed(service, other, follow=True):
            with pytest.raises(LimitExceededError, match="3 subscriptions"):
                await service.ask(other, SUBSCRIBE_EVENTS, SubscribeEventsRequest())
    await until(lambda: not service.events._subscribers)

    async with subscribed(service, follow=True):
        pass


async def test_who_asks_for_all_there_is_waits_until_it_is_known(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever: its record may not get to the disk."""
    monkeypatch.setattr(event_feed, "_AGAIN_SECONDS", 0.01)
    service.trail.unsyncable = True
    service.trail.append([EVENT])
    monkeypatch.setattr(events, "LOG_SECONDS", 0.01)
    with pytest.raises(ThrottlingError, match="ask again"):
        await service.ask(ROOT, SUBSCRIBE_EVENTS, SubscribeEventsRequest(after_sequence=0))
    service.trail.unsyncable = False
    monkeypatch.setattr(events, "LOG_SECONDS", 10)
    async with subscribed(service, after_sequence=0) as subscription:
        assert [event.sequence for event in await subscription.all()] == [1]


async def test_what_has_just_happened_is_there(service: Embedded) -> None:
    """Whoever was answered finds the event of it."""
    for count in range(1, 20):
        service.trail.append([EVENT])
        async with subscribed(service, after_sequence=0) as subscription:
            assert len(await subscription.all()) == count


async def test_a_log_that_was_cut_holds_up_nobody(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks then is asked to come again, and finds everything; who follows goes on likewise."""
    monkeypatch.setattr(event_feed, "_AGAIN_SECONDS", 0.01)
    numbers = await happened(service, 3)
    async with subscribed(service, after_sequence=numbers[-1], follow=True) as follower:
        os.truncate(service.feed._path, 300)
        with pytest.raises(ThrottlingError, match="ask again"):
            await service.ask(ROOT, SUBSCRIBE_EVENTS, SubscribeEventsRequest(after_sequence=numbers[0]))
        assert await follower.all() == []
    async with subscribed(service, after_sequence=0) as subscription:
        assert [event.sequence for event in await subscription.all()] == numbers


async def test_who_reads_a_log_while_it_is_cut_comes_to_an_end(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He asks again from where he was, and misses nothing."""
    monkeypatch.setattr(event_feed, "_AGAIN_SECONDS", 0.01)
    numbers = await happened(service, 2000)
    async with subscribed(service, after_sequence=0, follow=True) as follower:
        os.truncate(service.feed._path, 0)
        last = max([event.sequence for event in await follower.all()], default=0)
    async with subscribed(service, after_sequence=last) as subscription:
        assert [event.sequence for event in await subscription.all()] == numbers[last:]


async def test_the_last_event_is_that_of_the_stop(service: Embedded) -> None:
    """Then the stream ends."""
    async with subscribed(service, follow=True) as subscription:
        service.trail.append([system_record("Stop")])
        await service.feed.close(10)
        closing = asyncio.ensure_future(service.events.close(10))

        assert [event.detail_type for event in await subscription.all()] == ["Stopped"]
        await closing


async def test_a_stop_does_not_wait_for_who_does_not_read(service: Embedded) -> None:
    """He is hung up on, and finds the rest later."""
    async with subscribed(service, after_sequence=0, follow=True):
        await happened(service, 3000)
        await service.events.close(0.01)

        assert not service.events._subscribers


@pytest.fixture
async def trouble(service: Embedded) -> AsyncIterator[AuditTrouble]:
    feed: EventFeed = service.feed
    one = AuditTrouble(
        trail=service.trail,
        tell=lambda reason, since: feed.tell(feed._projection.trouble(reason, since)),
        is_over=lambda: feed.tell(None),
        logger=service.checkpoints._logger,
        clock=time.time,
        sleep=lambda _: asyncio.sleep(0.01),
    )
    one.start()
    yield one
    await one.close()


async def test_trouble_of_the_trail_is_told_at_once_and_on_record_later(
    service: Embedded, trouble: AuditTrouble
) -> None:
    """Whoever follows knows while nothing can be on record; everybody knows afterwards."""
    path, away = service.directory / "audit.log", service.directory / "away"
    async with subscribed(service, follow=True) as subscription:
        path.rename(away)
        for _ in range(3):
            with pytest.raises(KmsError):
                service.trail.append([EVENT])
        first = await told(subscription)
        await asyncio.sleep(0.03)
        away.rename(path)
        second = await told(subscription)
    async with subscribed(service, after_sequence=0) as subscription:
        kept = await subscription.all()

    assert (first.detail_type, first.sequence) == ("Audit Trail In Trouble", 0)
    assert (second.detail_type, second.detail["reason"]) == ("Audit Trail Well Again", first.detail["reason"])
    assert kept == [second]
    assert service.log.getvalue().count("audit_trouble") == 1
    assert service.log.getvalue().count("audit_well_again") == 1


async def pending(service: Embedded, *, session: Session = ALICE) -> str:
    """The ARN of a key that is pending deletion."""
    arn = await service.make_key(session)
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    await service.store.commit(
        None, [Replace(replace(row, key_state=KeyState.PENDING_DELETION, version=row.version + 1))]
    )
    service.records.forget(row.key_id)
    return arn


async def use(service: Embedded, arn: str, count: int = 1, *, session: Session = ALICE) -> None:
    for _ in range(count):
        with pytest.raises(KMSInvalidStateError, match="is pending deletion"):
            await service.ask(session, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))


def uses(service: Embedded) -> list[tuple[str, int]]:
    """What is on record of uses of keys that are pending deletion: who, and how many."""
    return [
        (line["userIdentity"]["userName"], line["additionalEventData"]["count"])
        for line in service.lines()
        if line["eventName"] == pending_uses.KEY_USED_WHILE_PENDING_DELETION
    ]


async def test_a_flood_of_refused_uses_is_one_event_an_hour(service: Embedded) -> None:
    """With how many there were since; another key has its own."""
    arn, other = await pending(service), await pending(service)
    await use(service, arn, 50)
    await use(service, other)
    assert uses(service) == [("alice", 1), ("alice", 1)]
    service.now += EVERY_SECONDS + 1  # the clock is a float
    await use(service, arn, 50)

    assert uses(service) == [("alice", 1), ("alice", 1), ("alice", 50)]
    async with subscribed(service, after_sequence=0) as subscription:
        event = await told(subscription)
    assert (event.detail_type, event.resources) == ("Key Used While Pending Deletion", [arn])
    assert event.detail["operation"] == "Encrypt"


async def test_a_use_is_told_whatever_the_caller_has_used_up(tmp_path: Path) -> None:
    """Of records: the event is not his to prevent."""
    service = await Embedded.open(
        tmp_path, limits=Limits(audit_bytes_per_second_per_uid=2_000, audit_burst_bytes_per_uid=20_000)
    )
    try:
        arn = await pending(service)
        while not service.accounts.of(ALICE).exceeded:
            with pytest.raises(KmsError):
                await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id="alias/none"))
        await use(service, arn)

        assert uses(service) == [("alice", 1)]
    finally:
        await service.close()


async def test_only_who_may_use_a_key_uses_it(service: Embedded) -> None:
    """A stranger is refused before anybody looks at the key's state; looking at it, or trying dry, is no use."""
    arn = await pending(service)
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
    await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))
    with pytest.raises(KMSInvalidStateError):
        await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x"), dry_run=True))

    assert uses(service) == []


async def test_a_use_by_its_ciphertext_counts(service: Embedded) -> None:
    """The key is found in it."""
    arn = await service.make_key()
    encrypted = await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    await service.store.commit(
        None, [Replace(replace(row, key_state=KeyState.PENDING_DELETION, version=row.version + 1))]
    )
    service.records.forget(row.key_id)
    with pytest.raises(KMSInvalidStateError):
        await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=bytes(encrypted.ciphertext_blob)))

    assert uses(service) == [("alice", 1)]


async def test_a_use_that_cannot_be_recorded_is_told_by_the_next(service: Embedded) -> None:
    """The trail was in trouble just then."""
    arn = await pending(service)
    service.trail.refuses = lambda record: record.event_name == pending_uses.KEY_USED_WHILE_PENDING_DELETION
    await use(service, arn, 3)
    service.trail.refuses = None
    await use(service, arn)

    assert uses(service) == [("alice", 1)]


async def test_keys_that_are_remembered_are_bounded(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of further ones nothing is told until the hour is over."""
    monkeypatch.setattr(pending_uses, "MOST_KEYS", 2)
    arns = [await pending(service) for _ in range(3)]
    for arn in arns:
        await use(service, arn)
    assert len(uses(service)) == 2
    service.now += EVERY_SECONDS + 1  # the clock is a float
    await use(service, arns[2])

    assert len(uses(service)) == 3
    assert len(service.pending_uses._used) == 2
