"""When the daemon has its keys: attempts, what is tried again and what is not, and the loss of the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.administration import SEAL, STATUS, SealRequest, StatusRequest
from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, KmsError, SealedError, TokenPinIncorrectError
from kmsd.api.keys import CREATE_KEY, CreateKeyRequest
from kmsd.api.symmetric import ENCRYPT, GENERATE_RANDOM, EncryptRequest, GenerateRandomRequest
from kmsd.audit.record import Kind
from kmsd.hsm import root as hsm
from kmsd.hsm.root import RootError
from kmsd.logs import StructuredLogger
from kmsd.service.seal import CONFIGURED
from kmsd.service.telling import told_as
from kmsd.service.token_watch import TokenWatch
from kmsd.store.base import StoreUnavailableError
from tests.support.embedded import ALICE, BOB, ROOT, Embedded, Gate, kind_is

PASSING = [hsm.TokenMissingError, hsm.TokenTimeoutError, hsm.TokenCrashedError, hsm.TokenFailedError]
LASTING = [
    hsm.PinIncorrectError,
    hsm.PinNearlyLockedError,
    hsm.PinUnavailableError,
    hsm.UnsupportedTokenError,
    hsm.RootKeyMissingError,
    hsm.WrappedKeyInvalidError,
    hsm.AnchorInvalidError,
]


@pytest.fixture
async def sealed(service: Embedded) -> Embedded:
    """A service that an administrator sealed."""
    await service.unsealing.seal()
    return service


def events(service: Embedded) -> list[tuple[str, str | None]]:
    """What kmsd recorded on nobody's request: name and error."""
    return [
        (line["eventName"], line.get("errorCode")) for line in service.lines() if line["eventType"] == Kind.SYSTEM.value
    ]


def holds_keys(service: Embedded) -> bool:
    return not service.seal.sealed


def is_serving(service: Embedded) -> bool:
    return not service.gate.closed and not service.seal.sealed


def test_every_failure_of_the_root_is_told() -> None:
    """None of them can reach a client as a fault that nobody foresaw."""
    assert {*PASSING, *LASTING} == set(RootError.__subclasses__())
    for kind in RootError.__subclasses__():
        error = told_as(kind("what happened"))
        assert error is not None
        assert error.message == "what happened"
        assert error.retryable == (kind in PASSING)


async def test_a_start_unseals(sealed: Embedded) -> None:
    """And it is on record."""
    await sealed.unsealing.start(serves_sealed=True)

    assert is_serving(sealed)
    assert events(sealed) == [("Unseal", None)]
    assert sealed.sleeps.seconds == []


@pytest.mark.parametrize("fault", PASSING)
async def test_a_passing_trouble_is_tried_again(sealed: Embedded, fault: type[RootError]) -> None:
    """At intervals that double up to five minutes, until it has passed."""
    sealed.root.fault = fault("not now")
    await sealed.unsealing.start(serves_sealed=True)
    assert not is_serving(sealed)
    assert (await sealed.ask(BOB, STATUS, StatusRequest())).unseal_failure == "not now"

    for _ in range(8):
        await sealed.sleeps.wake()
    await sealed.sleeps.again()
    assert sealed.sleeps.seconds == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert len(sealed.root.pins) == 1 + 9  # with the one that made the store
    error = told_as(fault(""))
    assert error is not None
    assert events(sealed) == [("UnsealFailed", error.code)] * 9

    sealed.root.fault = None
    await sealed.sleeps.wake()
    await until(lambda: is_serving(sealed))
    assert events(sealed)[-1] == ("Unseal", None)
    assert (await sealed.ask(BOB, STATUS, StatusRequest())).unseal_failure is None


@pytest.mark.parametrize("fault", LASTING)
async def test_what_does_not_pass_is_not_tried_again(sealed: Embedded, fault: type[RootError]) -> None:
    """A PIN is tried once, and its failure is on record with its reason and without the PIN."""
    sealed.root.fault = fault("look at it")
    await sealed.unsealing.start(serves_sealed=True)

    assert not is_serving(sealed)
    assert sealed.sleeps.seconds == []
    assert len(sealed.root.pins) == 2
    [failed] = [line for line in sealed.lines() if line["eventName"] == "UnsealFailed"]
    assert failed["errorMessage"] == "look at it"


