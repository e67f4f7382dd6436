"""Sealed, the daemon holds no keys; unsealed, it holds those its store and token agree on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsd.api.errors import IntegrityError, SealedError
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.hsm.root import PinIncorrectError
from kmsd.store.base import Insert, Replace
from kmsd.store.rows import SecretRow, SettingsRow
from tests.support.embedded import ACCOUNT, ALICE, REGION, Embedded


async def nobody(accepted: list[str]) -> None:
    raise AssertionError(accepted)


def is_sealed(service: Embedded) -> bool:
    return service.seal.sealed


async def test_a_new_store_is_unsealed_and_the_next_start_unseals_it(service: Embedded) -> None:
    """What was encrypted before the seal is decrypted after it."""
    arn = await service.make_key()
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"kept"))
    blob = (await service.ask(ALICE, ENCRYPT, request)).ciphertext_blob
    assert not is_sealed(service)

    service.seal.seal()
    assert is_sealed(service)
    await service.seal.unseal(nobody)

    assert not is_sealed(service)
    assert bytes((await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob))).plaintext) == b"kept"


async def test_sealing_gives_all_keys_back(service: Embedded) -> None:
    """Domain keys, material and the row-MAC key are wiped; sealing twice is once."""
    used = service.arena.used_bytes
    arn = await service.make_key()
    await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))

    service.seal.seal()
    service.seal.seal()

    assert service.arena.used_bytes == used - 4 * 32  # without the domain key, the store's two keys and the audit key
    with pytest.raises(SealedError):
        await service.store.key(arn)
    with pytest.raises(SealedError):
        await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x")))


async def test_a_refusing_token_leaves_it_sealed(service: Embedded) -> None:
    """Nothing stays in memory of an attempt that failed, and the next may succeed."""
    service.seal.seal()
    used = service.arena.used_bytes
    service.root.fault = PinIncorrectError("the PIN is wrong")

    with pytest.raises(PinIncorrectError):
        await service.seal.unseal(nobody)

    assert is_sealed(service)
    assert service.arena.used_bytes == used
    service.root.fault = None
    await service.seal.unseal(nobody)
    assert not is_sealed(service)


@pytest.mark.parametrize("wrapped", ["changed", "mac"])
async def test_a_changed_store_leaves_it_sealed(service: Embedded, wrapped: str) -> None:
    """A row-MAC key that does not open, or a row whose MAC is wrong: the domain keys are wiped again."""
    secret = await service.store.secret("row-mac")
    assert secret is not None
    if wrapped == "changed":
        other = secret.wrapped[:-1] + bytes([secret.wrapped[-1] ^ 1])
        row = SecretRow(name=secret.name, domain_key_id=secret.domain_key_id, wrapped=other, version=2)
        await service.store.commit("tamper", [Replace(row)])
    else:
        # Authenticated by another key than the store's.
        service.store.unseal(memoryview(bytearray(32)), memoryview(bytearray(32)))
        await service.store.accept_state(0)
        await service.store.commit("tamper", [Replace(SettingsRow(account="999999999999", region=REGION, version=2))])
    service.seal.seal()
    await service.store.settings()  # as a start does
    used = service.arena.used_bytes

    with pytest.raises(IntegrityError):
        await service.seal.unseal(nobody)

    assert is_sealed(service)
    assert service.arena.used_bytes == used
    with pytest.raises(SealedError):
        _ = service.hierarchy.current_domain_key
    with pytest.raises(SealedError):
        await service.store.keys(after=None, limit=1)


async def test_a_store_without_its_keys_is_not_unsealed(tmp_path: Path) -> None:
    """An empty store is made by `initialize` only: an existing one that lost its rows is not taken for a new one."""
    service = await Embedded.open(tmp_path, initialize=False)
    try:
        with pytest.raises(IntegrityError, match="restore it from a backup"):
            await service.seal.unseal(nobody)
        assert is_sealed(service)
    finally:
        await service.close()


async def test_a_token_that_fails_at_first_leaves_an_empty_store(tmp_path: Path) -> None:
    """The first start can be repeated."""
    service = await Embedded.open(tmp_path, initialize=False)
    try:
        service.root.fault = PinIncorrectError("the PIN is wrong")
        with pytest.raises(PinIncorrectError):
            await service.seal.initialize(SettingsRow(account=ACCOUNT, region=REGION, version=1))
        assert is_sealed(service)
        assert await service.store.settings() is None
    finally:
        await service.close()


async def test_the_first_start_is_one_commit(service: Embedded) -> None:
    """Settings, domain key and row-MAC key are there together or not at all."""
    assert await service.store.settings() == SettingsRow(account=ACCOUNT, region=REGION, counted=True, version=1)
    assert len(await service.store.domain_keys()) == 1
    assert await service.store.secret("row-mac") is not None
    with pytest.raises(Exception, match="exists"):
        await service.store.commit("again", [Insert(SettingsRow(account=ACCOUNT, region=REGION, version=1))])
