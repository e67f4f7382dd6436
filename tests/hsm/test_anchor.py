"""The anchor: a number in the token that only goes up, whatever happens while it does."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from kmsd.config import Config, Hsm
from kmsd.hsm.conversation import KEYS_IN_A_JOB, TokenConfig
from kmsd.hsm.pin import FilePin
from kmsd.hsm.pkcs11 import Pkcs11Root
from kmsd.hsm.root import (
    AnchorInvalidError,
    PinIncorrectError,
    PinNearlyLockedError,
    RootError,
    TokenCrashedError,
    TokenFailedError,
    TokenMissingError,
    WrappedDomainKey,
)
from kmsd.processes.zygote import Zygote
from kmsd.server import deployment
from kmsd.server.confinement import Confinements
from tests.support.faulty_token import FaultyToken, build

STORE = "7f1e2a34-0000-4000-8000-0123456789ab"
OTHER = "7f1e2a34-0000-4000-8000-0123456789ac"
# pkcs11t.h: CKF_WRITE_PROTECTED, and CK_RV.
WRITE_PROTECTED_FLAG = 0x2
ATTRIBUTE_TYPE_INVALID = 0x12
DEVICE_ERROR, DEVICE_REMOVED = 0x30, 0x32
PIN_INCORRECT = 0xA0
FUNCTION_NOT_SUPPORTED = 0x54
DEVICE_MEMORY = 0x31
SESSION_READ_ONLY = 0xB5
TOKEN_WRITE_PROTECTED = 0xE2
FUNCTION_REJECTED = 0x200

# Prints the values of data objects, or makes one, with the label and application of an anchor.
_PROGRAM = """
import sys
import pkcs11
from pkcs11 import Attribute, ObjectClass
module, token, pin, label, private, value = sys.argv[1:]
template = {
    Attribute.CLASS: ObjectClass.DATA, Attribute.TOKEN: True, Attribute.LABEL: label, Attribute.APPLICATION: "kmsd"
}
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as session:
    if value == "list":
        for found in session.get_objects(template):
            print(found[Attribute.VALUE].hex(), found[Attribute.PRIVATE], found[Attribute.MODIFIABLE])
    else:
        session.create_object(
            {**template, Attribute.PRIVATE: private == "private", Attribute.VALUE: bytes.fromhex(value)}
        )
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("module"))


@pytest.fixture
def token(module: Path, config: TokenConfig, tmp_path: Path) -> FaultyToken:
    return FaultyToken(module, config, tmp_path / "faulty")


@pytest.fixture
def faulty(zygote: Zygote, token: FaultyToken, pin: FilePin) -> Pkcs11Root:
    return Pkcs11Root(zygote, token.config, pin)


