"""Encryption, data keys and random bytes, as their callers see them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmsd.api.errors import (
    AccessDeniedError,
    DryRunOperationError,
    IncorrectKeyError,
    InvalidCiphertextError,
    KmsError,
    NotFoundError,
    ValidationError,
)
from kmsd.api.keys import CREATE_ALIAS, CreateAliasRequest
from kmsd.api.shapes import DataKeySpec
from kmsd.api.symmetric import (
    DECRYPT,
    ENCRYPT,
    GENERATE_DATA_KEY,
    GENERATE_DATA_KEY_WITHOUT_PLAINTEXT,
    GENERATE_RANDOM,
    REENCRYPT,
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    GenerateDataKeyRequest,
    GenerateRandomRequest,
    ReEncryptRequest,
)
from tests.support.embedded import ALICE, BOB, Embedded, person

# Bob, in the group that may make keys.
BOB_WITH_KEYS = person(1001, user="bob")
CONTEXTS = st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3)


async def encrypted(service: Embedded, arn: str, plaintext: bytes = b"secret", **context: str) -> bytes:
    request = EncryptRequest(key_id=arn, plaintext=memoryview(plaintext), encryption_context=context)
    response = await service.ask(ALICE, ENCRYPT, request)
    assert response.key_id == arn
    return response.ciphertext_blob


async def decrypted(service: Embedded, blob: bytes, key_id: str | None = None, **context: str) -> DecryptResponse:
    request = DecryptRequest(ciphertext_blob=blob, encryption_context=context, key_id=key_id)
    return await service.ask(ALICE, DECRYPT, request)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plaintext=st.binary(min_size=1, max_size=4096), context=CONTEXTS)
async def test_what_was_encrypted_comes_back(service: Embedded, plaintext: bytes, context: dict[str, str]) -> None:
    """Any plaintext and context; the blob names its key."""
    arn = await service.make_key()

    answer = await decrypted(service, await encrypted(service, arn, plaintext, **context), **context)

    assert bytes(answer.plaintext) == plaintext
    assert answer.key_id == arn
    assert len(answer.key_material_id) == 64


async def test_every_form_of_a_key_s_name_works(service: Embedded) -> None:
    """Id, ARN, alias and alias ARN, for encrypting and for naming the key of a blob; the answer has the ARN."""
    arn = await service.make_key()
    await service.ask(ALICE, CREATE_ALIAS, CreateAliasRequest(alias_name="alias/mine", target_key_id=arn))
    for name in (arn, arn.rpartition("/")[2], "alias/mine", service.arns.alias("alias/mine")):
        request = EncryptRequest(key_id=name, plaintext=memoryview(b"x"))
        response = await service.ask(ALICE, ENCRYPT, request)
        assert response.key_id == arn
        assert (await decrypted(service, response.ciphertext_blob, name)).key_id == arn


async def test_another_context_is_another_ciphertext(service: Embedded) -> None:
    """The error has no message, and is the one of any other change."""
    arn = await service.make_key()
    blob = await encrypted(service, arn, a="b")
    changed = blob[:-1] + bytes([blob[-1] ^ 1])
    # A material number the key never had.
    later = blob[:17] + (2).to_bytes(4, "big") + blob[21:]

    for attempt in (decrypted(service, blob), decrypted(service, changed, a="b"), decrypted(service, later, a="b")):
        with pytest.raises(InvalidCiphertextError) as refusal:
            await attempt
        assert str(refusal.value) == ""


async def test_a_named_key_must_be_the_blob_s(service: Embedded) -> None:
    """With AWS's own words."""
    arn, other = await service.make_key(), await service.make_key()
    blob = await encrypted(service, arn)

    with pytest.raises(IncorrectKeyError, match="does not identify a CMK that can perform this operation"):
        await decrypted(service, blob, other)


async def test_what_is_no_blob_opens_nothing(service: Embedded) -> None:
    """A blob of no known version, and one of a key that is not here."""
    arn = await service.make_key()
    blob = await encrypted(service, arn)

    with pytest.raises(InvalidCiphertextError):
        await decrypted(service, b"not a blob")
    with pytest.raises(NotFoundError):
        await decrypted(service, blob[:1] + bytes(16) + blob[17:])