async def test_a_store_that_fails_is_not_tried_again(sealed: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is not even asked."""

    async def fails() -> Any:
        raise StoreUnavailableError("the disk is gone")

    monkeypatch.setattr(sealed.store, "domain_keys", fails)
    await sealed.unsealing.start(serves_sealed=True)

    assert events(sealed) == [("UnsealFailed", "StorageException")]
    assert sealed.sleeps.seconds == []


async def test_who_does_not_serve_sealed_does_not_start(sealed: Embedded) -> None:
    """The failure is raised, and nothing is tried again."""
    sealed.root.fault = hsm.TokenMissingError("no token")
    with pytest.raises(KmsError, match="no token"):
        await sealed.unsealing.start(serves_sealed=False)
    assert sealed.sleeps.seconds == []


async def test_without_a_pin_the_token_is_only_looked_at(tmp_path: Path) -> None:
    """An administrator who is to unseal sees whether it is there; a missing one prevents nothing."""
    service = await Embedded.open(tmp_path, initialize=False, configured=False)
    try:
        service.root.fault = hsm.TokenMissingError("no token")
        await service.unsealing.start(serves_sealed=True)
        status = await service.ask(BOB, STATUS, StatusRequest())
        assert (status.token, status.pin, status.unseal_failure) == (None, "none", None)
        assert "token_not_seen" in service.log.getvalue()

        service.root.fault = None
        await service.unsealing.start(serves_sealed=True)
        status = await service.ask(BOB, STATUS, StatusRequest())
        assert status.token is not None
        assert service.root.pins == []
    finally:
        await service.close()


async def test_a_new_store_is_made_when_the_token_is_there(tmp_path: Path) -> None:
    """A first start that failed is repeated, and makes the keys once."""
    service = await Embedded.open(tmp_path, initialize=False)
    try:
        service.root.fault = hsm.TokenMissingError("no token")
        await service.unsealing.start(serves_sealed=True)
        service.root.fault = None
        await service.sleeps.wake()
        await until(lambda: is_serving(service))

        arn = await service.make_key()
        await service.unsealing.seal()
        await service.unsealing.recover()
        await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))
        assert len(await service.store.domain_keys()) == 1
    finally:
        await service.close()


async def test_a_first_commit_that_fails_leaves_no_key(tmp_path: Path) -> None:
    """Neither in memory nor in the store."""
    service = await Embedded.open(tmp_path, initialize=False)
    try:
        used = service.arena.used_bytes
        service.store.faults["commit"] = StoreUnavailableError("the disk is gone")
        await service.unsealing.start(serves_sealed=True)

        assert service.seal.sealed
        assert service.arena.used_bytes == used
        service.store.faults.clear()
        await service.unsealing.recover()
        assert is_serving(service)
    finally:
        await service.close()


async def test_an_unsealing_that_cannot_be_recorded_does_not_happen(sealed: Embedded) -> None:
    """It is tried again like anything that may pass."""
    sealed.trail.refuses = kind_is(Kind.SYSTEM)
    await sealed.unsealing.start(serves_sealed=True)
    assert not is_serving(sealed)
    assert sealed.seal.sealed
    assert "event_not_recorded" in sealed.log.getvalue()

    sealed.trail.refuses = None
    await sealed.sleeps.wake()
    await until(lambda: is_serving(sealed))


async def test_the_loop_serves_while_the_token_is_asked(sealed: Embedded) -> None:
    """Whatever needs no key is answered, and what needs one is told at once that kmsd is sealed."""
    sealed.root.gate = Gate()
    unsealing = asyncio.ensure_future(sealed.unsealing.recover())
    await sealed.root.gate.arrived.wait()

    assert (await sealed.ask(BOB, STATUS, StatusRequest())).state == "sealed"
    with pytest.raises(SealedError):
        await sealed.ask(BOB, GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=8))
    assert not unsealing.done()

    sealed.root.gate.opened.set()
    await unsealing
    await sealed.ask(BOB, GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=8))


async def test_there_is_one_attempt_at_a_time(sealed: Embedded) -> None:
    """Who comes while the token is asked waits, and finds the daemon unsealed without a second login."""
    sealed.root.gate = Gate()
    first = asyncio.ensure_future(sealed.unsealing.unseal(CONFIGURED, lambda: None))
    await sealed.root.gate.arrived.wait()
    second = asyncio.ensure_future(sealed.unsealing.unseal(CONFIGURED, lambda: None))
    sealed.root.gate.opened.set()

    assert await first
    assert not await second
    assert len(sealed.root.pins) == 2


async def test_sealing_ends_every_attempt(sealed: Embedded) -> None:
    """The one under way, those that wait, and those to come by themselves."""
    sealed.root.fault = hsm.TokenMissingError("no token")
    await sealed.unsealing.start(serves_sealed=True)
    await sealed.sleeps.again()
    sealed.root.fault, sealed.root.gate = None, Gate()
    attempts = [asyncio.ensure_future(sealed.unsealing.unseal(CONFIGURED, lambda: None)) for _ in range(2)]
    await sealed.root.gate.arrived.wait()

    await sealed.ask(ROOT, SEAL, SealRequest())

    for attempt in attempts:
        with pytest.raises(SealedError, match="sealed meanwhile"):
            await attempt
    sealed.root.gate.opened.set()
    await sealed.sleeps.wake()
    await asyncio.sleep(0)
    assert sealed.seal.sealed
    assert (await sealed.ask(BOB, STATUS, StatusRequest())).unseal_failure is None
    await sealed.unsealing.recover()  # a later wish counts
    assert is_serving(sealed)


async def test_only_administrators_seal(service: Embedded) -> None:
    """And everybody else is refused, and keeps working."""
    for session in (ALICE, BOB):
        with pytest.raises(AccessDeniedError):
            await service.ask(session, SEAL, SealRequest())
    assert is_serving(service)


async def test_sealing_is_recorded_before_it_is_answered(service: Embedded) -> None:
    """Intent and outcome; sealing twice is once."""
    for _ in range(2):
        response = await service.ask(ROOT, SEAL, SealRequest())
        assert response.state == "sealed"
        intent, outcome = service.lines()[-2:]
        assert (intent["eventType"], outcome["eventType"]) == (Kind.INTENT.value, Kind.OUTCOME.value)
        assert (outcome["eventName"], outcome["userIdentity"]["uid"], outcome["readOnly"]) == ("Seal", 0, False)
        assert "errorCode" not in outcome
    with pytest.raises(SealedError):
        await service.ask(ALICE, CREATE_KEY, CreateKeyRequest())


async def test_a_trail_that_cannot_be_written_prevents_the_sealing(service: Embedded) -> None:
    """Nothing happens that is not on record."""
    service.trail.refuses = kind_is(Kind.INTENT)
    with pytest.raises(AuditUnavailableError):
        await service.ask(ROOT, SEAL, SealRequest())
    assert is_serving(service)


async def test_a_change_under_way_ends_before_the_keys_go(service: Embedded) -> None:
    """Its caller is told of the success, and its record is whole."""
    gate = service.store.gates["commit"] = Gate()
    making = asyncio.ensure_future(service.make_key())
    await gate.arrived.wait()
    sealing = asyncio.ensure_future(service.ask(ROOT, SEAL, SealRequest()))
    await until(lambda: service.gate.closed)
    with pytest.raises(SealedError):
        await service.make_key()
    assert holds_keys(service)

    gate.opened.set()
    arn = await making
    await sealing

    assert not holds_keys(service)
    outcomes = [line for line in service.lines() if line["eventType"] == Kind.OUTCOME.value]
    assert [(line["eventName"], "errorCode" in line) for line in outcomes] == [("CreateKey", False), ("Seal", False)]
    await service.unsealing.recover()
    await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))


async def test_a_read_under_way_is_told_that_kmsd_is_sealed(service: Embedded) -> None:
    """It can ask again."""
    arn = await service.make_key()
    service.records.forget_all()
    gate = service.store.gates["key"] = Gate()
    asking = asyncio.ensure_future(service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x"))))
    await gate.arrived.wait()
    await service.ask(ROOT, SEAL, SealRequest())
    gate.opened.set()

    with pytest.raises(SealedError) as refused:
        await asking
    assert refused.value.retryable


@pytest.fixture
async def watch_of() -> AsyncIterator[Callable[..., TokenWatch]]:
    """Watches over an embedded service's token, each as if it were time to look."""
    watches: list[TokenWatch] = []

    def make(service: Embedded, *, seals: bool) -> TokenWatch:
        watch = TokenWatch(
            root=service.root,
            unsealing=service.unsealing,
            trail=service.trail,
            logger=StructuredLogger(service.log),
            check_seconds=7,
            seals=seals,
            sleep=service.sleeps,
        )
        watch.start()
        watches.append(watch)
        return watch

    yield make
    for watch in watches:
        await watch.close()


async def looked(service: Embedded) -> None:
    """Let the watch look once, and wait until it sleeps again."""
    await service.sleeps.wake()
    await service.sleeps.again()


async def test_a_lost_token_seals(service: Embedded, watch_of: Callable[..., TokenWatch]) -> None:
    """At once, on record, with the reason in the status; and its return unseals."""
    watch_of(service, seals=True)
    await looked(service)
    assert is_serving(service)
    service.root.fault = hsm.TokenMissingError("it went away")
    await looked(service)

    assert service.seal.sealed
    assert service.gate.closed
    assert events(service) == [("TokenLost", "TokenException")]
    assert (await service.ask(BOB, STATUS, StatusRequest())).unseal_failure == "it went away"
    await looked(service)
    assert events(service) == [("TokenLost", "TokenException")]

    service.root.fault = None
    await looked(service)
    assert is_serving(service)
    assert events(service)[1:] == [("TokenBack", None), ("Unseal", None)]
    assert set(service.sleeps.seconds) == {7}


async def test_after_a_loss_an_administrator_s_seal_holds(
    service: Embedded, watch_of: Callable[..., TokenWatch]
) -> None:
    """The token's return changes nothing then."""
    watch_of(service, seals=True)
    service.root.fault = hsm.TokenMissingError("it went away")
    await looked(service)
    await service.ask(ROOT, SEAL, SealRequest())
    service.root.fault = None
    await looked(service)

    assert service.seal.sealed


async def test_without_a_pin_the_return_of_the_token_is_only_told(
    tmp_path: Path, watch_of: Callable[..., TokenWatch]
) -> None:
    """An administrator has to unseal."""
    service = await Embedded.open(tmp_path, configured=False)
    try:
        watch_of(service, seals=True)
        service.root.fault = hsm.TokenMissingError("it went away")
        await looked(service)
        service.root.fault = None
        await looked(service)

        assert service.seal.sealed
        assert "token_back" in service.log.getvalue()
        assert len(service.root.pins) == 1
    finally:
        await service.close()


@pytest.mark.parametrize("fault", [hsm.TokenTimeoutError, hsm.TokenCrashedError, hsm.TokenFailedError])
async def test_a_slow_or_crashing_token_is_not_lost(
    service: Embedded, watch_of: Callable[..., TokenWatch], fault: type[RootError]
) -> None:
    """That is logged."""
    watch_of(service, seals=True)
    service.root.fault = fault("hm")
    await looked(service)

    assert is_serving(service)
    assert "token_check_failed" in service.log.getvalue()


async def test_losing_the_token_need_not_stop_the_service(
    service: Embedded, watch_of: Callable[..., TokenWatch]
) -> None:
    """It is logged and on record once, and its return once."""
    watch_of(service, seals=False)
    service.root.fault = hsm.TokenMissingError("it went away")
    await looked(service)
    await looked(service)
    assert is_serving(service)
    service.root.fault = None
    await looked(service)
    await looked(service)

    log = service.log.getvalue()
    assert (log.count("token_lost"), log.count("token_back")) == (1, 1)
    assert events(service) == [("TokenLost", "TokenException"), ("TokenBack", None)]


async def test_a_loss_that_cannot_be_recorded_is_recorded_later(
    service: Embedded, watch_of: Callable[..., TokenWatch]
) -> None:
    """In the order in which it was, once: somebody waits for the event."""
    watch_of(service, seals=False)
    service.trail.refuses = lambda record: record.event_name.startswith("Token")
    for fault in (hsm.TokenMissingError("it went away"), None, hsm.TokenMissingError("it went away again")):
        service.root.fault = fault
        await looked(service)
    assert events(service) == []
    assert service.log.getvalue().count("event_not_recorded") == 3
    service.trail.refuses = None
    await looked(service)
    await looked(service)

    assert [name for name, _ in events(service)] == ["TokenLost", "TokenBack", "TokenLost"]


async def test_the_token_is_watched_on_after_a_fault(service: Embedded, watch_of: Callable[..., TokenWatch]) -> None:
    """One that nobody foresaw, and that may pass."""
    watch_of(service, seals=False)
    service.root.fault = RuntimeError("nobody foresaw this")
    await looked(service)
    assert "token_watch_failed" in service.log.getvalue()
    service.root.fault = hsm.TokenMissingError("it went away")
    await looked(service)

    assert events(service) == [("TokenLost", "TokenException")]


async def test_a_wrong_pin_of_one_does_not_keep_another_from_unsealing(sealed: Embedded) -> None:
    """Each attempt is its own, with its own PIN."""
    sealed.root.fault = hsm.PinIncorrectError("refused")
    with pytest.raises(TokenPinIncorrectError):
        await sealed.unsealing.unseal(CONFIGURED, lambda: None)
    sealed.root.fault = None

    assert await sealed.unsealing.unseal(CONFIGURED, lambda: None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the store's thread is part of it
            await asyncio.sleep(0.001)
