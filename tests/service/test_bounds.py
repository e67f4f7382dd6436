"""What a caller sends bounds what the daemon does and writes for it, allowed or not."""

import pytest

from kmsd.api.encryption_context import MAX_BYTES, serialize
from kmsd.api.errors import LimitExceededError, MessageFormatError, ValidationError
from kmsd.api.files import DECRYPT_FILE, DecryptFileRequest
from kmsd.api.keys import CREATE_KEY, CreateKeyRequest
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.envelope.header import EncryptedDataKey, make_header
from tests.support.embedded import ALICE, BOB, Embedded

# What a refusal takes in the trail: names, ids, an error and one declared member of bounded size.
REFUSAL_BYTES = 4096


def context_of(size: int) -> dict[str, str]:
    """One pair that takes `size` bytes, serialized."""
    return {"x": "a" * (size - len(serialize({"x": ""})))}


async def test_a_context_of_the_largest_size_is_taken(service: Embedded) -> None:
    """8,192 bytes, as with AWS."""
    key = await service.make_key()
    request = EncryptRequest(key_id=key, plaintext=memoryview(b"x"), encryption_context=context_of(MAX_BYTES))

    assert (await service.ask(ALICE, ENCRYPT, request)).ciphertext_blob


@pytest.mark.parametrize(
    "context",
    [context_of(MAX_BYTES + 1), {str(number): "" for number in range(2000)}, {"x": "\x00" * 20_000}],
    ids=["a byte more", "many pairs", "escapes"],
)
async def test_a_larger_context_is_neither_used_nor_recorded(service: Embedded, context: dict[str, str]) -> None:
    """The refusal takes no more of the trail than any other."""
    key = await service.make_key()
    request = EncryptRequest(key_id=key, plaintext=memoryview(b"x"), encryption_context=context)

    with pytest.raises(ValidationError, match="8192 bytes"):
        await service.ask(BOB, ENCRYPT, request)

    assert "requestParameters" not in service.newest()
    assert len(service.trail.read_tail(limit=1, max_bytes=1 << 20)[0]) < REFUSAL_BYTES


async def test_a_policy_above_the_quota_is_not_recorded(service: Embedded) -> None:
    """Not even with a refusal: who may make no keys could fill the trail."""
    with pytest.raises(LimitExceededError, match="32768 bytes"):
        await service.ask(BOB, CREATE_KEY, CreateKeyRequest(policy=" " * 40_000))

    assert len(service.trail.read_tail(limit=1, max_bytes=1 << 20)[0]) < REFUSAL_BYTES


async def test_a_policy_has_only_aws_characters(service: Embedded) -> None:
    """Others take up to six times their size in the trail."""
    with pytest.raises(ValidationError):
        await service.ask(BOB, CREATE_KEY, CreateKeyRequest(policy="\U0001f600" * 100))


def header_naming(providers: int) -> bytes:
    """A header that names so many keys of ours."""
    arn = b"arn:aws:kms:local-host-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    return make_header(
        memoryview(bytes(32)),
        message_id=bytes(32),
        encryption_context={},
        encrypted_data_keys=(EncryptedDataKey("aws-kms", arn, b"x" * 64),) * providers,
        frame_length=4096,
        into=memoryview(bytearray(32)),
    ).serialize()


async def test_a_message_that_names_many_keys_costs_no_look_at_the_store(service: Embedded) -> None:
    """Nothing is authorized by then, so anybody could keep the store busy."""
    service.store.calls.clear()

    with pytest.raises(MessageFormatError, match="names 17 keys"):
        await service.ask(BOB, DECRYPT_FILE, DecryptFileRequest(header=header_naming(17)))

    assert list(service.store.calls) == []


async def test_a_refused_message_names_few_keys(service: Embedded) -> None:
    """The error says enough to find the right key, and is bounded."""
    with pytest.raises(MessageFormatError) as refusal:
        await service.ask(BOB, DECRYPT_FILE, DecryptFileRequest(header=header_naming(16)))

    assert refusal.value.message.count("aws-kms") == 3
