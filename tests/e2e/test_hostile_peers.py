"""Whatever one peer does, the daemon answers clearly or hangs up, stays small, and serves the others."""

from __future__ import annotations

import io
import os
import random
import select
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kmsd.api.errors import ThrottlingError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.api.operation import MAX_FRAME_BYTES
from kmsd.audit.verify import read_lines, verify
from kmsd.config import Limits
from kmsd_client import Client
from tests.support.dev_daemon import DevDaemon
from tests.support.raw_peer import RawPeer, frame, request

MEBIBYTE = 1024 * 1024
RANDOM = {"NumberOfBytes": 32 * 1024}


@pytest.fixture
def raw(dev: DevDaemon) -> Iterator[RawPeer]:
    with RawPeer(dev.socket) as peer:
        yield peer


@pytest.fixture(autouse=True)
def others_are_served(dev: DevDaemon) -> Iterator[None]:
    """Before, during and after each test: one connection is served all the time, and a new one in the end."""
    with dev.client() as bystander:
        bystander.generate_random(number_of_bytes=8)
        yield
        bystander.generate_random(number_of_bytes=8)
    with dev.client() as newcomer:
        assert newcomer.status().state == "unsealed"


def body(**members: object) -> bytes:
    return msgspec.msgpack.encode(members)


