"""Every fault of a token has its outcome (kmsd/hsm/TOKENS.md), and no fault makes kmsd try a PIN twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsd.hsm.conversation import TokenConfig
from kmsd.hsm.pin import FilePin
from kmsd.hsm.pkcs11 import Pkcs11Root
from kmsd.hsm.root import (
    PinIncorrectError,
    PinNearlyLockedError,
    RootError,
    TokenCrashedError,
    TokenFailedError,
    TokenMissingError,
    TokenTimeoutError,
    WrappedDomainKey,
)
from kmsd.metrics.families import TOKEN_JOBS
from kmsd.processes.zygote import Zygote
from tests.support.faulty_token import FaultyToken, build

DEVICE_REMOVED = 0x32
DEVICE_ERROR = 0x30
PIN_INCORRECT = 0xA0
PIN_LOCKED = 0xA4
TOKEN_NOT_PRESENT = 0xE0
COUNT_LOW, FINAL_TRY, LOCKED, TO_BE_CHANGED = 0x10000, 0x20000, 0x40000, 0x80000
# Enough for any job here, and what a test of the deadline waits for.
DEADLINE_SECONDS = 1.0


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("module"))


@pytest.fixture
def token(module: Path, config: TokenConfig, tmp_path: Path) -> FaultyToken:
    return FaultyToken(module, config, tmp_path / "faulty")


@pytest.fixture
def faulty(zygote: Zygote, token: FaultyToken, pin: FilePin) -> Pkcs11Root:
    return Pkcs11Root(zygote, token.config, pin, deadline_seconds=DEADLINE_SECONDS)


@pytest.fixture
async def record(faulty: Pkcs11Root, token: FaultyToken) -> WrappedDomainKey:
    """A domain key that was made while all was well, which took one login."""
    made = await faulty.make_domain_key("key-1", 1, memoryview(bytearray(32)))
    assert token.logins == 1
    return made


@pytest.mark.parametrize(
    ("fault", "error", "message", "logins"),
    [
        (f"C_Login return {PIN_INCORRECT}", PinIncorrectError, "refused the PIN", 1),
        (f"C_Login return {PIN_LOCKED}", PinNearlyLockedError, "takes no PIN .PinLocked.", 1),
        (f"C_GetTokenInfo flags {COUNT_LOW}", PinNearlyLockedError, "type it for `kms unseal`", 0),
        (f"C_GetTokenInfo flags {FINAL_TRY}", PinNearlyLockedError, "one more wrong PIN locks it", 0),
        (f"C_GetTokenInfo flags {LOCKED}", PinNearlyLockedError, "its PIN is locked", 0),
        (f"C_GetTokenInfo flags {TO_BE_CHANGED}", PinNearlyLockedError, "wants its PIN changed", 0),
        ("C_GetSlotList empty", TokenMissingError, "no token is labelled", 0),
        (f"C_GetTokenInfo return {TOKEN_NOT_PRESENT}", TokenMissingError, "went away", 0),
        (f"C_OpenSession return {DEVICE_REMOVED}", TokenMissingError, "went away", 0),
        (f"C_Decrypt return {DEVICE_REMOVED}", TokenMissingError, "went away", 1),
        (f"C_Login return {DEVICE_ERROR}", TokenFailedError, "failed with DeviceError", 1),
        ("C_Initialize return 5", TokenMissingError, "cannot be used", 0),
        ("C_Initialize crash", TokenCrashedError, "ended by signal 11", 0),
        ("C_Login crash", TokenCrashedError, "ended by signal 11", 1),
        ("C_Decrypt crash", TokenCrashedError, "ended by signal 11", 1),
        ("C_Decrypt exit 3", TokenCrashedError, "ended with code 3", 1),
        ("C_Decrypt length 0", TokenFailedError, "failed with OperationActive", 1),
        ("C_GetSlotList hold", TokenTimeoutError, "did not answer", 0),
        ("C_Login hold", TokenTimeoutError, "did not answer", 1),
        ("C_Decrypt hold", TokenTimeoutError, "did not answer", 1),
        ("C_CloseSession hold", TokenTimeoutError, "did not answer", 1),
    ],
)
async def test_a_fault_has_its_outcome(
    faulty: Pkcs11Root,
    token: FaultyToken,
    record: WrappedDomainKey,
    fault: str,
    error: type[RootError],
    message: str,
    logins: int,
) -> None:
    """One error that says what to do, at most one login, and the next job works."""
    token.fail(fault)
    with pytest.raises(error, match=message):
        await faulty.unwrap([record], [memoryview(bytearray(32))])
    assert token.logins == 1 + logins

    token.heal()
    key = bytearray(32)
    await faulty.unwrap([record], [memoryview(key)])
    assert key != bytes(32)
    assert token.logins == 2 + logins

    outcomes = {one.labels: one.value for one in faulty.meter.readings() if one.family is TOKEN_JOBS}
    assert outcomes == {("MakeDomainKey", "ok"): 1, ("Unwrap", error.__name__): 1, ("Unwrap", "ok"): 1}


@pytest.mark.parametrize("length", [2**63 - 1, 2**32 - 1, 2**16])
async def test_a_length_that_cannot_be_is_no_key(
    faulty: Pkcs11Root, token: FaultyToken, record: WrappedDomainKey, length: int
) -> None:
    """Whatever a module makes of its caller's memory stays in the job's process, and no key comes of it."""
    token.fail(f"C_Decrypt length {length}")
    key = bytearray(32)
    with pytest.raises(RootError):
        await faulty.unwrap([record], [memoryview(key)])

    assert key == bytes(32)
    token.heal()
    await faulty.unwrap([record], [memoryview(key)])


@pytest.mark.parametrize("fault", ["C_Finalize hold", "C_Finalize crash", "end hold"])
async def test_what_happens_behind_the_answer_does_not_matter(
    faulty: Pkcs11Root, token: FaultyToken, record: WrappedDomainKey, fault: str
) -> None:
    """The process is ended anyway."""
    token.fail(fault)
    await faulty.unwrap([record], [memoryview(bytearray(32))])


class Typed:
    """A PIN that somebody typed."""

    def __init__(self, pin: bytes) -> None:
        self._pin = pin

    def read_into(self, view: memoryview) -> int:
        view[: len(self._pin)] = self._pin
        return len(self._pin)


async def test_who_mistyped_the_pin_may_type_it_again(
    faulty: Pkcs11Root, token: FaultyToken, record: WrappedDomainKey, directory: Path
) -> None:
    """A low count keeps kmsd from trying the configured PIN by itself, but not a person from typing theirs."""
    key = memoryview(bytearray(32))
    with pytest.raises(PinIncorrectError):
        await faulty.unwrap([record], [key], Typed(b"wrong"))
    with pytest.raises(PinNearlyLockedError):
        await faulty.unwrap([record], [key])
    assert token.logins == 2

    await faulty.unwrap([record], [key], Typed((directory / "pin").read_bytes()))

    assert token.logins == 3
    await faulty.unwrap([record], [key])


@pytest.mark.parametrize("flag", [FINAL_TRY, LOCKED, TO_BE_CHANGED])
async def test_a_typed_pin_does_not_lock_a_token(
    faulty: Pkcs11Root, token: FaultyToken, record: WrappedDomainKey, flag: int
) -> None:
    """The last try is for whoever has the token's own tool at hand."""
    token.fail(f"C_GetTokenInfo flags {flag}")
    with pytest.raises(PinNearlyLockedError, match="its own tool"):
        await faulty.unwrap([record], [memoryview(bytearray(32))], Typed(b"1234"))
    assert token.logins == 1


async def test_the_token_is_known_from_the_last_job_that_succeeded(
    faulty: Pkcs11Root, token: FaultyToken, zygote: Zygote
) -> None:
    """A failing job changes nothing of what is known."""
    assert faulty.seen is None
    token.fail("C_GetSlotList empty")
    with pytest.raises(TokenMissingError):
        await faulty.look()
    assert faulty.seen is None

    token.heal()
    seen = await faulty.look()
    token.fail("C_GetSlotList empty")
    with pytest.raises(TokenMissingError):
        await faulty.look()
    assert faulty.seen == seen


async def test_without_a_source_no_pin_is_tried(zygote: Zygote, token: FaultyToken) -> None:
    """An administrator has to bring it."""
    root = Pkcs11Root(zygote, token.config, None)
    with pytest.raises(RootError, match="no source of the token's PIN is configured"):
        await root.make_domain_key("key-1", 1, memoryview(bytearray(32)))
    assert token.logins == 0
