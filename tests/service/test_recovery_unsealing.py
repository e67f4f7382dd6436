"""Unseal by recovery shares: without the token, on record, and never with half of what is needed."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from kmsd.api.administration import STATUS, UNSEAL, RecoverySetting, StatusRequest, UnsealRequest
from kmsd.api.errors import IntegrityError, KmsError, RecoveryUnavailableError, ValidationError
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.api.unsealing import MAX_DATAGRAM_BYTES, MAX_SHARES_BYTES, Outcome, decode_outcome
from kmsd.audit.record import Kind
from kmsd.hsm.root import TokenMissingError
from kmsd.logs import StructuredLogger
from kmsd.recovery.shares import split
from kmsd.service.token_watch import TokenWatch
from kmsd.store.base import Replace
from tests.service.conftest import OpenService
from tests.support.embedded import ALICE, ROOT, Embedded
from tests.support.embedded import Gate as Waiting

KEY = bytes(range(32))
SHARES = split(KEY, threshold=2, count=3)
ENOUGH = "\n".join(SHARES[1:]).encode()


@pytest.fixture
async def sealed(open_service: OpenService) -> Embedded:
    """A sealed service that was founded with a recovery key, and whose token is gone."""
    service = await open_service(recovery_key=KEY)
    await service.unsealing.seal()
    service.root.pins.clear()
    service.root.fault = TokenMissingError("there is no such token")
    return service


async def begin(service: Embedded) -> socket.socket:
    """Ask for Unseal by shares and return the end that comes with the answer."""
    batch = await service.reply_to(ROOT, UNSEAL, UnsealRequest(shares=True))
    service.response(batch, UNSEAL)
    channel = socket.socket(fileno=batch.descriptors[0])
    channel.setblocking(False)
    return channel


async def outcome_of(service: Embedded, shares: bytes) -> Outcome:
    with await begin(service) as channel:
        channel.send(shares)
        return decode_outcome(
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(channel, MAX_DATAGRAM_BYTES), 10)
        )


async def failure(service: Embedded, shares: bytes) -> KmsError:
    outcome = await outcome_of(service, shares)
    assert outcome.error is not None
    return outcome.error.error()


async def test_shares_open_what_the_token_would(open_service: OpenService) -> None:
    """An old ciphertext decrypts, new keys can be made; the token was not asked, and no share is on record."""
    service = await open_service(recovery_key=KEY)
    arn = await service.make_key()
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"kept"))
    blob = (await service.ask(ALICE, ENCRYPT, request)).ciphertext_blob
    await service.unsealing.seal()
    service.root.pins.clear()

    assert (await outcome_of(service, ENOUGH)).done is not None

    assert service.root.pins == []
    assert bytes((await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob))).plaintext) == b"kept"
    await service.make_key()
    intent, outcome = (one for one in service.lines() if one["eventName"] == "Unseal" and "requestParameters" in one)
    assert [one["eventType"] for one in (intent, outcome)] == [Kind.INTENT.value, Kind.OUTCOME.value]
    assert intent["requestParameters"] == outcome["requestParameters"] == {"configured": False, "shares": True}
    told = (service.directory / "audit.log").read_text() + service.log.getvalue()
    assert not {word for word in SHARES[1].split() if f" {word} " in told}


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (SHARES[0].encode(), "2 shares are needed, and there are 1: bring 1 more"),
        (SHARES[0].replace(" ", " kmsd ", 1).encode(), "share 1 has more words"),
        ("\n".join(split(bytes(32), threshold=2, count=3)[1:]).encode(), "these recovery shares are not of this store"),
        (b"x" * MAX_SHARES_BYTES, "share 1 has 1 words"),
        (b"x" * (MAX_SHARES_BYTES + 1), "the shares may have at most 4094 bytes"),
        (b"x" * 100_000, "the shares may have at most 4094 bytes"),
    ],
    ids=["too few", "mistyped", "another store's", "long", "too long", "much too long"],
)
async def test_wrong_shares_leave_it_sealed(sealed: Embedded, shares: bytes, words: str) -> None:
    """The client is told what is wrong, the trail has the same words, and no key stays behind."""
    used = sealed.arena.used_bytes

    error = await failure(sealed, shares)

    assert words in error.message
    assert sealed.seal.sealed
    assert sealed.arena.used_bytes == used
    assert sealed.newest()["errorMessage"] == error.message
    assert (await outcome_of(sealed, ENOUGH)).done is not None


async def test_a_host_without_recovery_says_so_at_once(service: Embedded) -> None:
    """Before anybody types a word."""
    await service.unsealing.seal()

    with pytest.raises(RecoveryUnavailableError, match="only its token opens the keys"):
        await service.ask(ROOT, UNSEAL, UnsealRequest(shares=True))


async def test_shares_and_the_configured_pin_are_two_ways(sealed: Embedded) -> None:
    with pytest.raises(ValidationError, match="choose one"):
        await sealed.ask(ROOT, UNSEAL, UnsealRequest(shares=True, configured=True))


async def test_shares_begin_no_store(tmp_path: Path) -> None:
    """Only a token can found one; an empty store in the place of another is not taken for new."""
    service = await Embedded.open(tmp_path, initialize=False)
    try:
        assert (await failure(service, ENOUGH)).code == IntegrityError.code
        assert await service.store.settings() is None
    finally:
        await service.close()


async def test_a_changed_store_is_found_by_shares_as_well(open_service: OpenService) -> None:
    """A row whose MAC is wrong is refused whoever opens the store."""
    service = await open_service(recovery_key=KEY)
    settings = await service.store.settings()
    assert settings is not None
    service.store.unseal(memoryview(bytearray(32)), memoryview(bytearray(32)))
    await service.store.accept_state(0)
    await service.store.commit("tamper", [Replace(type(settings)(account="999999999999", region="x", version=2))])
    await service.unsealing.seal()
    await service.store.settings()  # as a start does

    error = await failure(service, ENOUGH)

    assert error.code == IntegrityError.code
    assert service.seal.sealed


async def test_a_stop_ends_an_attempt_by_shares(sealed: Embedded) -> None:
    """Who waits is told, and nothing is left behind."""
    waiting = sealed.trail.sync_gate = Waiting()
    with await begin(sealed) as channel:
        channel.send(ENOUGH)
        await asyncio.wait_for(waiting.arrived.wait(), 10)
        await sealed.seal_requests.close()

    assert sealed.seal.sealed
    assert sealed.newest()["errorCode"] == "ShuttingDownException"


async def test_a_daemon_that_shares_unsealed_needs_no_token(sealed: Embedded) -> None:
    """It stays unsealed although losing the token would seal it, until somebody seals it or the token unsealed it."""
    watch = TokenWatch(
        root=sealed.root,
        unsealing=sealed.unsealing,
        trail=sealed.trail,
        logger=StructuredLogger(sealed.log),
        check_seconds=7,
        seals=True,
        sleep=sealed.sleeps,
    )
    watch.start()
    assert (await outcome_of(sealed, ENOUGH)).done is not None
    await sealed.sleeps.wake()
    await sealed.sleeps.again()

    assert not sealed.seal.sealed
    assert "token_lost" in sealed.log.getvalue()
    await watch.close()


async def test_the_recovery_key_is_kept_for_later_domain_keys(open_service: OpenService) -> None:
    """As a secret of the service: wrapped, so that it opens only where the keys are open anyway."""
    service = await open_service(recovery_key=KEY)
    secret = await service.store.secret("recovery")
    assert secret is not None
    [row] = await service.store.domain_keys()

    assert KEY not in secret.wrapped
    assert row.recovery_wrapped
    assert KEY not in (service.directory / "store.sqlite").read_bytes()


@pytest.mark.parametrize(("key", "setting"), [(KEY, RecoverySetting.SHARES), (None, RecoverySetting.NONE)])
async def test_status_tells_what_opens_the_keys_without_the_token(
    open_service: OpenService, key: bytes | None, setting: RecoverySetting
) -> None:
    """Sealed or not."""
    service = await open_service(recovery_key=key)
    assert (await service.ask(ALICE, STATUS, StatusRequest())).recovery is setting
    await service.unsealing.seal()
    assert (await service.ask(ALICE, STATUS, StatusRequest())).recovery is setting
