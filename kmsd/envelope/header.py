"""Header of an encrypted file: AWS Encryption SDK message format version 2, suite 0x0478. Pure: no I/O.

`FORMAT.md` beside this file describes the bytes; source: AWS Encryption SDK specification, data-format/message-header
and framework/algorithm-suites. All numbers are big-endian. Only the one canonical form of a header is accepted (sorted
pairs, no duplicate, exact lengths), so parsing and serializing are each other's inverse.

To open a message: (1) `parse_header`; (2) have the data key unwrapped by whom the header names, under the header's
encryption context; (3) `open_header`, which checks commitment, then tag. Until (3) nothing in a header is trusted.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import constant_time, hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kmsd.api import encryption_context as context_bytes
from kmsd.api.errors import InvalidCiphertextError, MessageFormatError, ValidationError
from kmsd.api.shapes import MAX_HEADER_BYTES

VERSION = 2
SUITE_ID = 0x0478
FRAMED = 0x02
UNFRAMED = 0x01
# Names from the specification, for clear refusals.
_OTHER_SUITES = {
    0x0578: "it is signed with ECDSA P-384",
    **dict.fromkeys((0x0014, 0x0046, 0x0078, 0x0114, 0x0146, 0x0178), "it has no key commitment"),
    **dict.fromkeys((0x0214, 0x0346, 0x0378), "it is signed and has no key commitment"),
}
KEY_BYTES = 32
MESSAGE_ID_BYTES = 32
COMMITMENT_BYTES = 32
TAG_BYTES = 16
IV_BYTES = 12
# Before the pairs: version, suite, message id, length of the pairs.
_START_BYTES = 1 + 2 + MESSAGE_ID_BYTES + 2
# After the last data key: content type, frame length, commitment, tag.
_END_BYTES = 1 + 4 + COMMITMENT_BYTES + TAG_BYTES
# Pairs whose keys begin so are the format's own (specification, structures: encryption context).
_RESERVED_PREFIX = "aws-crypto-"
# One and the same for every failed check, as with ciphertext blobs (DESIGN 7).
CHANGED = "the message was changed, or was not made with this key and encryption context"


@dataclass(frozen=True)
class EncryptedDataKey:
    """One wrapping of the message's data key: who can unwrap it (`aws-kms` and a key ARN) and the wrapped bytes."""

    provider_id: str
    provider_info: bytes
    ciphertext: bytes


@dataclass(frozen=True)
class MessageHeader:
    """Everything a header says. `frame_length` is in bytes of plaintext, 0 for an unframed message."""

    message_id: bytes
    encryption_context: Mapping[str, str]
    encrypted_data_keys: tuple[EncryptedDataKey, ...]
    content_type: int
    frame_length: int
    commitment: bytes
    tag: bytes

    def body(self) -> bytes:
        """Return the bytes the tag authenticates: all but the tag itself.

        Raises ValidationError when a part is longer than its length field can tell.
        """
        pairs = context_bytes.serialize(self.encryption_context)
        try:
            parts = [
                VERSION.to_bytes(1, "big"),
                SUITE_ID.to_bytes(2, "big"),
                self.message_id,
                _prefixed(pairs),
                len(self.encrypted_data_keys).to_bytes(2, "big"),
            ]
            for key in self.encrypted_data_keys:
                parts += (_prefixed(key.provider_id.encode()), _prefixed(key.provider_info), _prefixed(key.ciphertext))
        except OverflowError:
            raise ValidationError(f"a message header may have {MAX_HEADER_BYTES} bytes") from None
        parts += (self.content_type.to_bytes(1, "big"), self.frame_length.to_bytes(4, "big"), self.commitment)
        return b"".join(parts)

    def serialize(self) -> bytes:
        """Return the whole header, tag included."""
        return self.body() + self.tag


class ParsedHeader(NamedTuple):
    """A header and how many bytes it took."""

    header: MessageHeader
    length: int


