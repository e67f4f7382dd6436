"""Messages of the AWS Encryption SDK, made by `tests/vectors/esdk/generate.py`, read and made again by kmsd."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsd.api import encryption_context
from kmsd.api.errors import MessageFormatError
from kmsd.envelope.descriptors import Source
from kmsd.envelope.frames import FrameOpener, FrameSealer, open_unframed_into, unframed_length
from kmsd.envelope.header import FRAMED, MessageHeader, make_header, open_header, parse_header
from kmsd.envelope.stages import decrypting_stage

DIRECTORY = Path(__file__).parent.parent / "vectors" / "esdk"
DOCUMENT = json.loads((DIRECTORY / "vectors.json").read_text())
VECTORS = [vector for vector in DOCUMENT["vectors"] if vector["suite"] == "0x0478"]
MADE_BY_KMSD = [vector for vector in VECTORS if vector["made_by"] == "kmsd"]


def plaintext_of(size: int) -> bytes:
    return hashlib.shake_256(b"kmsd test plaintext").digest(size)


def data_key_of(header: MessageHeader) -> memoryview:
    """Unwrap as the SDK's raw AES keys do: nonce at the end of the info, the context as additional data."""
    wrapped = header.encrypted_data_keys[-1]
    aad = encryption_context.serialize(header.encryption_context)
    key = AESGCM(bytes.fromhex(DOCUMENT["wrapping_key"])).decrypt(wrapped.provider_info[-12:], wrapped.ciphertext, aad)
    return memoryview(bytearray(key))


def read(message: bytes) -> tuple[MessageHeader, bytes]:
    header, length = parse_header(message)
    key = memoryview(bytearray(32))
    open_header(header, data_key_of(header), into=key)
    body = memoryview(message)[length:]
    if header.content_type != FRAMED:
        out = memoryview(bytearray(unframed_length(body)))
        open_unframed_into(header.message_id, key, body, out)
        return header, bytes(out)
    opener = FrameOpener(header.message_id, key, header.frame_length)
    out = memoryview(bytearray(header.frame_length))
    plaintext = b""
    while True:
        frame = opener.open_into(body, out)
        assert frame is not None
        plaintext += out[: frame.length]
        body = body[frame.taken :]
        if frame.final:
            assert len(body) == 0
            return header, plaintext


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_messages_of_both_writers_are_read(vector: dict[str, Any]) -> None:
    """Header, context and plaintext of each message are what its writer was given."""
    header, plaintext = read((DIRECTORY / f"{vector['name']}.msg").read_bytes())

    assert plaintext == plaintext_of(vector["plaintext_bytes"])
    assert header.encryption_context == vector["encryption_context"]
    assert header.frame_length == vector["frame_length"]
    assert len(header.encrypted_data_keys) == vector["data_keys"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_messages_are_read_from_files_too(vector: dict[str, Any]) -> None:
    """A file worker's stage reads the same from a descriptor."""
    message = DIRECTORY / f"{vector['name']}.msg"
    header, length = parse_header(message.read_bytes())
    key = memoryview(bytearray(32))
    open_header(header, data_key_of(header), into=key)
    with message.open("rb", buffering=0) as source:
        source.seek(length)
        stage = decrypting_stage(header, key, Source(source.fileno()))
        out = memoryview(bytearray(stage.buffer_bytes))
        plaintext = b"".join(bytes(out[:count]) for count in iter(lambda: stage.produce(out), 0))

    assert plaintext == plaintext_of(vector["plaintext_bytes"])


@pytest.mark.parametrize("vector", MADE_BY_KMSD, ids=lambda vector: vector["name"])
def test_messages_the_sdk_has_read_are_made_again(vector: dict[str, Any]) -> None:
    """The bytes that the SDK read are the bytes kmsd writes today."""
    expected = (DIRECTORY / f"{vector['name']}.msg").read_bytes()
    key = memoryview(bytearray(32))
    header = make_header(
        memoryview(bytearray.fromhex(vector["data_key"])),
        message_id=bytes.fromhex(vector["message_id"]),
        encryption_context=vector["encryption_context"],
        encrypted_data_keys=parse_header(expected).header.encrypted_data_keys,
        frame_length=vector["frame_length"],
        into=key,
    )
    message = header.serialize()
    plaintext = plaintext_of(vector["plaintext_bytes"])
    sealer = FrameSealer(header.message_id, key, header.frame_length)
    starts = range(0, max(1, len(plaintext)), header.frame_length)
    for start in starts:
        out = memoryview(bytearray(header.frame_length + 40))
        piece = memoryview(plaintext)[start : start + header.frame_length]
        message += out[: sealer.seal_into(piece, out, final=start == starts[-1])]

    assert message == expected


@pytest.mark.parametrize(
    ("name", "says"), [("signed-suite", "0x0578 is not supported"), ("version-1", "version 1 is not supported")]
)
def test_messages_of_other_suites_are_named(name: str, says: str) -> None:
    """Real messages of other suites and versions are refused by name."""
    with pytest.raises(MessageFormatError, match=says):
        read((DIRECTORY / f"{name}.msg").read_bytes())
