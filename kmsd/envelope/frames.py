"""Body of an encrypted file: frames of AES-256-GCM, sealed and opened one by one. Pure: no I/O.

Source: AWS Encryption SDK specification, data-format/message-body and message-body-aad. Rules a reader holds to:

1. Regular frames have exactly the header's frame length; exactly one final frame ends the message, with 0 to frame
   length bytes.
2. Frames are numbered 1, 2, 3 ... without gap, repetition or exchange; at most 2**32 - 1 of them.
3. The nonce stands in the frame and is used as found (other writers number differently); ours is the frame's number.
4. Nothing follows the final frame. Whoever reads the bytes holds this one; the opener only says when it was final.
5. A frame's plaintext counts only after its tag was verified.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsd.api.errors import InvalidCiphertextError, LimitExceededError, MessageFormatError
from kmsd.envelope.header import IV_BYTES, TAG_BYTES

_NUMBER_BYTES = 4
_FINAL_MARK = b"\xff\xff\xff\xff"
# Regular: number, nonce, tag. Final: mark, number, nonce, content length, tag.
REGULAR_OVERHEAD = _NUMBER_BYTES + IV_BYTES + TAG_BYTES
FINAL_PREFIX = 4 + _NUMBER_BYTES + IV_BYTES + 4
FINAL_OVERHEAD = FINAL_PREFIX + TAG_BYTES
# Unframed: nonce, content length as 64 bits.
UNFRAMED_PREFIX = IV_BYTES + 8
UNFRAMED_OVERHEAD = UNFRAMED_PREFIX + TAG_BYTES
# A number of 32 bits, whose largest value as a regular frame's would be the mark of a final one.
MAX_FRAMES = 2**32 - 1
# Memory a message may demand of a reader, as it must hold a whole frame before it may release a byte of it (DESIGN 10).
MAX_FRAME_LENGTH = 16 * 1024 * 1024
_REGULAR_TEXT = b"AWSKMSEncryptionClient Frame"
_FINAL_TEXT = b"AWSKMSEncryptionClient Final Frame"
_UNFRAMED_TEXT = b"AWSKMSEncryptionClient Single Block"


def body_length(plaintext_bytes: int, frame_length: int) -> int:
    """Return how many bytes the body of a message has that `FrameSealer` makes of so much plaintext."""
    regular = max(0, plaintext_bytes - 1) // frame_length
    return plaintext_bytes + regular * REGULAR_OVERHEAD + FINAL_OVERHEAD


def plaintext_length(body_bytes: int, frame_length: int) -> int:
    """Return how much plaintext a body of this length has when `FrameSealer` made it; other writers' may differ."""
    frames = max(1, -(-(body_bytes - (FINAL_OVERHEAD - REGULAR_OVERHEAD)) // (frame_length + REGULAR_OVERHEAD)))
    return max(0, body_bytes - (frames - 1) * REGULAR_OVERHEAD - FINAL_OVERHEAD)


class FrameSealer:
    """Makes the frames of one message in order. `message_key` is borrowed for the sealer's life, never copied."""

    def __init__(self, message_id: bytes, message_key: memoryview, frame_length: int) -> None:
        self._message_id = message_id
        self._key = message_key
        self._frame_length = frame_length
        self._number = 0

    def seal_into(self, plaintext: memoryview, out: memoryview, *, final: bool) -> int:
        """Write the next frame to the start of `out` and return its length.

        A regular frame takes exactly the frame length of plaintext, the final one at most that. Raises
        LimitExceededError when the message would have more than 2**32 - 1 frames.
        """
        length = len(plaintext)
        if length > self._frame_length or (length < self._frame_length and not final):
            raise ValueError(f"{length} bytes do not make a frame of {self._frame_length}")
        self._number += 1
        if self._number > MAX_FRAMES or (self._number == MAX_FRAMES and not final):
            raise LimitExceededError(f"a message may have {MAX_FRAMES} frames")
        number = self._number.to_bytes(_NUMBER_BYTES, "big")
        # Unique under its key: the key is this message's own and a number is used once.
        nonce = self._number.to_bytes(IV_BYTES, "big")
        prefix = _FINAL_MARK + number + nonce + length.to_bytes(4, "big") if final else number + nonce
        end = len(prefix) + length + TAG_BYTES
        out[: len(prefix)] = prefix
        aad = _aad(self._message_id, _FINAL_TEXT if final else _REGULAR_TEXT, self._number, length)
        AESGCM(self._key).encrypt_into(nonce, plaintext, aad, out[len(prefix) : end])
        return end


class OpenedFrame(NamedTuple):
    """What one frame took from the input, what it gave, and whether it was the last."""

    taken: int
    length: int
    final: bool


class FrameOpener:
    """Opens the frames of one message in order. `message_key` is borrowed for the opener's life, never copied."""

    def __init__(self, message_id: bytes, message_key: memoryview, frame_length: int) -> None:
        self._message_id = message_id
        self._key = message_key
        self._frame_length = frame_length
        self._expected = 1

    def open_into(self, data: memoryview, out: memoryview) -> OpenedFrame | None:
        """Open the frame that `data` begins with into the start of `out`, or return None when it is not all there.

        `out` has room for a frame length. Raises MessageFormatError for what the public structure shows (numbers out
        of order, a content length above the frame length) and InvalidCiphertextError for a wrong tag; what stands in
        `out` then is not authenticated and must not be used.
        """
        final = data[:4] == _FINAL_MARK
        if final:
            if len(data) < FINAL_PREFIX:
                return None
            number, nonce, length = data[4:8], data[8:20], int.from_bytes(data[20:FINAL_PREFIX], "big")
            if length > self._frame_length:
                raise MessageFormatError(
                    f"the final frame has {length} bytes, more than the {self._frame_length} of others"
                )
            start = FINAL_PREFIX
        else:
            number, nonce, length = data[:4], data[4:16], self._frame_length
            start = _NUMBER_BYTES + IV_BYTES
        end = start + length + TAG_BYTES
        if len(data) < end:
            return None
        self._check_number(int.from_bytes(number, "big"))
        aad = _aad(self._message_id, _FINAL_TEXT if final else _REGULAR_TEXT, self._expected, length)
        _open(self._key, bytes(nonce), data[start:end], aad, out[:length])
        self._expected += 1
        return OpenedFrame(end, length, final)

    def truncated(self) -> MessageFormatError:
        """Return the error for an input that ended before its final frame."""
        return MessageFormatError(
            f"the message ends inside frame {self._expected}, before its final frame: it was truncated"
        )

    def _check_number(self, number: int) -> None:
        if number != self._expected:
            where = f"frame {number} stands where frame {self._expected} belongs"
            raise MessageFormatError(f"{where}: frames were removed, repeated or exchanged")


def unframed_length(prefix: memoryview) -> int:
    """Return the content length that an unframed body's first 20 bytes announce.

    Raises MessageFormatError above 16 MiB: none of it may be released before its end was verified.
    """
    length = int.from_bytes(prefix[IV_BYTES:UNFRAMED_PREFIX], "big")
    if length > MAX_FRAME_LENGTH:
        raise MessageFormatError(
            f"unframed messages above {MAX_FRAME_LENGTH} bytes are not supported; this has {length}"
        )
    return length


def open_unframed_into(message_id: bytes, message_key: memoryview, body: memoryview, out: memoryview) -> None:
    """Open a whole unframed body (prefix, ciphertext, tag) into `out`, which has its exact length.

    Raises InvalidCiphertextError.
    """
    aad = _aad(message_id, _UNFRAMED_TEXT, 1, len(out))
    _open(message_key, bytes(body[:IV_BYTES]), body[UNFRAMED_PREFIX:], aad, out)


def _aad(message_id: bytes, text: bytes, number: int, length: int) -> bytes:
    return b"".join((message_id, text, number.to_bytes(4, "big"), length.to_bytes(8, "big")))


def _open(key: memoryview, nonce: bytes, ciphertext: memoryview, aad: bytes, out: memoryview) -> None:
    try:
        AESGCM(key).decrypt_into(nonce, ciphertext, aad, out)
    except InvalidTag:
        raise InvalidCiphertextError("a frame of the message was changed") from None