async def test_a_blob_moves_to_another_key_and_context(service: Embedded) -> None:
    """The answer tells both keys and both materials; the plaintext leaves nowhere."""
    source, destination = await service.make_key(), await service.make_key()
    blob = await encrypted(service, source, a="b")
    request = ReEncryptRequest(
        ciphertext_blob=blob,
        source_encryption_context={"a": "b"},
        destination_key_id=destination,
        destination_encryption_context={"c": "d"},
    )

    moved = await service.ask(ALICE, REENCRYPT, request)

    assert (moved.source_key_id, moved.key_id) == (source, destination)
    assert moved.source_key_material_id != moved.destination_key_material_id
    assert bytes((await decrypted(service, moved.ciphertext_blob, c="d")).plaintext) == b"secret"
    assert service.lines()[-2]["resources"] == [{"ARN": source}, {"ARN": destination}]


async def test_both_keys_are_authorized_before_either_is_used(service: Embedded) -> None:
    """Who may use one of two keys is told nothing of the ciphertext."""
    mine, alices = await service.make_key(BOB_WITH_KEYS), await service.make_key()
    changed = await encrypted(service, alices)
    changed = changed[:-1] + bytes([changed[-1] ^ 1])
    bobs = EncryptRequest(key_id=mine, plaintext=memoryview(b"x"))
    own = (await service.ask(BOB, ENCRYPT, bobs)).ciphertext_blob

    for request, action in (
        (ReEncryptRequest(ciphertext_blob=changed, destination_key_id=mine), "kms:ReEncryptFrom"),
        (ReEncryptRequest(ciphertext_blob=own[:-1] + b"x", destination_key_id=alices), "kms:ReEncryptTo"),
    ):
        with pytest.raises(AccessDeniedError, match=action):
            await service.ask(BOB, REENCRYPT, request)


@pytest.mark.parametrize(
    ("members", "size"),
    [
        ({"key_spec": DataKeySpec.AES_256}, 32),
        ({"key_spec": DataKeySpec.AES_128}, 16),
        ({"number_of_bytes": 1}, 1),
        ({"number_of_bytes": 1024}, 1024),
    ],
    ids=["AES_256", "AES_128", "1", "1024"],
)
async def test_a_data_key_comes_in_both_forms(service: Embedded, members: dict[str, int], size: int) -> None:
    """The blob opens to the plaintext, under the same context; each data key is fresh."""
    arn = await service.make_key()
    request = GenerateDataKeyRequest(key_id=arn, encryption_context={"a": "b"}, **members)  # type: ignore[arg-type] # one of two

    first = await service.ask(ALICE, GENERATE_DATA_KEY, request)
    second = await service.ask(ALICE, GENERATE_DATA_KEY, request)
    hidden = await service.ask(ALICE, GENERATE_DATA_KEY_WITHOUT_PLAINTEXT, request)

    assert len(first.plaintext) == size
    assert size == 1 or bytes(first.plaintext) != bytes(second.plaintext)
    opened = await decrypted(service, first.ciphertext_blob, a="b")
    assert bytes(opened.plaintext) == bytes(first.plaintext)
    assert opened.key_material_id == first.key_material_id == hidden.key_material_id
    assert len((await decrypted(service, hidden.ciphertext_blob, a="b")).plaintext) == size


@pytest.mark.parametrize(
    "members", [{}, {"key_spec": DataKeySpec.AES_256, "number_of_bytes": 32}], ids=["neither", "both"]
)
async def test_exactly_one_member_gives_a_data_key_s_size(service: Embedded, members: dict[str, int]) -> None:
    """With AWS's own words."""
    arn = await service.make_key()
    request = GenerateDataKeyRequest(key_id=arn, **members)  # type: ignore[arg-type] # both wrong

    for operation in (GENERATE_DATA_KEY, GENERATE_DATA_KEY_WITHOUT_PLAINTEXT):
        with pytest.raises(ValidationError, match="either number of bytes or key spec"):
            await service.ask(ALICE, operation, request)  # type: ignore[misc] # of two response types


