"""The root key in a real SoftHSM token, and everything that can go wrong on the way to it."""

import asyncio
import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmsd.hsm.conversation import KEYS_IN_A_JOB
from kmsd.hsm.pkcs11 import FilePin, Pkcs11Root, TokenConfig, run_job
from kmsd.hsm.root import (
    PinIncorrectError,
    PinNearlyLockedError,
    PinUnavailableError,
    RootKeyMissingError,
    TokenMissingError,
    UnsupportedTokenError,
    WrappedDomainKey,
    WrappedKeyInvalidError,
)
from kmsd.hsm.softhsm import PIN_NAME, ROOT_KEY_LABEL, make_token
from kmsd.hsm.wrapped import WRAPPED_BYTES
from kmsd.processes.zygote import Entry, Zygote

ZygoteWith = Callable[[Entry], Zygote]


async def make(root: Pkcs11Root, domain_key_id: str = "key-1", generation: int = 1) -> tuple[WrappedDomainKey, bytes]:
    key = bytearray(32)
    record = await root.make_domain_key(domain_key_id, generation, memoryview(key))
    return record, bytes(key)


async def unwrap(root: Pkcs11Root, *records: WrappedDomainKey) -> list[bytes]:
    keys = [bytearray(32) for _ in records]
    await root.unwrap(records, [memoryview(key) for key in keys])
    return [bytes(key) for key in keys]


def in_python(program: str, **environment: str) -> str:
    """The output of a program of its own: this process must not load python-pkcs11."""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return ran.stdout


async def test_a_key_of_another_token_is_wrapped_like_one_of_its_own(root: Pkcs11Root) -> None:
    """So that a store can move to a new token; it is bound to its id and generation as all are."""
    key = bytes(range(32))
    record = await root.wrap_domain_key("key-7", 7, memoryview(key))

    assert (record.domain_key_id, record.generation, len(record.wrapped)) == ("key-7", 7, WRAPPED_BYTES)
    assert await unwrap(root, record) == [key]
    with pytest.raises(WrappedKeyInvalidError):
        await unwrap(root, WrappedDomainKey("key-7", 8, record.wrapped))


async def test_the_token_describes_itself(root: Pkcs11Root, config: TokenConfig) -> None:
    """A look needs no PIN and tells what an administrator compares."""
    info = await root.look()

    assert (info.label, info.manufacturer, info.model) == (config.token_label, "SoftHSM project", "SoftHSM v2")
    assert info.firmware.startswith("2.")
    assert len(info.serial) == 16
    assert {"AES_GCM", "AES_KEY_GEN"} <= set(info.mechanisms)


async def test_a_look_needs_no_pin(zygote: Zygote, config: TokenConfig, tmp_path: Path) -> None:
    """`kms status` and `kms doctor` work before there is a PIN."""
    assert (await Pkcs11Root(zygote, config, FilePin(tmp_path / "none")).look()).label == config.token_label


async def test_a_domain_key_comes_back(root: Pkcs11Root) -> None:
    """What was made is what its record unwraps to."""
    record, key = await make(root)

    assert record.domain_key_id == "key-1"
    assert record.generation == 1
    assert len(record.wrapped) == WRAPPED_BYTES
    assert key not in record.wrapped
    assert await unwrap(root, record) == [key]


async def test_domain_keys_and_wraps_are_fresh(root: Pkcs11Root) -> None:
    """Two keys have nothing in common, not even the IV."""
    (one, one_key), (other, other_key) = await make(root), await make(root)

    assert one_key != other_key
    assert one_key != bytes(32)
    assert one.wrapped[1:13] != other.wrapped[1:13]


async def test_more_keys_than_fit_into_a_job_come_back(root: Pkcs11Root) -> None:
    """An old store has many domain keys; each lands in its own buffer."""
    made = [await make(root, f"key-{number}", number) for number in range(3)]
    many = [made[number % 3] for number in range(KEYS_IN_A_JOB + 2)]

    assert await unwrap(root, *(record for record, _ in many)) == [key for _, key in many]


async def test_nothing_to_unwrap_needs_no_token(zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin) -> None:
    """No job, no login."""
    assert await unwrap(Pkcs11Root(zygote_with(crash), config, pin)) == []


