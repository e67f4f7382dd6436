"""Ciphertext blobs: they open with exactly what they were made with, and never otherwise."""

import os
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.encryption_context import serialize
from kmsd.api.errors import InvalidCiphertextError, ValidationError
from kmsd.material.ciphertext import BLOB_OVERHEAD_BYTES, BlobAddress, BlobCipher, address_of, blob_prefix
from kmsd.memory.arena import Arena

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
CONTEXTS = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4)


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    arena = Arena(256 * 1024)
    yield arena
    arena.wipe()


@pytest.fixture(scope="module")
def cipher(arena: Arena) -> BlobCipher:
    return BlobCipher(arena, os.urandom)


@pytest.fixture(scope="module")
def secret(arena: Arena) -> memoryview:
    return arena.random(32).view


def opened(cipher: BlobCipher, secret: memoryview, blob: bytes, context: dict[str, str]) -> bytes:
    into = memoryview(bytearray(4096))
    return bytes(into[: cipher.decrypt_into(secret, blob, context, into)])


def test_a_blob_is_what_version_1_says(arena: Arena) -> None:
    """A fixed nonce, secret and context give the bytes that were computed by hand from NIST SP 800-108 and GCM."""
    secret = arena.lease(32).view
    secret[:] = bytes(range(32))
    cipher = BlobCipher(arena, bytes)

    blob = cipher.encrypt(secret, blob_prefix(KEY_ID, 7), memoryview(b"plaintext"), {"a": "b"})

    assert blob == by_hand(bytes(range(32)), bytes(16), b"plaintext", {"a": "b"})


def by_hand(secret: bytes, nonce: bytes, plaintext: bytes, context: dict[str, str]) -> bytes:
    """The same blob, from the standard library's HMAC and the published formulas alone."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    canonical = b""
    if context:
        canonical = len(context).to_bytes(2, "big")
        for name, value in sorted((name.encode(), value.encode()) for name, value in context.items()):
            canonical += len(name).to_bytes(2, "big") + name + len(value).to_bytes(2, "big") + value
    prefix = b"\x01" + uuid.UUID(KEY_ID).bytes + (7).to_bytes(4, "big")
    fixed = b"kmsd/encrypt/1\x00" + nonce + hashlib.sha256(prefix + canonical).digest() + (76 * 8).to_bytes(4, "big")
    derived = b"".join(
        hmac.new(secret, count.to_bytes(4, "big") + fixed, hashlib.sha256).digest() for count in (1, 2, 3)
    )
    head = prefix + nonce + derived[44:76]
    return head + AESGCM(derived[:32]).encrypt(derived[32:44], plaintext, head + canonical)


@given(plaintext=st.binary(min_size=1, max_size=4096), context=CONTEXTS)
def test_a_blob_opens_again(cipher: BlobCipher, secret: memoryview, plaintext: bytes, context: dict[str, str]) -> None:
    """What was encrypted comes back, and the blob is exactly its overhead longer."""
    blob = cipher.encrypt(secret, blob_prefix(KEY_ID, 3), memoryview(plaintext), context)

    assert opened(cipher, secret, blob, context) == plaintext
    assert len(blob) == len(plaintext) + BLOB_OVERHEAD_BYTES
    assert address_of(blob) == BlobAddress(KEY_ID, 3)


@given(data=st.data())
def test_a_changed_blob_does_not_open(cipher: BlobCipher, secret: memoryview, data: st.DataObject) -> None:
    """Any flipped bit, anywhere, is refused with the same error as any other."""
    blob = bytearray(cipher.encrypt(secret, blob_prefix(KEY_ID, 1), memoryview(b"sixteen bytes ok"), {"a": "b"}))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(InvalidCiphertextError) as refusal:
        opened(cipher, secret, bytes(blob), {"a": "b"})

    assert str(refusal.value) == ""


@given(made=CONTEXTS, asked=CONTEXTS)
def test_another_context_does_not_open(
    cipher: BlobCipher, secret: memoryview, made: dict[str, str], asked: dict[str, str]
) -> None:
    """The encryption context has to be the same, pair by pair."""
    blob = cipher.encrypt(secret, blob_prefix(KEY_ID, 1), memoryview(b"x"), made)

    if made == asked:
        assert opened(cipher, secret, blob, asked) == b"x"
    else:
        with pytest.raises(InvalidCiphertextError):
            opened(cipher, secret, blob, asked)


@given(length=st.integers(0, BLOB_OVERHEAD_BYTES + 4))
def test_a_truncated_blob_does_not_open(cipher: BlobCipher, secret: memoryview, length: int) -> None:
    """Every shorter blob is refused."""
    blob = cipher.encrypt(secret, blob_prefix(KEY_ID, 1), memoryview(b"12345"), {})

    with pytest.raises(InvalidCiphertextError):
        opened(cipher, secret, blob[:length], {})


def test_another_secret_does_not_open(arena: Arena, cipher: BlobCipher, secret: memoryview) -> None:
    """The commitment binds a blob to one secret."""
    blob = cipher.encrypt(secret, blob_prefix(KEY_ID, 1), memoryview(b"x"), {})

    with pytest.raises(InvalidCiphertextError):
        opened(cipher, arena.random(32).view, blob, {})


@pytest.mark.parametrize("blob", [b"", b"\x02" * 200, b"\x01" * BLOB_OVERHEAD_BYTES], ids=["empty", "version", "short"])
def test_what_is_no_blob_has_no_address(blob: bytes) -> None:
    """A header is read only from what can be a blob."""
    with pytest.raises(InvalidCiphertextError):
        address_of(blob)


@given(one=CONTEXTS, other=CONTEXTS)
def test_different_contexts_have_different_bytes(one: dict[str, str], other: dict[str, str]) -> None:
    """The canonical form is injective, whatever the order of the pairs."""
    assert (serialize(one) == serialize(other)) == (one == other)
    assert serialize(dict(reversed(one.items()))) == serialize(one)


@pytest.mark.parametrize("context", [{"a": "x" * 65536}, {"\ud800": "x"}], ids=["long", "surrogate"])
def test_a_context_without_canonical_form_is_refused(context: dict[str, str]) -> None:
    """What the 16-bit lengths or UTF-8 cannot say is an error of the caller's."""
    with pytest.raises(ValidationError):
        serialize(context)
