"""A message that was changed in any way is refused, clearly, and leaves nothing behind (DESIGN 10)."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import InvalidCiphertextError, KmsError, MessageFormatError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.api.shapes import DEFAULT_FRAME_LENGTH
from kmsd.envelope import conversation
from kmsd.envelope.conversation import Start
from kmsd.envelope.frames import FINAL_OVERHEAD, FINAL_PREFIX, REGULAR_OVERHEAD
from kmsd.envelope.header import parse_header
from kmsd_client import Client
from kmsd_client.files import decrypt_file, encrypt_file
from tests.support.dev_daemon import DevDaemon

# The smallest frames there are, so that a small message has all kinds of them.
FRAME = 4096
SEALED_FRAME = FRAME + REGULAR_OVERHEAD
PLAINTEXT = os.urandom(2 * FRAME + 100)
CONTEXT = {"purpose": "test", "tenant": "one"}
REFUSED = (InvalidCiphertextError, MessageFormatError)


def encrypted(client: Client, key: str, plaintext: bytes, context: dict[str, str]) -> bytes:
    """Return a message with frames of FRAME bytes, which the library's own functions do not make."""
    request = EncryptFileRequest(key_id=key, encryption_context=context, frame_length=FRAME)
    _, descriptors = client.call_with_descriptors(ENCRYPT_FILE, request)
    source, target = os.memfd_create("source"), os.memfd_create("target")
    with (
        socket.socket(fileno=descriptors[0]) as worker,
        os.fdopen(source, "r+b") as reader,
        os.fdopen(target, "r+b") as writer,
    ):
        reader.write(plaintext)
        reader.seek(0)
        start = conversation.encode(Start(progress=False, size=len(plaintext)))
        socket.send_fds(worker, [start], [source, target])
        assert conversation.decode_report(worker.recv(conversation.MAX_DATAGRAM_BYTES)).done is not None
        writer.seek(0)
        return writer.read()


@pytest.fixture(scope="module")
def module_client(dev: DevDaemon) -> Iterator[Client]:
    with dev.client() as connected:
        yield connected


@pytest.fixture(scope="module")
def module_key(module_client: Client) -> str:
    return module_client.create_key().key_metadata.arn


@pytest.fixture(scope="module")
def message(module_client: Client, module_key: str) -> bytes:
    return encrypted(module_client, module_key, PLAINTEXT, CONTEXT)


@pytest.fixture(scope="module")
def header(message: bytes) -> int:
    """How many bytes the header has."""
    return parse_header(message).length


def refusal(client: Client, folder: Path, data: bytes) -> KmsError:
    """Return the error that decrypting `data` ends with, having made sure that nothing is left of it."""
    source, target = folder / "m", folder / "plain"
    source.write_bytes(data)
    with pytest.raises(REFUSED) as caught:
        decrypt_file(client, source, target)
    assert [path.name for path in folder.iterdir()] == ["m"]
    assert str(caught.value)
    return caught.value


def test_the_untouched_message_is_decrypted(client: Client, message: bytes, short_path: Path) -> None:
    """So that the refusals below have no other reason."""
    (short_path / "m").write_bytes(message)
    result = decrypt_file(client, short_path / "m", short_path / "plain")

    assert (short_path / "plain").read_bytes() == PLAINTEXT
    assert dict(result.encryption_context) == CONTEXT


def test_every_byte_of_the_header_counts(client: Client, message: bytes, header: int, short_path: Path) -> None:
    """Each one, changed in one bit, is noticed before a worker begins."""
    rng = random.Random(3)
    for position in range(header):
        changed = bytearray(message)
        changed[position] ^= 1 << rng.randrange(8)
        refusal(client, short_path, bytes(changed))


def test_every_part_of_a_frame_counts(client: Client, message: bytes, header: int, short_path: Path) -> None:
    """Number, nonce, length, ciphertext and tag, of the first, a middle and the final frame."""
    rng = random.Random(4)
    frames = [header, header + SEALED_FRAME, header + 2 * SEALED_FRAME]
    starts = [frame + offset for frame in frames for offset in (0, 3, 4, 15, 16, 1000)]
    ends = [frame - offset for frame in [*frames[1:], len(message)] for offset in (1, 16, 17)]
    final = [frames[2] + offset for offset in range(4, FINAL_PREFIX)]
    sampled = [rng.randrange(header, len(message)) for _ in range(20)]
    for position in {*starts, *ends, *final, *sampled} - {len(message)}:
        if position < len(message):
            changed = bytearray(message)
            changed[position] ^= 1 << rng.randrange(8)
            refusal(client, short_path, bytes(changed))