async def test_calls_at_the_same_time_take_turns(root: Pkcs11Root) -> None:
    """Concurrent callers do not disturb each other."""
    made = await asyncio.gather(*(make(root, f"key-{number}") for number in range(3)))

    assert await unwrap(root, *(record for record, _ in made)) == [key for _, key in made]


@pytest.mark.parametrize("position", [1, 13, WRAPPED_BYTES - 1])
async def test_a_changed_wrapped_key_is_refused(root: Pkcs11Root, position: int) -> None:
    """One bit in IV, ciphertext or tag is enough."""
    record, _ = await make(root)
    changed = bytearray(record.wrapped)
    changed[position] ^= 1

    with pytest.raises(WrappedKeyInvalidError, match=r"'key-1'.*restore"):
        await unwrap(root, replace(record, wrapped=bytes(changed)))


async def test_a_wrapped_key_is_bound_to_its_id_and_generation(root: Pkcs11Root) -> None:
    """A record that was renamed or given another age does not open."""
    record, key = await make(root)

    for moved in (replace(record, domain_key_id="key-2"), replace(record, generation=2)):
        with pytest.raises(WrappedKeyInvalidError):
            await unwrap(root, moved)
    assert await unwrap(root, record) == [key], "the token itself is as good as before"


async def test_a_key_of_another_token_is_refused(
    root: Pkcs11Root, zygote: Zygote, config: TokenConfig, tmp_path: Path
) -> None:
    """Two root keys with one label are told apart by what they wrapped."""
    other = await make_token(zygote, tmp_path / "other", label=config.token_label)
    record, _ = await make(Pkcs11Root(zygote, other, FilePin(tmp_path / "other" / PIN_NAME)))

    with pytest.raises(WrappedKeyInvalidError, match="another root key"):
        await unwrap(root, record)


@pytest.mark.parametrize("wrapped", [b"", b"\x01", b"\x02" + bytes(WRAPPED_BYTES - 1), bytes(1 << 20)])
async def test_a_damaged_record_does_not_reach_the_token(
    zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin, wrapped: bytes
) -> None:
    """What is not a wrapped key at all is refused without a login."""
    root = Pkcs11Root(zygote_with(crash), config, pin)

    with pytest.raises(WrappedKeyInvalidError):
        await unwrap(root, WrappedDomainKey("key-1", 1, wrapped))


async def test_a_damaged_id_is_refused_as_a_damaged_record(root: Pkcs11Root) -> None:
    """An id that no datagram holds comes from the store, so it is the store's fault."""
    with pytest.raises(WrappedKeyInvalidError, match="damaged"):
        await unwrap(root, WrappedDomainKey("i" * 300_000, 1, b"\x01" + bytes(WRAPPED_BYTES - 1)))


async def test_a_wrong_pin_is_tried_once(zygote_with: ZygoteWith, config: TokenConfig, tmp_path: Path) -> None:
    """It is never retried by itself, however much there is to do; and then the token's own warning is respected."""
    jobs = tmp_path / "jobs"

    def counted(descriptors: list[int]) -> None:
        with jobs.open("ab") as log:
            log.write(b".")
        run_job(descriptors)

    (tmp_path / "wrong").write_text("0000")
    (tmp_path / "wrong").chmod(0o600)
    root = Pkcs11Root(zygote_with(counted), config, FilePin(tmp_path / "wrong"))
    record = WrappedDomainKey("key-1", 1, b"\x01" + bytes(WRAPPED_BYTES - 1))

    with pytest.raises(PinIncorrectError, match="correct it before the next try") as refused:
        await unwrap(root, *[record] * (KEYS_IN_A_JOB + 1))
    assert jobs.read_bytes() == b"."
    assert "0000" not in str(refused.value)
    with pytest.raises(PinNearlyLockedError, match="a wrong PIN was tried"):
        await make(root)


