"""Frames of encrypted files: `kmsd.envelope.frames`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import InvalidCiphertextError, LimitExceededError, MessageFormatError
from kmsd.envelope.frames import MAX_FRAMES, FrameOpener, FrameSealer, body_length, plaintext_length

MESSAGE_ID = bytes(range(32))
KEY = memoryview(bytearray(range(32)))
FRAME = 16


def sealed(plaintext: bytes, frame_length: int = FRAME) -> list[bytes]:
    """Return the frames of a message."""
    sealer = FrameSealer(MESSAGE_ID, KEY, frame_length)
    pieces = [plaintext[start : start + frame_length] for start in range(0, max(1, len(plaintext)), frame_length)]
    made = []
    for number, piece in enumerate(pieces, 1):
        out = memoryview(bytearray(frame_length + 40))
        length = sealer.seal_into(memoryview(piece), out, final=number == len(pieces))
        made.append(bytes(out[:length]))
    return made


def opened(body: bytes, frame_length: int = FRAME) -> tuple[bytes, bytes]:
    """Return the plaintext and what follows the final frame."""
    opener = FrameOpener(MESSAGE_ID, KEY, frame_length)
    out = memoryview(bytearray(frame_length))
    plaintext = b""
    rest = memoryview(body)
    while True:
        frame = opener.open_into(rest, out)
        if frame is None:
            raise opener.truncated()
        plaintext += out[: frame.length]
        rest = rest[frame.taken :]
        if frame.final:
            return plaintext, bytes(rest)


@given(st.binary(max_size=200), st.integers(1, 64), st.binary(max_size=60))
def test_frames_open_to_what_was_sealed(plaintext: bytes, frame_length: int, rest: bytes) -> None:
    """Any plaintext comes back, in a body of the length foretold, and bytes behind it are left alone."""
    body = b"".join(sealed(plaintext, frame_length))

    assert opened(body + rest, frame_length) == (plaintext, rest)
    assert len(body) == body_length(len(plaintext), frame_length)
    assert plaintext_length(len(body), frame_length) == len(plaintext)


@given(st.binary(max_size=100), st.data())
def test_any_changed_byte_of_a_body_is_refused(plaintext: bytes, data: st.DataObject) -> None:
    """Numbers, nonces, lengths, ciphertext and tags are all covered."""
    body = bytearray(b"".join(sealed(plaintext)))
    where = data.draw(st.integers(0, len(body) - 1))
    body[where] ^= data.draw(st.integers(1, 255))

    with pytest.raises((MessageFormatError, InvalidCiphertextError)):
        opened(bytes(body))


@given(st.binary(max_size=100), st.data())
def test_every_prefix_of_a_body_is_truncated(plaintext: bytes, data: st.DataObject) -> None:
    """A body that ends early never opens to its end."""
    body = b"".join(sealed(plaintext))
    length = data.draw(st.integers(0, len(body) - 1))

    with pytest.raises(MessageFormatError, match="truncated"):
        opened(body[:length])


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 1, 2], [0, 2], [1, 2], [0, 1, 1, 2]])
def test_frames_out_of_order_are_refused(order: list[int]) -> None:
    """Frames that are exchanged, repeated or missing are noticed by their numbers."""
    frames = sealed(bytes(40))

    with pytest.raises(MessageFormatError, match="removed, repeated or exchanged"):
        opened(b"".join(frames[number] for number in order))


def test_a_renumbered_frame_does_not_authenticate() -> None:
    """A frame moved with its number corrected still has the other number under its tag."""
    first, second, final = sealed(bytes(40))

    with pytest.raises(InvalidCiphertextError):
        opened(first[:4] + second[4:] + second + final)


def test_the_nonce_is_taken_from_the_frame() -> None:
    """Other writers choose other nonces, so a reader uses the one it finds."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = b"other writer"
    aad = MESSAGE_ID + b"AWSKMSEncryptionClient Final Frame" + (1).to_bytes(4, "big") + (3).to_bytes(8, "big")
    prefix = b"\xff\xff\xff\xff" + (1).to_bytes(4, "big") + nonce + (3).to_bytes(4, "big")

    assert opened(prefix + AESGCM(KEY).encrypt(nonce, b"abc", aad)) == (b"abc", b"")


def test_a_final_frame_longer_than_the_others_is_refused() -> None:
    """Its length is checked before it is used."""
    with pytest.raises(MessageFormatError, match="final frame has 17 bytes"):
        opened(b"".join(sealed(bytes(17), 17)), FRAME)


@pytest.mark.parametrize(("size", "final"), [(FRAME - 1, False), (FRAME + 1, False), (FRAME + 1, True)])
def test_frames_of_wrong_size_are_not_made(size: int, final: bool) -> None:
    """Only the final frame may be short, and none may be long."""
    with pytest.raises(ValueError, match="do not make a frame"):
        FrameSealer(MESSAGE_ID, KEY, FRAME).seal_into(memoryview(bytes(size)), memoryview(bytearray(99)), final=final)


def test_the_last_number_is_kept_for_a_final_frame() -> None:
    """A regular frame with the largest number would read as the mark of a final one."""
    sealer = FrameSealer(MESSAGE_ID, KEY, FRAME)
    sealer._number = MAX_FRAMES - 1

    with pytest.raises(LimitExceededError):
        sealer.seal_into(memoryview(bytes(FRAME)), memoryview(bytearray(99)), final=False)