def resident_bytes(dev: DevDaemon) -> int:
    """Memory of the daemon's process that is its own and not a file's."""
    status = Path(f"/proc/{dev.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


@pytest.mark.parametrize(
    "data",
    [
        bytes(4),
        b"\xff\xff\xff\xff",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"GET / HTTP/1.1\r\nHost: kmsd\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        frame(b"\xc1"),
        frame(b"\x80"),
        frame(b"text that is no msgpack"),
        frame(body(id=1, op="Status")),
        frame(body(id=1, op="Status", params={}, more=1)),
        frame(body(id=0, op="Status", params={})),
        frame(body(id=-1, op="Status", params={})),
        frame(body(id="1", op="Status", params={})),
        frame(body(id=1.0, op="Status", params={})),
        frame(body(id=1, op=7, params={})),
        frame(body(id=1, op="x" * 65, params={})),
        frame(body(id=1, op="Status", params={}) + b"\0"),
        frame(msgspec.msgpack.encode([1, "Status", {}])),
        frame(b"\x91" * 60_000),
    ],
    ids=lambda data: data[:24].hex(),
)
def test_who_breaks_the_protocol_is_told_and_cut_off(raw: RawPeer, data: bytes) -> None:
    """One error under id 0, then the end; nothing of what was sent is repeated."""
    raw.send(data)
    answer = raw.reply()

    assert answer is not None
    assert answer["id"] == 0
    assert answer["error"]["code"] == "ProtocolException"
    assert raw.is_closed()


def test_what_came_before_the_breach_is_answered(raw: RawPeer) -> None:
    """Requests in the same packet as the garbage."""
    raw.send(request(1, "GenerateRandom", {"NumberOfBytes": 8}) + frame(b"\xc1"))
    answers = [raw.reply(), raw.reply()]

    assert [answer["id"] for answer in answers if answer] == [1, 0]
    assert raw.is_closed()


def test_an_id_in_flight_is_not_given_twice(raw: RawPeer) -> None:
    """The second use ends the connection."""
    raw.send(request(5, "CreateKey", {}) + request(5, "CreateKey", {}))
    codes = []
    while (answer := raw.reply()) is not None:
        codes.append(answer.get("error", {}).get("code"))

    assert "ProtocolException" in codes


def test_deep_nesting_costs_nothing(raw: RawPeer) -> None:
    """Parameters of nothing but brackets are refused by their shape, in no time and without recursion."""
    nested = b"\x91" * 60_000 + b"\xc0"
    began = time.monotonic()
    for number in range(1, 101):
        data = b"\x83\xa2id" + msgspec.msgpack.encode(number) + b"\xa2op\xa7Encrypt\xa6params" + nested
        raw.send(frame(data))
        answer = raw.reply()
        assert answer is not None
        assert answer["error"]["code"] in {"ValidationException", "ProtocolException"}
        if answer["id"] == 0:
            break
    assert time.monotonic() - began < 5


def test_random_bytes_never_do_harm(dev: DevDaemon) -> None:
    """As frames, and as parameters of every operation."""
    rng = random.Random(7)
    for _ in range(150):
        with RawPeer(dev.socket) as peer:
            peer.send(frame(rng.randbytes(rng.randrange(1, 200))))
            answer = peer.reply()
            assert answer is None or "error" in answer
    with RawPeer(dev.socket) as peer:
        for number, name in enumerate(["Encrypt", "Decrypt", "CreateKey", "ListKeys", "DecryptFile", "Status"] * 25, 1):
            params = {rng.choice(["KeyId", "Plaintext", "Policy", "Header", "Limit"]): rng.randbytes(9)}
            peer.send(request(number, name, params))
            answer = peer.reply()
            assert answer is not None
            assert answer["id"] == number


def test_mutated_requests_never_do_harm(dev: DevDaemon, key: str) -> None:
    """A right request with a few bytes changed."""
    rng = random.Random(8)
    right = body(id=1, op="Encrypt", params={"KeyId": key, "Plaintext": b"x" * 50, "EncryptionContext": {"a": "b"}})
    for _ in range(300):
        changed = bytearray(right)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        with RawPeer(dev.socket) as peer:
            peer.send(frame(bytes(changed)))
            assert peer.reply() is not None


def test_descriptors_are_not_taken(raw: RawPeer) -> None:
    """A peer that passes some is cut off, and the daemon holds none of them."""
    raw.ask("GenerateRandom", {"NumberOfBytes": 8})
    reading, writing = os.pipe()
    socket.send_fds(raw.socket, [request(2, "GenerateRandom", {"NumberOfBytes": 8})], [writing] * 20)
    os.close(writing)

    assert raw.is_closed()
    assert os.read(reading, 1) == b"", "nobody holds the other end any more"
    os.close(reading)


def test_hanging_up_in_the_middle_is_no_matter(dev: DevDaemon, client: Client) -> None:
    """In a frame, before the answers, after a part of them: nothing stays open, and everything is on record."""
    for number in range(30):
        peer = RawPeer(dev.socket)
        requests = b"".join(request(identifier, "CreateKey", {}) for identifier in range(1, 6))
        peer.send(requests[: len(requests) - number % 3])
        if number % 2:
            peer.reply()
        peer.socket.close()
    deadline = time.monotonic() + 10
    while client.status().connections > 2 or verify(trail(dev)).open_intents:  # this client, and the bystander
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trail(dev: DevDaemon) -> Iterator[bytes]:
    """The lines that are whole: the daemon goes on writing."""
    content = dev.audit_log.read_bytes()
    return read_lines(io.BytesIO(content[: content.rindex(b"\n") + 1]))


def test_one_byte_at_a_time_is_served(raw: RawPeer) -> None:
    """However slowly a request comes."""
    for byte in request(1, "GenerateRandom", {"NumberOfBytes": 8}):
        raw.send(bytes([byte]))
    answer = raw.reply()

    assert answer is not None
    assert len(answer["result"]["Plaintext"]) == 8


def test_who_does_not_read_is_not_served_further(dev: DevDaemon, raw: RawPeer) -> None:
    """Requests whose answers would take 1 GiB: the daemon stops reading, stays small, and ends well with the peer."""
    before = resident_bytes(dev)
    flood = b"".join(request(number, "GenerateRandom", RANDOM) for number in range(1, 33_000))
    sent = send_what_goes(raw, flood)

    assert sent < len(flood)
    assert resident_bytes(dev) - before < 16 * MEBIBYTE
    for number in range(1, 200):
        answer = raw.reply()
        assert answer is not None
        assert answer["id"] == number
        assert len(answer["result"]["Plaintext"]) == 32 * 1024


def send_what_goes(peer: RawPeer, data: bytes) -> int:
    """Send until the other side has taken nothing for a while; return how much was taken."""
    peer.socket.setblocking(False)
    sent = 0
    while sent < len(data) and select.select([], [peer.socket], [], 0.5)[1]:
        sent += peer.socket.send(data[sent : sent + 65536])
    peer.socket.settimeout(20)
    return sent


def test_announced_frames_take_no_memory(dev: DevDaemon) -> None:
    """A length is only a number until the bytes come."""
    before = resident_bytes(dev)
    peers = [RawPeer(dev.socket) for _ in range(50)]
    for peer in peers:
        peer.send(MAX_FRAME_BYTES.to_bytes(4, "big") + bytes(100))
    time.sleep(0.2)

    assert resident_bytes(dev) - before < 8 * MEBIBYTE
    for peer in peers:
        peer.socket.close()


def test_connections_of_one_uid_are_counted(dev: DevDaemon) -> None:
    """Beyond its limit a uid is told so; when others of its connections end it may connect again."""
    limit = Limits().connections_per_uid
    peers = [RawPeer(dev.socket) for _ in range(limit + 3)]
    time.sleep(0.1)
    turned_away = [peer for peer in peers if select.select([peer.socket], [], [], 0)[0]]
    answers = [peer.reply() for peer in turned_away]

    assert len(turned_away) >= 3
    assert {answer["error"]["code"] for answer in answers if answer} == {"LimitExceededException"}
    assert all(peer.is_closed() for peer in turned_away)
    for peer in peers:
        peer.socket.close()
    time.sleep(0.1)


def test_requests_beyond_those_in_flight_are_throttled(raw: RawPeer, key: str) -> None:
    """The rest is served, each request is answered once."""
    limit = Limits().requests_in_flight_per_uid
    raw.send(b"".join(request(number, "DescribeKey", {"KeyId": key}) for number in range(1, limit * 2)))
    answers = [raw.reply() for _ in range(1, limit * 2)]

    assert sorted(answer["id"] for answer in answers if answer) == list(range(1, limit * 2))
    codes = {answer["error"]["code"] for answer in answers if answer and "error" in answer}
    assert codes <= {"ThrottlingException"}


def test_one_uid_has_its_file_streams_on_any_machine(client: Client, key: str) -> None:
    """However few cores there are, four at once; the fifth is told to come back."""
    streams = []
    for _ in range(Limits().file_streams_per_uid):
        _, [descriptor] = client.call_with_descriptors(ENCRYPT_FILE, EncryptFileRequest(key_id=key))
        streams.append(descriptor)
    with pytest.raises(ThrottlingError, match="has 4 files under way, of at most 4"):
        client.call_with_descriptors(ENCRYPT_FILE, EncryptFileRequest(key_id=key))
    for descriptor in streams:
        os.close(descriptor)
    deadline = time.monotonic() + 10
    while client.status().file_streams:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_asks_too_often_is_slowed_down(short_path: Path, prepared: Path) -> None:
    """Beyond its rate a uid waits; nothing is refused."""
    daemon = DevDaemon(
        shutil.copytree(prepared, short_path / "d"), settings="[limits]\nrequests_per_second_per_uid = 100\n"
    )
    daemon.start()
    try:
        with daemon.client() as client:
            began = time.monotonic()
            for _ in range(160):
                client.generate_random(number_of_bytes=8)
            took = time.monotonic() - began
        daemon.stop()
    finally:
        daemon.end()

    assert 0.5 < took < 5


def test_a_client_object_survives_a_restart(short_path: Path, prepared: Path) -> None:
    """The next call connects again."""
    daemon = DevDaemon(shutil.copytree(prepared, short_path / "d"))
    daemon.start()
    try:
        with Client(daemon.socket) as client:
            key = client.create_key().key_metadata.arn
            daemon.stop()
            daemon.start()
            assert client.encrypt(key_id=key, plaintext=b"text").key_id == key
        daemon.stop()
    finally:
        daemon.end()