def test_no_truncation_goes_unnoticed(client: Client, message: bytes, header: int, short_path: Path) -> None:
    """In the header, at frame boundaries and around them, and by a single byte."""
    rng = random.Random(5)
    boundaries = [header, header + SEALED_FRAME, header + 2 * SEALED_FRAME, len(message) - FINAL_OVERHEAD]
    lengths = {0, 1, 2, 3, header // 2, len(message) - 1}
    lengths |= {boundary + offset for boundary in boundaries for offset in (-1, 0, 1, 4)}
    lengths |= {rng.randrange(len(message)) for _ in range(15)}
    for length in lengths:
        error = refusal(client, short_path, message[:length])
        assert isinstance(error, MessageFormatError)
        assert "truncated" in error.message or "empty" in error.message


@pytest.mark.parametrize("trailing", [b"\0", b"x" * 10_000, b"\xff" * 24], ids=["zero", "text", "frame"])
def test_nothing_may_follow_the_final_frame(client: Client, message: bytes, short_path: Path, trailing: bytes) -> None:
    """Not a byte, not what looks like another final frame."""
    assert isinstance(refusal(client, short_path, message + trailing), MessageFormatError)


def test_a_message_twice_over_is_refused(client: Client, message: bytes, short_path: Path) -> None:
    """Concatenation makes no message."""
    refusal(client, short_path, message * 2)


def test_frames_of_a_message_cannot_be_rearranged(
    client: Client, message: bytes, header: int, short_path: Path
) -> None:
    """Exchanged, repeated, left out, or with their numbers exchanged as well."""
    second = header + SEALED_FRAME
    last = second + SEALED_FRAME
    start, one, two, final = message[:header], message[header:second], message[second:last], message[last:]
    renumbered = two[:4] + one[4:], one[:4] + two[4:]
    for frames in ([two, one, final], [one, one, two, final], [one, final], [two, final], [one, two, one, final]):
        assert "frame" in refusal(client, short_path, start + b"".join(frames)).message
    for frames in ([*renumbered, final], [final], [one, two, final[:20] + final[20:]][::-1]):
        refusal(client, short_path, start + b"".join(frames))


def test_frames_of_two_messages_cannot_be_mixed(
    client: Client, message: bytes, header: int, module_key: str, short_path: Path
) -> None:
    """Of the same key, the same context and the same content, each frame at its own place."""
    other = encrypted(client, module_key, PLAINTEXT, CONTEXT)
    assert len(other) == len(message)
    for cut in (header, header + SEALED_FRAME, header + 2 * SEALED_FRAME):
        error = refusal(client, short_path, message[:cut] + other[cut:])
        assert isinstance(error, InvalidCiphertextError)


def test_parts_of_two_headers_cannot_be_mixed(
    client: Client, message: bytes, header: int, module_key: str, short_path: Path
) -> None:
    """Cut anywhere: message id, context, data key, commitment and tag belong together."""
    other = encrypted(client, module_key, PLAINTEXT, {"purpose": "test", "tenant": "two"})
    for cut in range(10, header, 7):
        refusal(client, short_path, message[:cut] + other[cut:])


def test_a_data_key_does_not_move_to_another_key(client: Client, message: bytes, short_path: Path) -> None:
    """Renaming the key in the header to one that the caller may use as well helps nobody."""
    mine = client.create_key().key_metadata.arn.encode()
    old = parse_header(message).header.encrypted_data_keys[0].provider_info
    assert len(mine) == len(old)

    assert isinstance(refusal(client, short_path, message.replace(old, mine)), InvalidCiphertextError)


def test_a_stream_receives_only_what_was_authentic(client: Client, key: str, short_path: Path) -> None:
    """The frames before the changed one, and nothing of it or behind it."""
    plaintext = os.urandom(4 * DEFAULT_FRAME_LENGTH)
    (short_path / "plain").write_bytes(plaintext)
    encrypt_file(client, short_path / "plain", short_path / "m", key_id=key)
    changed = bytearray((short_path / "m").read_bytes())
    changed[2 * DEFAULT_FRAME_LENGTH + 5000] ^= 1
    (short_path / "m").write_bytes(changed)
    with os.fdopen(os.memfd_create("stream"), "r+b") as stream:
        with pytest.raises(InvalidCiphertextError):
            decrypt_file(client, short_path / "m", stream.fileno())
        stream.seek(0)
        assert stream.read() == plaintext[: 2 * DEFAULT_FRAME_LENGTH]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("context", "the message's encryption context does not have the pair 'tenant=two'"),
        ("flip", "InvalidCiphertextException: "),
        ("cut", "MessageFormatException: the message ends inside frame 3"),
        ("trail", "MessageFormatException: "),
        ("other", "MessageFormatException: this is not an encrypted message"),
    ],
)
def test_the_command_says_it_and_fails(
    dev: DevDaemon, message: bytes, short_path: Path, change: str, words: str
) -> None:
    """One line of error, exit code 1, no partial file and no temporary one."""
    data = {
        "context": message,
        "flip": message[:-1] + bytes([message[-1] ^ 1]),
        "cut": message[:-1],
        "trail": message + b"\n",
        "other": b"just some text\n",
    }[change]
    (short_path / "m.kms").write_bytes(data)
    tenant = "tenant=two" if change == "context" else "tenant=one"
    ran = dev.run("kms", "decrypt", "-c", tenant, "m.kms", cwd=short_path)

    assert ran.returncode == 1
    assert ran.stdout == b""
    assert ran.stderr.decode().startswith("kms: error: ")
    assert words in ran.stderr.decode()
    assert "Traceback" not in ran.stderr.decode()
    assert [path.name for path in short_path.iterdir()] == ["m.kms"]
