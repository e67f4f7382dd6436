"""Makes the messages in this directory, and has the AWS Encryption SDK for Python read those that kmsd made.

Not run by the tests: the SDK is no dependency. To run it again:

    python -m venv VENV && VENV/bin/pip install aws-encryption-sdk msgspec
    PYTHONPATH=. VENV/bin/python tests/vectors/esdk/generate.py

It writes vectors.json and one NAME.msg a message. `made_by: sdk` messages are random each time, `made_by: kmsd` ones
are a function of the inputs in vectors.json. Every key in here is public.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import aws_encryption_sdk
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient
from aws_encryption_sdk.identifiers import Algorithm, EncryptionKeyType, WrappingAlgorithm
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKeyProvider
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsd.api import encryption_context
from kmsd.envelope import frames, header

HERE = Path(__file__).parent
WRAPPING_KEY = hashlib.sha256(b"kmsd test wrapping key").digest()
NAMESPACE = "kmsd-test"
KEY_NAMES = (b"first", b"second")
COMMITTING = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
CONTEXT = {"purpose": "test", "größe": "é\U0001f511", "A": ""}
# name, plaintext bytes, frame length (0: unframed), context, wrapping keys, suite
SDK_CASES: list[tuple[str, int, int, dict[str, str], int, Algorithm]] = [
    ("empty", 0, 4096, {}, 1, COMMITTING),
    ("one-byte", 1, 4096, CONTEXT, 1, COMMITTING),
    ("one-short-of-a-frame", 127, 128, CONTEXT, 1, COMMITTING),
    ("exactly-one-frame", 128, 128, CONTEXT, 1, COMMITTING),
    ("one-more-than-a-frame", 129, 128, {}, 1, COMMITTING),
    ("exactly-ten-frames", 1280, 128, CONTEXT, 1, COMMITTING),
    ("many-small-frames", 5000, 128, CONTEXT, 1, COMMITTING),
    ("two-data-keys", 1000, 256, CONTEXT, 2, COMMITTING),
    ("unframed", 1000, 0, CONTEXT, 1, COMMITTING),
    ("unframed-empty", 0, 0, {}, 1, COMMITTING),
    ("signed-suite", 100, 128, {}, 1, Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384),
    ("version-1", 100, 128, {}, 1, Algorithm.AES_256_GCM_IV12_TAG16_HKDF_SHA256),
]
KMSD_CASES: list[tuple[str, int, int, dict[str, str]]] = [
    ("kmsd-empty", 0, 4096, {}),
    ("kmsd-exactly-one-frame", 4096, 4096, CONTEXT),
    ("kmsd-several-frames", 1000, 300, CONTEXT),
    ("kmsd-exactly-three-frames", 900, 300, {}),
]


class PublicKeys(RawMasterKeyProvider):  # type: ignore[misc] # the SDK has no types
    """The SDK's raw AES master keys, all with the one public test key."""

    provider_id = NAMESPACE

    def _get_raw_key(self, _key_id: bytes) -> WrappingKey:
        return WrappingKey(
            WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING, WRAPPING_KEY, EncryptionKeyType.SYMMETRIC
        )


def plaintext_of(size: int) -> bytes:
    """Return the plaintext of a vector; the tests make it the same way."""
    return hashlib.shake_256(b"kmsd test plaintext").digest(size)


def sdk_message(size: int, frame_length: int, context: dict[str, str], keys: int, suite: Algorithm) -> bytes:
    """Return a message the SDK made."""
    policy = (
        CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
        if suite.is_committing()
        else CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT
    )
    provider = PublicKeys()
    provider.add_master_keys_from_list(list(KEY_NAMES[:keys]))
    message, _ = EncryptionSDKClient(commitment_policy=policy).encrypt(
        source=plaintext_of(size),
        key_provider=provider,
        encryption_context=context,
        frame_length=frame_length,
        algorithm=suite,
    )
    return bytes(message)


def kmsd_message(name: str, size: int, frame_length: int, context: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """Return the inputs and the message kmsd makes of them, its data key wrapped as the SDK's raw AES keys do."""
    data_key = bytearray(hashlib.sha256(f"data key {name}".encode()).digest())
    message_id = hashlib.sha256(f"message id {name}".encode()).digest()
    iv = hashlib.sha256(f"wrap {name}".encode()).digest()[:12]
    wrapped = header.EncryptedDataKey(
        NAMESPACE,
        KEY_NAMES[0] + (128).to_bytes(4, "big") + len(iv).to_bytes(4, "big") + iv,
        AESGCM(WRAPPING_KEY).encrypt(iv, bytes(data_key), encryption_context.serialize(context)),
    )
    key = memoryview(bytearray(32))
    top = header.make_header(
        memoryview(data_key),
        message_id=message_id,
        encryption_context=context,
        encrypted_data_keys=(wrapped,),
        frame_length=frame_length,
        into=key,
    )
    sealer = frames.FrameSealer(message_id, key, frame_length)
    message = top.serialize()
    plaintext = memoryview(plaintext_of(size))
    starts = range(0, max(size, 1), frame_length)
    for start in starts:
        out = memoryview(bytearray(frame_length + frames.FINAL_OVERHEAD))
        length = sealer.seal_into(plaintext[start : start + frame_length], out, final=start == starts[-1])
        message += out[:length]
    return {"data_key": data_key.hex(), "message_id": message_id.hex()}, message


def read_by_sdk(message: bytes) -> tuple[bytes, dict[str, str]]:
    """Return what the SDK reads."""
    provider = PublicKeys()
    provider.add_master_keys_from_list(list(KEY_NAMES))
    plaintext, top = EncryptionSDKClient().decrypt(source=message, key_provider=provider)
    return plaintext, top.encryption_context


def main() -> None:
    """Write everything anew."""
    vectors: list[dict[str, Any]] = []
    for name, size, frame_length, context, keys, suite in SDK_CASES:
        (HERE / f"{name}.msg").write_bytes(sdk_message(size, frame_length, context, keys, suite))
        vectors.append({
            "name": name, "made_by": "sdk", "plaintext_bytes": size, "frame_length": frame_length,
            "encryption_context": context, "data_keys": keys, "suite": f"0x{suite.algorithm_id:04x}",
        })  # fmt: skip
    for name, size, frame_length, context in KMSD_CASES:
        inputs, message = kmsd_message(name, size, frame_length, context)
        if read_by_sdk(message) != (plaintext_of(size), context):
            raise SystemExit(f"{name}: the SDK read something else")
        (HERE / f"{name}.msg").write_bytes(message)
        vectors.append({
            "name": name, "made_by": "kmsd", "plaintext_bytes": size, "frame_length": frame_length,
            "encryption_context": context, "data_keys": 1, "suite": "0x0478", **inputs,
        })  # fmt: skip
    document = {
        "generator": f"aws-encryption-sdk {aws_encryption_sdk.__version__}",
        "wrapping_key": WRAPPING_KEY.hex(),
        "vectors": vectors,
    }
    (HERE / "vectors.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