def make_header(
    data_key: memoryview,
    *,
    message_id: bytes,
    encryption_context: Mapping[str, str],
    encrypted_data_keys: tuple[EncryptedDataKey, ...],
    frame_length: int,
    into: memoryview,
) -> MessageHeader:
    """Return the authenticated header of a new framed message and leave its message key in `into` (32 bytes).

    `message_id` is 32 fresh random bytes. Raises ValidationError when the header would exceed 64 KiB or the context
    has a reserved pair.
    """
    for name in encryption_context:
        if name.startswith(_RESERVED_PREFIX):
            raise ValidationError(f"names that begin with {_RESERVED_PREFIX} are reserved in an encryption context")
    commitment = derive_message_key(data_key, message_id, into)
    parts = (message_id, encryption_context, encrypted_data_keys, FRAMED, frame_length, commitment)
    body = MessageHeader(*parts, tag=b"").body()
    if len(body) + TAG_BYTES > MAX_HEADER_BYTES:
        raise ValidationError(f"the message header would have {len(body) + TAG_BYTES} of {MAX_HEADER_BYTES} bytes")
    return MessageHeader(*parts, tag=header_tag(into, body))


def open_header(header: MessageHeader, data_key: memoryview, *, into: memoryview) -> None:
    """Check that `header` was made with `data_key` and leave its message key in `into` (32 bytes).

    Raises InvalidCiphertextError; `into` is then zeroed.
    """
    commitment = derive_message_key(data_key, header.message_id, into)
    try:
        verify_commitment(commitment, header)
        verify_header_tag(into, header)
    except InvalidCiphertextError:
        into[:] = bytes(len(into))
        raise


def derive_message_key(data_key: memoryview, message_id: bytes, into: memoryview) -> bytes:
    """Derive the message key into `into` (32 bytes) and return the public commitment to the data key.

    Source: algorithm-suites, HKDF with SHA-512, salt = message id.
    """
    if len(data_key) != KEY_BYTES or len(into) != KEY_BYTES or len(message_id) != MESSAGE_ID_BYTES:
        raise ValueError("data key, message key and message id have 32 bytes each")
    info = SUITE_ID.to_bytes(2, "big") + b"DERIVEKEY"
    HKDF(hashes.SHA512(), KEY_BYTES, salt=message_id, info=info).derive_into(data_key, into)
    return HKDF(hashes.SHA512(), COMMITMENT_BYTES, salt=message_id, info=b"COMMITKEY").derive(data_key)


def verify_commitment(commitment: bytes, header: MessageHeader) -> None:
    """Check, in constant time, that `header` commits to the data key of `commitment`; raises InvalidCiphertextError."""
    if not constant_time.bytes_eq(commitment, header.commitment):
        raise InvalidCiphertextError(CHANGED)


def header_tag(message_key: memoryview, body: bytes) -> bytes:
    """Return the tag over a header's `body`.

    The nonce is fixed because the message key is fresh for each message and its frames never use nonce zero: their
    nonces are their sequence numbers, which begin at 1.
    """
    return AESGCM(message_key).encrypt(bytes(IV_BYTES), b"", body)


def verify_header_tag(message_key: memoryview, header: MessageHeader) -> None:
    """Check the tag of `header`; raises InvalidCiphertextError."""
    try:
        AESGCM(message_key).decrypt(bytes(IV_BYTES), header.tag, header.body())
    except InvalidTag:
        raise InvalidCiphertextError(CHANGED) from None


def parse_header(data: bytes | memoryview) -> ParsedHeader:
    """Return the header that `data` begins with.

    Raises MessageFormatError: no message, another version or suite, not canonical, above 64 KiB, or cut short.
    """
    steps = header_steps()
    position = 0
    wanted = next(steps)
    while True:
        piece = bytes(data[position : position + wanted])
        position += len(piece)
        try:
            wanted = steps.send(piece)
        except StopIteration as parsed:
            return ParsedHeader(parsed.value, position)