async def test_a_token_with_failed_logins_waits_for_someone(
    root: Pkcs11Root, zygote: Zygote, config: TokenConfig, tmp_path: Path, pin: FilePin
) -> None:
    """Not even the right PIN is tried, until somebody has logged in with the token's own tool."""
    record, key = await make(root)
    (tmp_path / "wrong").write_text("0000")
    (tmp_path / "wrong").chmod(0o600)
    with pytest.raises(PinIncorrectError):
        await make(Pkcs11Root(zygote, config, FilePin(tmp_path / "wrong")))

    with pytest.raises(PinNearlyLockedError, match="log in to the token once"):
        await unwrap(root, record)
    view = memoryview(bytearray(100))
    in_python(
        f"import pkcs11; pkcs11.lib({config.module!r}).get_token(token_label={config.token_label!r})"
        f".open(user_pin={str(view[: pin.read_into(view)], 'utf-8')!r})",
        **dict(config.environment),
    )
    assert await unwrap(root, record) == [key]


async def test_a_pin_that_is_no_text_is_not_tried(zygote: Zygote, config: TokenConfig, tmp_path: Path) -> None:
    """It is refused before the login, and does not count as a try."""
    (tmp_path / "wrong").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "wrong").chmod(0o600)
    root = Pkcs11Root(zygote, config, FilePin(tmp_path / "wrong"))

    for _ in range(2):
        with pytest.raises(PinIncorrectError, match="UTF-8"):
            await make(root)


async def test_a_missing_pin_is_named(zygote: Zygote, config: TokenConfig, tmp_path: Path) -> None:
    """The source of the PIN says what is wrong with it."""
    with pytest.raises(PinUnavailableError, match="none"):
        await make(Pkcs11Root(zygote, config, FilePin(tmp_path / "none")))


async def test_a_missing_token_is_named(zygote: Zygote, config: TokenConfig, pin: FilePin) -> None:
    """The message tells what is there instead."""
    root = Pkcs11Root(zygote, replace(config, token_label="elsewhere"), pin)  # noqa: S106 - no password

    for call in (root.look(), make(root)):
        with pytest.raises(TokenMissingError, match=f"'elsewhere' .present: '{config.token_label}'"):
            await call


async def test_two_tokens_with_one_label_are_refused(
    root: Pkcs11Root, zygote: Zygote, config: TokenConfig, directory: Path, tmp_path: Path
) -> None:
    """Which of them is meant is not for kmsd to guess."""
    await make_token(zygote, tmp_path / "other", label=config.token_label)
    for token in (tmp_path / "other" / "tokens").iterdir():
        shutil.copytree(token, directory / "tokens" / token.name)

    with pytest.raises(TokenMissingError, match="2 tokens are labelled"):
        await make(root)


@pytest.mark.parametrize("module", ["/nonexistent/module.so", "/etc/passwd", "/lib/x86_64-linux-gnu/libc.so.6"])
async def test_a_module_that_is_none_is_named(zygote: Zygote, config: TokenConfig, pin: FilePin, module: str) -> None:
    """A missing file, and one that is no PKCS#11 module."""
    with pytest.raises(TokenMissingError, match=f"{module} cannot be used .*install it"):
        await make(Pkcs11Root(zygote, replace(config, module=module), pin))


async def test_a_module_without_its_settings_is_named(
    zygote: Zygote, config: TokenConfig, pin: FilePin, tmp_path: Path
) -> None:
    """SoftHSM cannot start without its tokens' directory."""
    broken = replace(config, environment=(("SOFTHSM2_CONF", str(tmp_path / "none")),))

    with pytest.raises(TokenMissingError, match="settings"):
        await make(Pkcs11Root(zygote, broken, pin))


async def test_a_missing_root_key_is_named(zygote: Zygote, config: TokenConfig, pin: FilePin) -> None:
    """A token without the key is not the token kmsd was set up with."""
    with pytest.raises(RootKeyMissingError, match=r"no AES key labelled 'elsewhere'"):
        await make(Pkcs11Root(zygote, replace(config, root_key_label="elsewhere"), pin))


