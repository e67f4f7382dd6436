"""Headers of encrypted files: `kmsd.envelope.header`."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import InvalidCiphertextError, MessageFormatError, ValidationError
from kmsd.api.shapes import MAX_HEADER_BYTES
from kmsd.envelope import header
from kmsd.envelope.header import EncryptedDataKey, MessageHeader, make_header, open_header, parse_header

DATA_KEY = memoryview(bytearray(range(32)))
ARN_KEY = EncryptedDataKey("aws-kms", b"arn:aws:kms:local:111122223333:key/1", b"wrapped" * 8)
small_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
contexts = st.dictionaries(small_text.filter(lambda name: not name.startswith("aws-crypto-")), small_text, max_size=5)
data_keys = st.lists(
    st.builds(EncryptedDataKey, small_text, st.binary(max_size=40), st.binary(max_size=80)), min_size=1, max_size=4
).map(tuple)


def made(**changes: object) -> MessageHeader:
    arguments: dict[str, object] = {
        "message_id": bytes(range(100, 132)),
        "encryption_context": {"b": "2", "a": "1"},
        "encrypted_data_keys": (ARN_KEY,),
        "frame_length": 4096,
    }
    return make_header(DATA_KEY, into=memoryview(bytearray(32)), **{**arguments, **changes})  # type: ignore[arg-type]


@given(contexts, data_keys, st.integers(1, 2**32 - 1), st.binary(max_size=30))
def test_a_header_parses_to_what_was_made(
    context: dict[str, str], keys: tuple[EncryptedDataKey, ...], frame_length: int, body: bytes
) -> None:
    """Serializing and parsing are inverse, whatever follows the header."""
    original = made(encryption_context=context, encrypted_data_keys=keys, frame_length=frame_length)
    data = original.serialize()

    assert parse_header(data + body) == (original, len(data))
    open_header(parse_header(data).header, DATA_KEY, into=memoryview(bytearray(32)))


@given(contexts, data_keys, st.data())
def test_any_changed_byte_is_refused(
    context: dict[str, str], keys: tuple[EncryptedDataKey, ...], data: st.DataObject
) -> None:
    """A header with any byte changed does not parse, or does not authenticate."""
    changed = bytearray(made(encryption_context=context, encrypted_data_keys=keys).serialize())
    where = data.draw(st.integers(0, len(changed) - 1))
    changed[where] ^= data.draw(st.integers(1, 255))

    with pytest.raises((MessageFormatError, InvalidCiphertextError)):
        open_header(parse_header(bytes(changed)).header, DATA_KEY, into=memoryview(bytearray(32)))


@given(st.binary(max_size=300), st.booleans())
def test_what_parses_is_canonical(tail: bytes, begins_like_a_message: bool) -> None:
    """Whatever bytes are accepted as a header are the bytes that header serializes to."""
    data = b"\x02\x04\x78" + bytes(32) + tail if begins_like_a_message else tail
    try:
        parsed, length = parse_header(data)
    except MessageFormatError:
        return

    assert parsed.serialize() == data[:length]


@given(st.integers(0, 400))
def test_a_truncated_header_says_so(length: int) -> None:
    """Every prefix of a header is refused as cut short, the empty one as an empty file."""
    data = made().serialize()
    prefix = data[: length % len(data)]

    with pytest.raises(MessageFormatError, match="truncated" if prefix else "empty"):
        parse_header(prefix)


def test_wrong_data_key_is_invalid_ciphertext_and_leaves_no_key() -> None:
    """The commitment is checked, and the derived key wiped when it is wrong."""
    into = memoryview(bytearray(32))

    with pytest.raises(InvalidCiphertextError):
        open_header(made(), memoryview(bytearray(32)), into=into)

    assert into == bytes(32)


def test_opening_gives_the_key_that_making_gave() -> None:
    """Reader and writer arrive at the same message key."""
    first, second = memoryview(bytearray(32)), memoryview(bytearray(32))
    top = make_header(
        DATA_KEY,
        message_id=os.urandom(32),
        encryption_context={},
        encrypted_data_keys=(ARN_KEY,),
        frame_length=1,
        into=first,
    )

    open_header(top, DATA_KEY, into=second)

    assert first == second != bytes(32)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello world, this is a text", "not an encrypted message"),
        (b"\x01hello", "not an encrypted message"),
        (b"\x01\x80\x02\x14", "version 1 is not supported"),
        (b"\x02\x05\x78" + bytes(50), r"0x0578 is not supported \(it is signed"),
        (b"\x02\x01\x78" + bytes(50), "no key commitment"),
        (b"\x02\xab\xcd" + bytes(50), "0xabcd is unknown"),
        (b"\x02\x04\x78" + bytes(32) + b"\x00\x00" + b"\x00\x00", "no encrypted data key"),
        (b"\x02\x04\x78" + bytes(32) + b"\x00\x00" + b"\xff\xff", "more than 65536 bytes"),
        (b"\x02\x04\x78" + bytes(32) + b"\xff\xff" + bytes(70000), "more than 65536 bytes|malformed"),
        (b"\x02\x04\x78" + bytes(32) + b"\x00\x02\x00\x00" + bytes(50), "malformed"),
        (b"\x02\x04\x78" + bytes(32) + b"\x00\x02\x00\x01" + bytes(50), "malformed"),
        (b"\x02\x04\x78" + bytes(32) + b"\x00\x01\x00" + bytes(50), "malformed"),
        (b"\x02\x04\x78" + bytes(32) + b"\x00\x07\x00\x01\x00\x01\xff\x00\x00" + bytes(50), "not UTF-8"),
    ],
)
def test_what_is_no_supported_message_is_named(data: bytes, says: str) -> None:
    """Each refusal tells what is there instead of a supported message."""
    with pytest.raises(MessageFormatError, match=says):
        parse_header(data)


@pytest.mark.parametrize("pairs", [[("b", ""), ("a", "")], [("a", "1"), ("a", "2")], [("a", "1"), ("a", "1")]])
def test_unsorted_or_repeated_pairs_are_refused(pairs: list[tuple[str, str]]) -> None:
    """Only the canonical form of an encryption context is accepted."""
    body = len(pairs).to_bytes(2, "big")
    for pair in pairs:
        for text in pair:
            body += len(text).to_bytes(2, "big") + text.encode()

    with pytest.raises(MessageFormatError, match="malformed"):
        parse_header(b"\x02\x04\x78" + bytes(32) + len(body).to_bytes(2, "big") + body)


@pytest.mark.parametrize(("content_type", "frame_length"), [(2, 0), (1, 16), (0, 16), (3, 16)])
def test_content_type_and_frame_length_must_agree(content_type: int, frame_length: int) -> None:
    """Framed has a frame length, unframed has none, and there is nothing else."""
    data = bytearray(made().serialize())
    data[-53:-48] = content_type.to_bytes(1, "big") + frame_length.to_bytes(4, "big")

    with pytest.raises(MessageFormatError, match="is not valid"):
        parse_header(bytes(data))


def test_a_reader_in_steps_never_asks_for_a_byte_behind_the_header() -> None:
    """Reading step by step takes exactly the header from a pipe."""
    data = made(encrypted_data_keys=(ARN_KEY, ARN_KEY)).serialize()
    source: Iterator[int] = iter(data + b"body")

    steps = header.header_steps()
    wanted = next(steps)
    result: header.MessageHeader | None = None
    while result is None:
        try:
            wanted = steps.send(bytes(next(source) for _ in range(wanted)))
        except StopIteration as parsed:
            result = parsed.value

    assert result == parse_header(data).header
    assert bytes(source) == b"body"


@pytest.mark.parametrize(
    "changes",
    [
        {"encryption_context": {"aws-crypto-public-key": "x"}},
        {"encryption_context": {"a": "x" * 70000}},
        {"encryption_context": {str(number): "x" * 648 for number in range(100)}},
        {"encrypted_data_keys": (EncryptedDataKey("aws-kms", b"", bytes(70000)),)},
        {"encrypted_data_keys": (EncryptedDataKey("aws-kms", b"", bytes(MAX_HEADER_BYTES - 80)),)},
    ],
)
def test_a_header_that_could_not_be_read_is_not_made(changes: dict[str, object]) -> None:
    """Reserved pairs and headers above 64 KiB are refused when they are made."""
    with pytest.raises(ValidationError):
        made(**changes)