async def test_a_dry_run_says_that_it_would_have_succeeded(service: Embedded) -> None:
    """After authorization, and without doing it."""
    arn = await service.make_key()
    blob = await encrypted(service, arn)
    dry = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"), dry_run=True)

    with pytest.raises(DryRunOperationError):
        await service.ask(ALICE, ENCRYPT, dry)
    with pytest.raises(DryRunOperationError):
        await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob, dry_run=True))
    moving = ReEncryptRequest(ciphertext_blob=blob, destination_key_id=arn, dry_run=True)
    with pytest.raises(DryRunOperationError):
        await service.ask(ALICE, REENCRYPT, moving)
    with pytest.raises(AccessDeniedError):
        await service.ask(BOB, ENCRYPT, dry)
    assert service.newest()["requestParameters"]["dryRun"] is True


async def test_random_bytes_come_in_any_length(service: Embedded) -> None:
    """Up to the bound, by everybody, each time others."""
    for size in (1, 257, 32 * 1024):
        response = await service.ask(BOB, GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=size))
        assert len(response.plaintext) == size
    request = GenerateRandomRequest(number_of_bytes=32)
    drawn = {bytes((await service.ask(BOB, GENERATE_RANDOM, request)).plaintext) for _ in range(20)}
    assert len(drawn) == 20


async def test_random_bytes_need_no_more_secret_memory(service: Embedded) -> None:
    """An arena full of keys does not stop what needs no key."""
    leased = []
    while service.arena.used_bytes < service.arena.limit_bytes:
        leased.append(service.arena.lease(32))

    response = await service.ask(ALICE, GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=32 * 1024))

    assert any(response.plaintext)


async def test_no_record_tells_a_plaintext_or_a_ciphertext(service: Embedded) -> None:
    """Contexts are recorded in clear; plaintexts, data keys and blobs never are, in any encoding."""
    arn = await service.make_key()
    blob = await encrypted(service, arn, b"plainly visible", purpose="told")
    await decrypted(service, blob, purpose="told")
    data_key = await service.ask(ALICE, GENERATE_DATA_KEY, GenerateDataKeyRequest(key_id=arn, number_of_bytes=64))

    trail = "".join(service.trail.read(after_seq=0, limit=1000, max_bytes=1 << 24))

    assert '"encryptionContext":{"purpose":"told"}' in trail
    for secret in (b"plainly visible", blob, bytes(data_key.plaintext), data_key.ciphertext_blob):
        assert secret.hex() not in trail
        assert repr(secret)[2:-1] not in trail
        assert not any(name in trail for name in ("laintext", "iphertext"))


async def test_a_key_of_another_account_is_not_here(service: Embedded) -> None:
    """The same for every form of an ARN that is not ours."""
    for name in ("arn:aws:kms:local-host-1:999999999999:key/x", "arn:aws:kms:eu-west-1:123456789012:alias/a"):
        with pytest.raises(KmsError, match="is not here"):
            await service.ask(ALICE, ENCRYPT, EncryptRequest(key_id=name, plaintext=memoryview(b"x")))


@pytest.mark.parametrize("sizes", [{}, {"number_of_bytes": 32, "key_spec": DataKeySpec.AES_256}], ids=["none", "both"])
async def test_a_dry_run_of_a_data_key_looks_at_its_size(service: Embedded, sizes: dict[str, Any]) -> None:
    """What cannot succeed does not look as if it would."""
    arn = await service.make_key()
    request = GenerateDataKeyRequest(key_id=arn, dry_run=True, **sizes)

    for operation in (GENERATE_DATA_KEY, GENERATE_DATA_KEY_WITHOUT_PLAINTEXT):
        with pytest.raises(ValidationError, match="either number of bytes or key spec"):
            await service.ask(ALICE, operation, request)  # type: ignore[misc] # of two response types