@pytest.mark.parametrize(
    ("label", "bits", "attributes", "reason"),
    [
        ("readable", 256, "{Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: True}", "cannot be the root key"),
        ("insensitive", 256, "{Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: False}", "cannot be the root key"),
        ("short", 128, "{Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True}", "cannot be the root key"),
        (ROOT_KEY_LABEL, 256, "{Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True}", "there are 2 AES keys"),
    ],
)
async def test_a_key_that_may_not_be_root_is_refused(
    zygote: Zygote, config: TokenConfig, pin: FilePin, label: str, bits: int, attributes: str, reason: str
) -> None:
    """A root key that could be read out, is short or is not the only one is not used."""
    view = memoryview(bytearray(100))
    in_python(
        f"import pkcs11\nfrom pkcs11 import Attribute\ntoken = pkcs11.lib({config.module!r})"
        f".get_token(token_label={config.token_label!r})\n"
        f"token.open(rw=True, user_pin={str(view[: pin.read_into(view)], 'utf-8')!r})"
        f".generate_key(pkcs11.KeyType.AES, {bits}, label={label!r}, store=True, template={attributes})",
        **dict(config.environment),
    )

    with pytest.raises(RootKeyMissingError, match=reason):
        await make(Pkcs11Root(zygote, replace(config, root_key_label=label), pin))


async def test_a_token_without_aes_gcm_is_refused(root: Pkcs11Root, config: TokenConfig, directory: Path) -> None:
    """It is noticed before the PIN is tried."""
    conf = directory / "softhsm2.conf"
    conf.write_text(conf.read_text() + "slots.mechanisms = CKM_AES_CBC,CKM_AES_KEY_GEN\n")

    assert (await root.look()).mechanisms == ("AES_CBC", "AES_KEY_GEN")
    with pytest.raises(UnsupportedTokenError, match="CKM_AES_GCM"):
        await make(root)


def crash(descriptors: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


async def test_descriptors_do_not_leak(root: Pkcs11Root, zygote: Zygote, config: TokenConfig, tmp_path: Path) -> None:
    """Neither success nor failure leaves a page or a socket open."""
    record, _ = await make(root)
    before = open_descriptors()
    await unwrap(root, record)
    with pytest.raises(WrappedKeyInvalidError):
        await unwrap(root, replace(record, generation=9))
    with pytest.raises(PinUnavailableError):
        await make(Pkcs11Root(zygote, config, FilePin(tmp_path / "none")))

    assert open_descriptors() == before


async def test_pin_and_keys_cross_in_pages_only(
    zygote_with: ZygoteWith, config: TokenConfig, pin: FilePin, directory: Path, tmp_path: Path
) -> None:
    """No datagram between daemon and job holds them, in clear or in base64."""
    log = tmp_path / "datagrams"

    class Overheard(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            return record_datagram(super().recv(size, flags))

        def send(self, data: Any, flags: int = 0) -> int:
            return super().send(record_datagram(data), flags)

    def record_datagram(data: bytes) -> bytes:
        with log.open("ab") as file:
            file.write(data + b"\n")
        return data

    def overheard(descriptors: list[int]) -> None:
        socket.socket = Overheard  # type: ignore[misc] # in the job's process alone
        run_job(descriptors)

    root = Pkcs11Root(zygote_with(overheard), config, pin)
    record, key = await make(root)
    await unwrap(root, record)
    datagrams = log.read_bytes()

    assert datagrams.count(base64.b64encode(record.wrapped)) == 2, "everything was overheard"
    for secret in ((directory / PIN_NAME).read_bytes(), key):
        assert secret not in datagrams
        assert base64.b64encode(secret).rstrip(b"=") not in datagrams


def test_the_daemon_never_loads_the_module() -> None:
    """python-pkcs11 stays out of every process that imports the root."""
    loaded = in_python("import sys, kmsd.hsm.pkcs11, kmsd.hsm.softhsm; print(*sys.modules)").split()

    assert "kmsd.hsm.job" in loaded
    in_jobs = {"kmsd.hsm.cryptoki", "kmsd.hsm.initialization", "kmsd.hsm.anchor"}
    assert not {"pkcs11", "pkcs11._pkcs11", *in_jobs} & set(loaded)


async def test_a_job_uses_the_configured_environment_in_its_own_process_only(root: Pkcs11Root) -> None:
    """SoftHSM found its settings, and the daemon's environment knows nothing of them."""
    await root.look()

    assert "SOFTHSM2_CONF" not in os.environ


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
