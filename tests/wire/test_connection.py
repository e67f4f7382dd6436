"""The rules of a connection, both ends against each other without a socket."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from kmsd.api.errors import AccessDeniedError, ConnectionLostError, LimitExceededError, ProtocolError, ValidationError
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest, EncryptFileResponse
from kmsd.api.operation import MAX_FRAME_BYTES
from kmsd.api.shapes import Empty
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest, GenerateRandomResponse
from kmsd.wire.codec import CONNECTION_ID, ReplyEncoder, RequestDecoder
from kmsd.wire.connection import ClientConnection, Completed, ServerConnection
from kmsd.wire.framing import FrameBuffer

RANDOM = GenerateRandomRequest(number_of_bytes=8)
FILE = EncryptFileRequest(key_id="alias/a")
EMPTY = Empty()
HEADER = EncryptFileResponse(key_id="arn", header=b"header")


def deliver(
    connection: ClientConnection, data: bytes | bytearray, descriptors: tuple[int, ...] = ()
) -> list[Completed]:
    """Let the client read `data`, the descriptors with its first byte."""
    completed = []
    while data:
        space = connection.space()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        del space
        connection.received(count, descriptors)
        completed += connection.completed()
        data, descriptors = data[count:], ()
    return completed


def result(identifier: int, response: Any = EMPTY, descriptors: int = 0) -> bytearray:
    out = bytearray()
    ReplyEncoder().append_result(out, identifier, response, descriptors)
    return out


def error(identifier: int, failure: Any) -> bytearray:
    out = bytearray()
    ReplyEncoder().append_error(out, identifier, failure)
    return out


def numbered(number: int) -> GenerateRandomResponse:
    return GenerateRandomResponse(plaintext=memoryview(number.to_bytes(8, "big")))


def test_an_id_in_flight_is_refused() -> None:
    """And free again once its request was answered."""
    server = ServerConnection(4)
    server.begin(5)
    with pytest.raises(ProtocolError, match="id 5"):
        server.begin(5)
    server.end(5)
    server.begin(5)

    assert server.in_flight == 1


def test_one_request_more_than_allowed_may_begin_to_be_refused() -> None:
    """The owner answers that one; a second one means that the owner let the first in."""
    server = ServerConnection(2)
    for identifier in (1, 2, 3):
        server.begin(identifier)

    with pytest.raises(ProtocolError, match="more than 2"):
        server.begin(4)


def test_ending_what_did_not_begin_is_the_owners_mistake() -> None:
    """It is never passed over."""
    with pytest.raises(KeyError):
        ServerConnection(2).end(1)


def test_descriptors_go_to_their_replies_in_order() -> None:
    """Also when both replies are read at once, as the kernel never splits off the first byte."""
    client = ClientConnection()
    first, second = client.request(ENCRYPT_FILE, FILE), client.request(ENCRYPT_FILE, FILE)
    assert client.expects_descriptors
    completed = deliver(client, result(second, HEADER, 1) + result(first, HEADER, 1), (10, 11))

    assert [Completed(second, HEADER, (10,)), Completed(first, HEADER, (11,))] == completed
    assert not client.expects_descriptors


@pytest.mark.parametrize(
    "reply",
    [
        result(1, HEADER, 0),
        result(1, HEADER, 2),
        result(2, HEADER),
        error(2, AccessDeniedError()),
        b"\x00\x00\x00\x01\xc0",
        b"\x00\x00\x00\x00",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    ],
)
def test_a_daemon_that_breaks_the_protocol_is_given_up(reply: bytes) -> None:
    """Wrong descriptors, unknown ids and broken frames; the descriptors that came are given back to be closed."""
    client = ClientConnection()
    client.request(ENCRYPT_FILE, FILE)

    assert deliver(client, reply, (10,)) == []
    assert isinstance(client.lost, ConnectionLostError)
    assert client.abandon() == [10]
    assert client.abandon() == []


def test_answers_before_a_break_are_given_out() -> None:
    """What was complete stays complete."""
    client = ClientConnection()
    identifier = client.request(GENERATE_RANDOM, RANDOM)

    assert [Completed(identifier, numbered(1))] == deliver(client, result(identifier, numbered(1)) + bytes(4))
    assert client.lost is not None


def test_an_error_about_the_connection_is_told_as_it_came() -> None:
    """The daemon's reason for ending it is better than that it ended."""
    client = ClientConnection()
    client.request(GENERATE_RANDOM, RANDOM)
    deliver(client, error(CONNECTION_ID, LimitExceededError("too many connections")))

    assert isinstance(client.lost, LimitExceededError)


