"""What kmsd does by itself: each thing once, in the order in which it fell due, and nothing by a clock in doubt."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.calendar import (
    CONFIRM_CLOCK,
    GET_CLOCK,
    ClockState,
    ConfirmClockRequest,
    GetClockRequest,
    GetClockResponse,
)
from kmsd.api.errors import AccessDeniedError, IntegrityError, KMSInternalError, ValidationError
from kmsd.api.keys import DISABLE_KEY, ENABLE_KEY, EnableKeyRequest
from kmsd.audit.record import Kind, Record
from kmsd.service.calendar import moment
from kmsd.service.key_dates import DAY_MS, dated
from kmsd.service.seal import CONFIGURED
from kmsd.store.base import Replace, StoreUnavailableError
from kmsd.store.rows import HousekeepingRow, KeyRow
from tests.support.embedded import ALICE, ROOT, Embedded, Gate, kind_is
from tests.support.host_time import HostTime
from tests.support.key_life import (
    DAY,
    SECRET,
    confirm_clock,
    decrypt,
    done,
    encrypt,
    id_of,
    rotate_every,
    row_of,
    schedule,
    told,
)

OpenService = Callable[..., Awaitable[Embedded]]
YEAR = 365 * DAY


async def clock_of(service: Embedded) -> GetClockResponse:
    return await service.ask(ROOT, GET_CLOCK, GetClockRequest())


async def kept(service: Embedded) -> HousekeepingRow:
    row = await service.store.housekeeping()
    assert row is not None
    return row


async def test_everything_is_done_once_in_the_order_in_which_it_fell_due(service: Embedded) -> None:
    """Also after the host was off over it: a warning comes before its destruction, whatever else is due between."""
    rotated, destroyed, also = [await service.make_key() for _ in range(3)]
    await schedule(service, destroyed, 10)
    await schedule(service, also, 12)
    await rotate_every(service, rotated, 90)
    row = await row_of(service, rotated)
    early = msgspec.structs.replace(row, rotation_next_ms=service.wall_ms() + 8 * DAY_MS, version=row.version + 1)
    await change(service, early)

    service.time.let_pass(14 * DAY)
    await service.housekeeping.look()
    await service.housekeeping.look()

    assert told(service) == [
        ("WarnOfKeyDeletion", id_of(destroyed)),
        ("RotateKey", id_of(rotated)),
        ("WarnOfKeyDeletion", id_of(also)),
        ("DeleteKey", id_of(destroyed)),
        ("DeleteKey", id_of(also)),
    ]


async def change(service: Embedded, row: KeyRow) -> None:
    """Store a row as it would be made."""
    await service.store.commit(None, [Replace(dated(row))])
    service.records.forget(row.key_id)


async def test_missed_periods_are_made_up_by_one_rotation(service: Embedded) -> None:
    """The next comes a period later; what was encrypted before still decrypts."""
    arn = await service.make_key()
    await rotate_every(service, arn, 90)
    blob = await encrypt(service, arn)

    service.time.let_pass(10 * YEAR)
    await service.housekeeping.look()

    row = await row_of(service, arn)
    assert row.current_material == 2
    assert row.rotation_next_ms == row.due_ms == service.wall_ms() + 90 * DAY_MS
    assert await decrypt(service, blob) == SECRET


async def test_a_key_that_fails_keeps_no_other_waiting(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in the log, and has another turn a minute later; pages of keys behind it are read all the same."""
    monkeypatch.setattr("kmsd.service.housekeeping._PAGE", 2)
    arns = [await service.make_key() for _ in range(7)]
    for arn in arns:
        await rotate_every(service, arn, 90)
        service.time.let_pass(1)
    failing = {f"key/{id_of(arns[number])}" for number in (0, 1, 4)}

    def refuses(record: Record) -> bool:
        return record.kind is Kind.INTENT and any(arn.rpartition(":")[2] in failing for arn in record.resources)

    service.trail.refuses = refuses
    service.time.let_pass(90 * DAY)
    await service.housekeeping.look()
    assert told(service) == [("RotateKey", id_of(arns[number])) for number in (2, 3, 5, 6)]
    assert service.log.getvalue().count("key_not_attended") == 3

    service.trail.refuses = None
    await service.housekeeping.look()

    assert told(service)[4:] == [("RotateKey", id_of(arns[number])) for number in (0, 1, 4)]