def header_steps() -> Generator[int, bytes, MessageHeader]:
    """Parse a header in its own steps: yields how many bytes to read next, is sent them, returns the header.

    It never asks for a byte behind the header, so a pipe can be read with it. Sending fewer bytes than asked for means
    that the input ended. Raises MessageFormatError like `parse_header`.
    """
    reader = _StepReader()
    prefix = yield from reader.read(1)
    if prefix[0] not in {1, VERSION}:
        raise MessageFormatError("this is not an encrypted message")
    suite = yield from reader.number(2)
    _check_version(prefix[0], suite)
    message_id = yield from reader.read(MESSAGE_ID_BYTES)
    context = _parse_context((yield from reader.prefixed()))
    keys = yield from _data_keys(reader)
    content_type = (yield from reader.read(1))[0]
    frame_length = yield from reader.number(4)
    if (content_type, frame_length > 0) not in {(FRAMED, True), (UNFRAMED, False)}:
        raise MessageFormatError(f"content type {content_type} with frame length {frame_length} is not valid")
    commitment = yield from reader.read(COMMITMENT_BYTES)
    tag = yield from reader.read(TAG_BYTES)
    return MessageHeader(message_id, context, keys, content_type, frame_length, commitment, tag)


class _StepReader:
    """Asks for bytes, and counts them against the most a header may have before asking."""

    def __init__(self) -> None:
        self._taken = 0

    def read(self, count: int) -> Generator[int, bytes, bytes]:
        if self._taken + count > MAX_HEADER_BYTES:
            raise MessageFormatError(f"the message header has more than {MAX_HEADER_BYTES} bytes")
        # A step of no bytes is not asked for: an empty read would mean that the input ended.
        piece = (yield count) if count else b""
        if not self._taken and not piece:
            raise MessageFormatError("the file is empty; an encrypted message never is")
        self._taken += len(piece)
        if len(piece) != count:
            raise MessageFormatError(f"the message ends inside its header, after {self._taken} bytes: it was truncated")
        return piece

    def number(self, width: int) -> Generator[int, bytes, int]:
        return int.from_bytes((yield from self.read(width)), "big")

    def prefixed(self) -> Generator[int, bytes, bytes]:
        return (yield from self.read((yield from self.number(2))))

    def require(self, count: int) -> None:
        """Refuse early what could not fit into a header any more."""
        if self._taken + count > MAX_HEADER_BYTES:
            raise MessageFormatError(f"the message header has more than {MAX_HEADER_BYTES} bytes")


def _check_version(version: int, suite: int) -> None:
    if version == 1:
        # Version 1 continues with its one type, 0x80 (customer authenticated encrypted data).
        if suite >> 8 == 0x80:  # noqa: PLR2004 - named in the comment above
            raise MessageFormatError("message format version 1 is not supported, only version 2")
        raise MessageFormatError("this is not an encrypted message")
    if suite in _OTHER_SUITES:
        why = _OTHER_SUITES[suite]
        raise MessageFormatError(f"algorithm suite 0x{suite:04x} is not supported ({why}), only 0x{SUITE_ID:04x} is")
    if suite != SUITE_ID:
        raise MessageFormatError(f"this is not an encrypted message, or its algorithm suite 0x{suite:04x} is unknown")


def _data_keys(reader: _StepReader) -> Generator[int, bytes, tuple[EncryptedDataKey, ...]]:
    count = yield from reader.number(2)
    if count == 0:
        raise MessageFormatError("the message header names no encrypted data key")
    # Each takes three length fields at least, so a false count is refused before anything is made for it.
    reader.require(count * 3 * 2 + _END_BYTES)
    keys = []
    for _ in range(count):
        provider = yield from reader.prefixed()
        info = yield from reader.prefixed()
        ciphertext = yield from reader.prefixed()
        keys.append(EncryptedDataKey(_text(provider, "a key provider's name"), info, ciphertext))
    return tuple(keys)


def _parse_context(data: bytes) -> dict[str, str]:
    context: dict[str, str] = {}
    if not data:
        return context
    position = 2
    for _ in range(int.from_bytes(data[:2], "big")):
        name, position = _take(data, position)
        value, position = _take(data, position)
        context[_text(name, "an encryption context")] = _text(value, "an encryption context")
    # Order, duplicates, counts and lengths all at once: there is one right way to write a context.
    if context_bytes.serialize(context) != data:
        raise MessageFormatError("the message header's encryption context is malformed")
    return context


def _take(data: bytes, position: int) -> tuple[bytes, int]:
    start = position + 2
    end = start + int.from_bytes(data[position:start], "big")
    if end > len(data) or start > len(data):
        raise MessageFormatError("the message header's encryption context is malformed")
    return data[start:end], end


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MessageFormatError(f"{what} in the message header is not UTF-8") from None


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