def test_an_answer_of_another_shape_fails_that_request_only() -> None:
    """As between a client and a daemon of different versions."""
    client = ClientConnection()
    first, second = client.request(GENERATE_RANDOM, RANDOM), client.request(GENERATE_RANDOM, RANDOM)
    (broken, whole) = deliver(client, result(first) + result(second, numbered(2)))

    assert isinstance(broken.outcome, ConnectionLostError)
    assert numbered(2) == whole.outcome
    assert client.lost is None


def test_a_forgotten_request_still_takes_its_answer_and_descriptors() -> None:
    """They are given back to be closed, and not mistaken for another's."""
    client = ClientConnection()
    forgotten, wanted = client.request(ENCRYPT_FILE, FILE), client.request(ENCRYPT_FILE, FILE)
    client.forget(forgotten)
    completed = deliver(client, result(forgotten, HEADER, 1) + result(wanted, HEADER, 1), (10, 11))

    assert [Completed(wanted, HEADER, (11,))] == completed
    assert client.unclaimed() == [10]
    assert client.in_flight == 0


def test_progress_leaves_a_request_in_flight() -> None:
    """A client need not look at it."""
    client = ClientConnection()
    identifier = client.request(GENERATE_RANDOM, RANDOM)
    out = bytearray()
    ReplyEncoder().append_progress(out, identifier, 1, None)

    assert deliver(client, out) == []
    assert client.in_flight == 1


def test_a_request_counts_as_sent_when_its_last_byte_is() -> None:
    """Before that the daemon cannot have begun with it."""
    client = ClientConnection()
    identifier = client.request(GENERATE_RANDOM, RANDOM)
    client.sent(len(client.output()) - 1)
    assert not client.given_up(identifier, ConnectionLostError()).sent
    client.sent(1)

    assert client.given_up(identifier, ConnectionLostError()).sent


def test_a_request_that_cannot_be_sent_takes_no_id() -> None:
    """And leaves the connection as it was."""
    client = ClientConnection()
    with pytest.raises(ValidationError):
        client.request(ENCRYPT_FILE, EncryptFileRequest(key_id="\ud800"))

    assert (client.in_flight, len(client.output())) == (0, 0)
    assert client.request(GENERATE_RANDOM, RANDOM) == 1


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=20))
def test_a_client_survives_any_bytes(chunks: list[bytes]) -> None:
    """A hostile daemon gets no further than an error."""
    client = ClientConnection()
    client.request(GENERATE_RANDOM, RANDOM)
    for chunk in chunks:
        deliver(client, chunk)
        if client.lost is not None:
            break


class Conversation(RuleBasedStateMachine):
    """Any interleaving of requests, replies in any order, cuts and forgetting: each caller gets its own answer once."""

    served = Bundle("served")

    def __init__(self) -> None:
        super().__init__()
        self.client = ClientConnection()
        self.server = ServerConnection(1000)
        self.frames = FrameBuffer(MAX_FRAME_BYTES)
        self.decoder = RequestDecoder()
        self.to_client = bytearray()
        self.waiting: set[int] = set()
        self.forgotten: set[int] = set()

    @rule()
    def ask(self) -> None:
        self.waiting.add(self.client.request(GENERATE_RANDOM, RANDOM))

    @rule(target=served, count=st.integers(1, 200))
    def transmit(self, count: int) -> Any:
        output = self.client.output()
        space = self.frames.space()
        count = min(count, len(output), len(space))
        space[:count] = output[:count]
        self.frames.received(count)
        self.client.sent(count)
        requests = [self.decoder.decode(frame) for frame in self.frames.frames(32)]
        for request in requests:
            self.server.begin(request.id)
        return [request.id for request in requests]

    @rule(identifiers=consumes(served))
    def answer(self, identifiers: list[int]) -> None:
        for identifier in reversed(identifiers):
            self.to_client += result(identifier, numbered(identifier))
            self.server.end(identifier)

    @rule(count=st.integers(1, 200))
    def read(self, count: int) -> None:
        for identifier, outcome, _, _ in deliver(self.client, self.to_client[:count]):
            assert identifier not in self.forgotten
            assert numbered(identifier) == outcome
            self.waiting.remove(identifier)
        del self.to_client[:count]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.waiting)))
        self.client.forget(identifier)
        self.waiting.remove(identifier)
        self.forgotten.add(identifier)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.client.lost is None
        assert self.waiting <= set(self.client._waiting)


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