async def test_thousands_that_fail_for_one_reason_are_not_all_told(service: Embedded) -> None:
    """A few each minute, each less and less often; and when the reason is gone, all of them are done."""
    arns = [await service.make_key() for _ in range(25)]
    for arn in arns:
        await rotate_every(service, arn, 90)
        service.time.let_pass(1)
    service.time.let_pass(90 * DAY)
    service.trail.refuses = kind_is(Kind.INTENT)
    counts = []
    for _ in range(40):
        before = service.log.getvalue().count("key_not_attended")
        await service.housekeeping.look()
        counts.append(service.log.getvalue().count("key_not_attended") - before)
    assert counts[:2] == [10, 10]
    assert max(counts) == 10
    assert sum(counts) <= len(arns) * 7

    service.trail.refuses = None
    for _ in range(61):
        await service.housekeeping.look()

    assert sorted(told(service)) == sorted(("RotateKey", id_of(arn)) for arn in arns)


async def test_a_key_that_was_changed_meanwhile_is_looked_at_again_at_once(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it then needs is done."""
    arn = await service.make_key()
    await rotate_every(service, arn, 90)
    service.time.let_pass(90 * DAY)
    rotate = service.rotation.rotate

    async def overtaken(row: KeyRow) -> None:
        monkeypatch.undo()
        await change(service, msgspec.structs.replace(row, description="other", version=row.version + 1))
        await rotate(row)

    monkeypatch.setattr(service.rotation, "rotate", overtaken)
    await service.housekeeping.look()

    row = await row_of(service, arn)
    assert (row.current_material, row.description) == (2, "other")
    assert [one["errorCode"] for one in done(service, "RotateKey") if "errorCode" in one] == ["ConflictException"]


async def test_a_disabled_key_is_rotated_when_it_is_enabled(service: Embedded) -> None:
    """Its date stays, and passes."""
    arn = await service.make_key()
    await rotate_every(service, arn, 90)
    await service.ask(ALICE, DISABLE_KEY, EnableKeyRequest(key_id=arn))
    service.time.let_pass(100 * DAY)
    await service.housekeeping.look()
    assert told(service) == []

    await service.ask(ALICE, ENABLE_KEY, EnableKeyRequest(key_id=arn))
    await service.housekeeping.look()

    assert told(service) == [("RotateKey", id_of(arn))]


async def test_it_looks_every_minute_while_there_are_keys(service: Embedded) -> None:
    """And at once when the daemon is unsealed: what fell due while it was sealed is done then."""
    arn = await service.make_key()
    await rotate_every(service, arn, 90)
    await service.unsealing.seal()
    service.time.let_pass(90 * DAY)
    assert await does_nothing(service)

    await service.unsealing.unseal(CONFIGURED, lambda: None)
    await service.minutes.again()

    assert told(service, "RotateKey") == [("RotateKey", id_of(arn))]
    service.time.let_pass(90 * DAY)
    await service.minutes.wake()
    await service.minutes.again()
    assert len(told(service, "RotateKey")) == 2
    assert set(service.minutes.seconds) == {60.0}


async def does_nothing(service: Embedded) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await service.minutes.again()
    except TimeoutError:
        return True
    return False


async def test_sealing_lets_a_change_end_and_no_other_begin(service: Embedded) -> None:
    """The one that is being committed is done and recorded."""
    arns = [await service.make_key() for _ in range(3)]
    for arn in arns:
        await rotate_every(service, arn, 90)
        service.time.let_pass(1)
    service.time.let_pass(90 * DAY)
    await service.timekeeping.tick()
    service.store.gates["commit"] = gate = Gate()
    await service.minutes.wake()
    await gate.arrived.wait()

    sealing = asyncio.ensure_future(service.unsealing.seal())
    await asyncio.sleep(0)
    gate.opened.set()
    await sealing

    assert len(told(service, "RotateKey")) == 1
    assert service.log.getvalue().count("housekeeping_failed") == 0


async def test_others_are_served_while_it_works(service: Embedded) -> None:
    """A hundred keys that are due do not keep a request waiting until the last of them is done."""
    arn = await service.make_key()
    for _ in range(20):
        await rotate_every(service, await service.make_key(), 90)
    service.time.let_pass(90 * DAY)
    looking = asyncio.ensure_future(service.housekeeping.look())
    while not told(service, "RotateKey"):  # noqa: ASYNC110 - until the first is done
        await asyncio.sleep(0)

    await encrypt(service, arn)

    assert not looking.done()
    await looking
    assert len(told(service, "RotateKey")) == 20


async def test_what_nobody_foresaw_is_told(service: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends what is done in this minute, not in silence; the next minute begins anew."""

    async def fault(_row: KeyRow) -> None:
        raise ZeroDivisionError

    arn = await service.make_key()
    await rotate_every(service, arn, 90)
    service.time.let_pass(90 * DAY)
    monkeypatch.setattr(service.rotation, "rotate", fault)
    await service.minutes.wake()
    while "housekeeping_failed" not in service.log.getvalue():  # noqa: ASYNC110 - it tells nobody else
        await asyncio.sleep(0.001)

    assert '"fault": "ZeroDivisionError"' in service.log.getvalue()
    monkeypatch.undo()
    await service.minutes.again()
    assert told(service) == []
    await service.minutes.wake()
    await service.minutes.again()
    assert told(service) == [("RotateKey", id_of(arn))]


async def test_a_minute_whose_clock_cannot_be_kept_does_nothing(service: Embedded) -> None:
    """Neither by a time that nobody can be told of, nor by one that the next start would not know."""
    arn = await service.make_key()
    await rotate_every(service, arn, 90)
    service.time.let_pass(90 * DAY)
    service.store.faults["commit"] = StoreUnavailableError("disk full")
    await service.housekeeping.look()
    service.store.faults.clear()
    assert told(service) == []
    assert '"what": "calendar"' in service.log.getvalue()

    await service.housekeeping.look()

    assert told(service) == [("RotateKey", id_of(arn))]


async def test_the_daily_work_is_done_once_a_day_over_restarts(open_service: OpenService) -> None:
    """A day that was missed is made up once; so it is when the clock was confirmed to be earlier."""
    service = await open_service()
    looks: list[int] = []

    async def look() -> None:
        looks.append(service.wall_ms())

    service.housekeeping._daily = (look,)
    for hours, expected in ((23.9, 0), (0.2, 1), (23.9, 1), (24 * 40.0, 2), (1, 2)):
        service.time.let_pass(hours * 3600)
        await service.housekeeping.look()
        assert len(looks) == expected
    assert (await kept(service)).daily_ms == looks[-1]

    service.time.step(-YEAR)
    await confirm_clock(service)
    await service.housekeeping.look()
    await service.housekeeping.look()
    assert len(looks) == 3


async def test_daily_work_that_fails_is_done_again(service: Embedded) -> None:
    """A minute later."""
    fails = [True, True, False]

    async def look() -> None:
        if fails.pop(0):
            raise IntegrityError("a record was changed")

    service.housekeeping._daily = (look,)
    service.time.let_pass(DAY)
    for _ in range(5):
        await service.housekeeping.look()

    assert fails == []
    assert service.log.getvalue().count('"what": "daily"') == 2


async def test_doubt_is_told_when_it_begins_and_when_it_ends(service: Embedded) -> None:
    """Once each, in the trail, in the log and to who asks for the status."""
    assert (await service.ask(ALICE, STATUS, StatusRequest())).clock is ClockState.TRUSTED
    before = moment(service.wall_ms())
    service.time.step(10 * YEAR)
    for _ in range(3):
        await service.housekeeping.look()
    assert (await service.ask(ALICE, STATUS, StatusRequest())).clock is ClockState.AHEAD
    service.time.step(-11 * YEAR)
    await service.housekeeping.look()
    service.time.step(YEAR)
    for _ in range(3):
        await service.housekeeping.look()

    records = done(service, "ClockInDoubt", "ClockBelieved")
    assert [(one["eventName"], one["additionalEventData"].get("state")) for one in records] == [
        ("ClockInDoubt", "ahead"),
        ("ClockInDoubt", "behind"),
        ("ClockBelieved", None),
    ]
    facts = records[0]["additionalEventData"]
    assert dt.datetime.fromisoformat(facts["certain"]) == before
    assert dt.datetime.fromisoformat(facts["clock"]) == before + dt.timedelta(days=3650)
    assert service.log.getvalue().count("clock_in_doubt") == 2
    assert service.log.getvalue().count("clock_believed") == 1


async def test_doubt_is_told_once_though_it_cannot_be_kept(service: Embedded) -> None:
    """A full disk fills no trail."""
    service.time.step(YEAR)
    service.store.faults["commit"] = StoreUnavailableError("disk full")
    for _ in range(3):
        await service.housekeeping.look()
    service.store.faults.clear()
    await service.housekeeping.look()

    assert told(service) == [("ClockInDoubt", "")]
    assert (await kept(service)).doubt == "ahead"


async def test_time_and_doubt_outlive_the_daemon(open_service: OpenService) -> None:
    """A restart in the same boot goes on as if there had been none, and tells nothing twice."""
    host = HostTime()
    service = await open_service(host_time=host)
    host.step(YEAR)
    await service.housekeeping.look()
    certain = service.calendar.certain_ms()
    await service.close()
    host.let_pass(DAY)

    again = await Embedded.open(service.directory, initialize=False, host_time=host)
    await again.unsealing.unseal(CONFIGURED, lambda: None)
    await again.minutes.again()

    assert again.timekeeping.state is ClockState.AHEAD
    assert again.calendar.certain_ms() == pytest.approx(certain + DAY_MS, abs=2)
    assert told(again) == [("ClockInDoubt", "")]
    await again.close()


async def test_the_time_is_kept_each_hour(service: Embedded) -> None:
    """And not each minute: nothing is lost by a kill within a boot."""
    first = await kept(service)
    for _ in range(59):
        service.time.let_pass(60)
        await service.housekeeping.look()
    assert (await kept(service)).certain_ms == first.certain_ms

    service.time.let_pass(60)
    await service.housekeeping.look()

    row = await kept(service)
    assert row.certain_ms == service.wall_ms()
    assert (row.boot_id, row.doubt) == (service.time.boot_id, "")


async def test_an_administrator_sees_what_waits_and_confirms(service: Embedded) -> None:
    """From then on the clock's time is certain, and what is due by it is done."""
    arns = [await service.make_key() for _ in range(3)]
    for arn, days in zip(arns, (90, 91, 400), strict=True):
        await rotate_every(service, arn, days)
    before = moment(service.wall_ms())
    service.time.step(YEAR)
    await service.housekeeping.look()
    answer = await clock_of(service)
    assert (answer.state, answer.waiting) == (ClockState.AHEAD, 2)
    assert (answer.certain, answer.clock) == (before, moment(service.wall_ms()))

    confirmed = await confirm_clock(service)
    await service.housekeeping.look()

    assert (confirmed.before, confirmed.after) == (before, moment(service.wall_ms()))
    assert told(service) == [("ClockInDoubt", ""), *(("RotateKey", id_of(arn)) for arn in arns[:2])]
    answer = await clock_of(service)
    assert (answer.state, answer.waiting, answer.certain) == (ClockState.TRUSTED, 0, answer.clock)
    intent, outcome = [one for one in service.lines() if one["eventName"] == "ConfirmClock"]
    assert intent["userIdentity"]["uid"] == 0
    assert set(outcome["responseElements"]) == {"before", "after"}
    assert (await kept(service)).doubt == ""


@pytest.mark.parametrize("minutes", [-2, 2, 525_600])
async def test_another_time_than_the_clocks_is_not_confirmed(service: Embedded, minutes: int) -> None:
    """Who typed it has seen another clock."""
    service.time.step(YEAR)
    clock = moment(service.wall_ms()) + dt.timedelta(minutes=minutes)

    with pytest.raises(ValidationError, match="the host's clock says"):
        await service.ask(ROOT, CONFIRM_CLOCK, ConfirmClockRequest(clock=clock))

    assert service.timekeeping.state is ClockState.AHEAD


@pytest.mark.parametrize("operation", [GET_CLOCK, CONFIRM_CLOCK])
async def test_only_administrators_have_to_do_with_the_clock(service: Embedded, operation: Any) -> None:
    """Everybody else is told by the status whether it is believed."""
    members = {} if operation is GET_CLOCK else {"clock": moment(service.wall_ms())}
    with pytest.raises(AccessDeniedError):
        await service.ask(ALICE, operation, operation.request(**members))


async def test_a_clock_is_confirmed_beside_other_changes_of_the_row(service: Embedded) -> None:
    """Whoever else changes it: the one that was overtaken tries again."""
    await encrypt(service, await service.make_key())
    service.time.step(YEAR)
    await asyncio.gather(service.housekeeping.look(), confirm_clock(service), service.uses.flush())

    row = await kept(service)
    assert (row.certain_ms, row.doubt) == (service.wall_ms(), "")
    assert service.timekeeping.state is ClockState.TRUSTED


async def test_a_confirmation_that_cannot_be_stored_is_none(service: Embedded) -> None:
    """The clock stays in doubt."""
    service.time.step(YEAR)
    service.store.faults["commit"] = ZeroDivisionError()
    with pytest.raises(KMSInternalError):
        await confirm_clock(service)
    service.store.faults.clear()

    assert service.timekeeping.state is ClockState.AHEAD