class Objects:
    """The anchors of `STORE` as another program sees and makes them: this process must not load python-pkcs11."""

    def __init__(self, config: TokenConfig, directory: Path) -> None:
        self._config = config
        self._pin = (directory / "pin").read_text()

    def make(self, value: bytes, *, private: bool = True) -> None:
        self._run("private" if private else "public", value.hex())

    def list(self) -> list[str]:
        """Each one's value in hex, and whether it is private and modifiable."""
        return sorted(self._run("-", "list").splitlines())

    def _run(self, private: str, value: str) -> str:
        arguments = [self._config.module, self._config.token_label, self._pin, f"kmsd-store-{STORE}", private, value]
        environment = {**os.environ, **dict(self._config.environment)}
        command = [sys.executable, "-c", _PROGRAM, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.fixture
def objects(config: TokenConfig, directory: Path) -> Objects:
    return Objects(config, directory)


async def make(root: Pkcs11Root) -> tuple[WrappedDomainKey, bytes]:
    key = bytearray(32)
    return await root.make_domain_key("key-1", 1, memoryview(key)), bytes(key)


async def anchor_of(root: Pkcs11Root, record: WrappedDomainKey, store_id: str = STORE) -> int | None:
    return await root.unwrap([record], [memoryview(bytearray(32))], anchor=store_id)


async def test_the_anchor_comes_with_the_keys(faulty: Pkcs11Root, token: FaultyToken) -> None:
    """Reading it takes no login of its own, writing does."""
    record, key = await make(faulty)
    assert await anchor_of(faulty, record) is None
    assert await faulty.keep_anchor(STORE, 41)
    logins = token.logins

    opened = bytearray(32)
    assert await faulty.unwrap([record], [memoryview(opened)], anchor=STORE) == 41

    assert opened == key
    assert token.logins == logins + 1
    assert await faulty.unwrap([record], [memoryview(opened)]) is None, "nobody asked for it"


async def test_the_anchor_only_goes_up(root: Pkcs11Root, objects: Objects) -> None:
    """A lower number is no reason to forget a higher one, and one object is all that stays."""
    record, _ = await make(root)
    for sequence, expected in ((0, 0), (5, 5), (3, 5), (5, 5), (2**63, 2**63), (2**64 - 1, 2**64 - 1), (1, 2**64 - 1)):
        assert await root.keep_anchor(STORE, sequence)
        assert await anchor_of(root, record) == expected

    assert objects.list() == ["01ffffffffffffffff True True"]


async def test_each_store_has_its_own_anchor(root: Pkcs11Root) -> None:
    """Two hosts that share a token do not disturb each other."""
    record, _ = await make(root)
    await root.keep_anchor(STORE, 5)
    await root.keep_anchor(OTHER, 3)

    assert await anchor_of(root, record, STORE) == 5
    assert await anchor_of(root, record, OTHER) == 3
    assert await anchor_of(root, record, str(uuid.uuid4())) is None


async def test_the_anchor_comes_with_more_keys_than_fit_into_a_job(root: Pkcs11Root) -> None:
    """However many jobs there are."""
    record, _ = await make(root)
    await root.keep_anchor(STORE, 5)
    many = [record] * (KEYS_IN_A_JOB + 1)

    assert await root.unwrap(many, [memoryview(bytearray(32)) for _ in many], anchor=STORE) == 5


async def test_an_id_that_is_none_does_not_reach_the_token(faulty: Pkcs11Root, token: FaultyToken) -> None:
    """It is read before anything of the store is verified."""
    record, _ = await make(faulty)
    logins = token.logins
    for store_id in ("", "store", STORE.upper(), STORE + "\n", STORE[:-1], "i" * 300_000):
        with pytest.raises(AnchorInvalidError, match="restore the store"):
            await anchor_of(faulty, record, store_id)
        with pytest.raises(AnchorInvalidError, match="restore the store"):
            await faulty.keep_anchor(store_id, 1)
    assert token.logins == logins


@pytest.mark.parametrize(
    "value",
    [b"", b"\x01" + bytes(7), b"\x02" + bytes(8), b"\x01" + bytes(30_000)],
    ids=["empty", "short", "newer", "huge"],
)
async def test_an_object_that_holds_no_number_does_not_unseal(root: Pkcs11Root, objects: Objects, value: bytes) -> None:
    """What stands in the place of a higher number is neither ignored nor replaced, even beside one that is right."""
    record, _ = await make(root)
    await root.keep_anchor(STORE, 5)
    objects.make(value)

    with pytest.raises(AnchorInvalidError, match=f"'kmsd-store-{STORE}'.*delete the object"):
        await anchor_of(root, record)
    with pytest.raises(AnchorInvalidError):
        await root.keep_anchor(STORE, 6)
    assert len(objects.list()) == 2
    assert await anchor_of(root, record, OTHER) is None


async def test_of_two_anchors_the_higher_one_counts(root: Pkcs11Root, objects: Objects) -> None:
    """A job that was killed left both, and the next one tidies up."""
    record, _ = await make(root)
    for number in (7, 9, 8):
        objects.make(b"\x01" + number.to_bytes(8, "big"))

    assert await anchor_of(root, record) == 9
    assert await root.keep_anchor(STORE, 2)
    assert [line[:18] for line in objects.list()] == ["010000000000000009"]


async def test_a_public_object_is_no_anchor(root: Pkcs11Root, objects: Objects) -> None:
    """Whoever can use the token without its PIN can make one, but not tell kmsd anything by it."""
    record, _ = await make(root)
    objects.make(b"\x01" + b"\xff" * 8, private=False)
    objects.make(b"nonsense", private=False)

    assert await anchor_of(root, record) is None
    assert await root.keep_anchor(STORE, 1)
    assert await anchor_of(root, record) == 1


@pytest.mark.parametrize("fault", ["C_CreateObject crash", "C_CreateObject exit 9", "C_DestroyObject crash"])
async def test_a_job_that_is_killed_loses_no_number(
    faulty: Pkcs11Root, token: FaultyToken, objects: Objects, fault: str
) -> None:
    """Before the new object is made the old one counts, after that the new one."""
    record, _ = await make(faulty)
    await faulty.keep_anchor(STORE, 5)
    token.fail(fault)
    with pytest.raises(TokenCrashedError):
        await faulty.keep_anchor(STORE, 6)

    token.heal()
    assert await anchor_of(faulty, record) == (6 if "Destroy" in fault else 5)
    assert await faulty.keep_anchor(STORE, 6)
    assert [line[:18] for line in objects.list()] == ["010000000000000006"]


async def test_a_token_that_keeps_nothing_says_so(faulty: Pkcs11Root, token: FaultyToken) -> None:
    """That is no error."""
    for fault in (
        f"C_GetTokenInfo flags {WRITE_PROTECTED_FLAG}",
        f"C_OpenSession return {TOKEN_WRITE_PROTECTED}",
        f"C_FindObjectsInit data {ATTRIBUTE_TYPE_INVALID}",
        f"C_FindObjectsInit data {FUNCTION_NOT_SUPPORTED}",
        f"C_CreateObject return {FUNCTION_NOT_SUPPORTED}",
        f"C_CreateObject return {FUNCTION_REJECTED}",
        f"C_CreateObject return {DEVICE_MEMORY}",
        f"C_CreateObject return {SESSION_READ_ONLY}",
        f"C_CreateObject return {TOKEN_WRITE_PROTECTED}",
    ):
        token.fail(fault)
        assert not await faulty.keep_anchor(STORE, 5), fault

    token.heal()
    assert await faulty.keep_anchor(STORE, 5)


async def test_a_token_without_data_objects_unseals(faulty: Pkcs11Root, token: FaultyToken) -> None:
    """It has just no anchor."""
    record, key = await make(faulty)
    for code in (ATTRIBUTE_TYPE_INVALID, FUNCTION_NOT_SUPPORTED):
        token.fail(f"C_FindObjectsInit data {code}")
        opened = bytearray(32)

        assert await faulty.unwrap([record], [memoryview(opened)], anchor=STORE) is None
        assert opened == key


async def test_a_token_that_destroys_nothing_is_not_filled(
    faulty: Pkcs11Root, token: FaultyToken, objects: Objects
) -> None:
    """It keeps two numbers at most, and kmsd does not believe that it keeps more."""
    record, _ = await make(faulty)
    await faulty.keep_anchor(STORE, 5)
    token.fail(f"C_DestroyObject return {FUNCTION_REJECTED}")
    for sequence in range(6, 10):
        assert not await faulty.keep_anchor(STORE, sequence)

    assert len(objects.list()) == 2
    assert await anchor_of(faulty, record) == 6


async def test_a_token_that_fails_meanwhile_does_not_unseal(faulty: Pkcs11Root, token: FaultyToken) -> None:
    """What could not be read is not taken for an anchor that is not there."""
    record, _ = await make(faulty)
    await faulty.keep_anchor(STORE, 5)
    for code, error in ((DEVICE_ERROR, TokenFailedError), (DEVICE_REMOVED, TokenMissingError)):
        token.fail(f"C_FindObjectsInit data {code}")
        with pytest.raises(error):
            await anchor_of(faulty, record)

    token.heal()
    assert await anchor_of(faulty, record) == 5


@pytest.mark.parametrize(
    ("fault", "error", "logins"),
    [
        (f"C_Login return {PIN_INCORRECT}", PinIncorrectError, 1),
        ("C_GetTokenInfo flags 0x20000", PinNearlyLockedError, 0),
        ("C_GetSlotList empty", TokenMissingError, 0),
        (f"C_CreateObject return {DEVICE_ERROR}", TokenFailedError, 1),
    ],
)
async def test_writing_fails_as_every_job_does(
    faulty: Pkcs11Root, token: FaultyToken, fault: str, error: type[RootError], logins: int
) -> None:
    """One error that says what to do, and at most one login."""
    token.fail(fault)
    with pytest.raises(error):
        await faulty.keep_anchor(STORE, 5)
    assert token.logins == logins


async def test_without_a_pin_nothing_is_written(zygote: Zygote, config: TokenConfig) -> None:
    """Somebody has to bring it."""
    with pytest.raises(RootError, match="no source of the token's PIN is configured"):
        await Pkcs11Root(zygote, config, None).keep_anchor(STORE, 5)


async def test_a_confined_job_writes_the_anchor(
    zygote: Zygote, config: TokenConfig, directory: Path, pin: FilePin, tmp_path: Path
) -> None:
    """As under `kmsd dev`, and as `kmsd serve` confines it with what `kmsd init` puts into the settings of SoftHSM."""
    hsm = Hsm(
        module=config.module,
        token_label=config.token_label,
        environment=dict(config.environment),
        readable_paths=(str(directory),),
        writable_paths=(str(directory),),
    )
    development = deployment.development(tmp_path, Config(), shared=False, only_uid=None, ready=lambda: None)
    host = deployment.founding(Config(hsm=hsm), pin)
    record, _ = await make(Pkcs11Root(zygote, config, pin))
    for sequence, deployed in enumerate((development, host), 1):
        confined = Zygote.start(Confinements(deployed).entries())
        try:
            root = Pkcs11Root(confined, config, pin)
            assert await root.keep_anchor(STORE, sequence)
            assert await anchor_of(root, record) == sequence
        finally:
            await confined.close()


async def test_another_token_has_no_anchor(root: Pkcs11Root, zygote: Zygote, config: TokenConfig, pin: FilePin) -> None:
    """A label that no token bears is the same error as for every job."""
    elsewhere = Pkcs11Root(zygote, replace(config, token_label="elsewhere"), pin)  # noqa: S106 - no password
    with pytest.raises(TokenMissingError):
        await elsewhere.keep_anchor(STORE, 5)
