"""What both kinds of client do alike."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import (
    AccessDeniedError,
    ConnectionLostError,
    KmsError,
    LimitExceededError,
    ThrottlingError,
    UntrustedServerError,
    ValidationError,
)
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest, EncryptFileResponse
from kmsd.api.keys import CREATE_ALIAS, CreateAliasRequest
from kmsd.api.shapes import Empty, EncryptionAlgorithm
from kmsd.api.symmetric import (
    ENCRYPT,
    GENERATE_RANDOM,
    EncryptRequest,
    EncryptResponse,
    GenerateRandomRequest,
    GenerateRandomResponse,
)
from kmsd.wire.codec import CONNECTION_ID, ReplyEncoder
from tests.client.conftest import Caller, MakeCaller
from tests.client.scripted import Answer, HangUpError, ScriptedDaemon, comes_down_to, descriptors_open

RANDOM = GenerateRandomRequest(number_of_bytes=8)
RANDOM_ANSWER = GenerateRandomResponse(plaintext=memoryview(b"8 random"))
ENCRYPTED = EncryptResponse(
    ciphertext_blob=b"blob", key_id="arn", encryption_algorithm=EncryptionAlgorithm.SYMMETRIC_DEFAULT
)
FILE = EncryptFileRequest(key_id="alias/a")
ALIAS = CreateAliasRequest(alias_name="alias/a", target_key_id="id")


def random_answer(_name: str, _request: Any) -> Answer:
    return RANDOM_ANSWER, []


def file_answer(_name: str, _request: Any) -> Answer:
    reading, writing = os.pipe()
    os.write(writing, b"from the daemon")
    os.close(writing)
    return EncryptFileResponse(key_id="arn", header=b"header"), [reading]


def connection_error(error: KmsError) -> bytearray:
    out = bytearray()
    ReplyEncoder().append_error(out, CONNECTION_ID, error)
    return out


def test_a_call_gets_its_response(caller: Caller, daemon: ScriptedDaemon) -> None:
    """Again and again over one connection."""
    daemon.answer = random_answer

    assert [caller.call(GENERATE_RANDOM, RANDOM) for _ in range(3)] == [RANDOM_ANSWER] * 3
    assert daemon.accepted == 1


def test_a_response_outlives_the_next_one(caller: Caller, daemon: ScriptedDaemon) -> None:
    """Its bytes are not those of the receive buffer's next use."""
    numbers = iter(range(10))
    daemon.answer = lambda _name, _request: (GenerateRandomResponse(plaintext=memoryview(bytes([next(numbers)]))), [])
    responses = [caller.call(GENERATE_RANDOM, RANDOM) for _ in range(3)]

    assert [bytes(response.plaintext) for response in responses] == [b"\x00", b"\x01", b"\x02"]


def test_methods_take_members_by_name(caller: Caller, daemon: ScriptedDaemon) -> None:
    """With their defaults, and bytes of any type as plaintext."""
    seen = []

    def answer(_name: str, request: EncryptRequest) -> Answer:
        seen.append((request.key_id, bytes(request.plaintext), request.encryption_context, request.dry_run))
        return ENCRYPTED, []

    daemon.answer = answer
    response = caller.method("encrypt", key_id="alias/a", plaintext=b"one")
    caller.method("encrypt", key_id="alias/a", plaintext=bytearray(b"two"), encryption_context={"a": "b"}, dry_run=True)

    assert response == ENCRYPTED
    assert seen == [("alias/a", b"one", {}, False), ("alias/a", b"two", {"a": "b"}, True)]


def test_a_large_request_and_a_large_response_come_through(caller: Caller, daemon: ScriptedDaemon) -> None:
    """Frames longer than a socket's buffer."""
    daemon.answer = lambda _name, _request: (GenerateRandomResponse(plaintext=memoryview(bytes(900_000))), [])
    policy = "x" * 131_072
    with pytest.raises(ConnectionLostError, match="not understood"):
        caller.method("create_key", policy=policy)  # the scripted answer is another operation's

    assert len(caller.call(GENERATE_RANDOM, RANDOM).plaintext) == 900_000


def test_an_error_is_raised_as_it_was_sent(caller: Caller, daemon: ScriptedDaemon) -> None:
    """With its class, text and request id; the connection goes on."""

    def refuse(_name: str, _request: Any) -> Answer:
        raise AccessDeniedError("not you", request_id="0b5a")

    daemon.answer = refuse
    with pytest.raises(AccessDeniedError, match="not you") as refusal:
        caller.call(GENERATE_RANDOM, RANDOM)
    daemon.answer = random_answer

    assert refusal.value.request_id == "0b5a"
    assert caller.call(GENERATE_RANDOM, RANDOM) == RANDOM_ANSWER
    assert daemon.accepted == 1


def test_a_retryable_error_is_asked_again(caller: Caller, daemon: ScriptedDaemon) -> None:
    """Until it succeeds, on a read-only operation."""
    failures = [ThrottlingError(), ThrottlingError()]

    def answer(_name: str, _request: Any) -> Answer:
        if failures:
            raise failures.pop()
        return RANDOM_ANSWER, []

    daemon.answer = answer

    assert caller.call(GENERATE_RANDOM, RANDOM) == RANDOM_ANSWER
    assert len(daemon.asked) == 3


def test_a_change_is_never_asked_twice(caller: Caller, daemon: ScriptedDaemon) -> None:
    """Even if the error says that it may succeed later."""

    def refuse(_name: str, _request: Any) -> Answer:
        raise ThrottlingError

    daemon.answer = refuse
    with pytest.raises(ThrottlingError):
        caller.call(CREATE_ALIAS, ALIAS)

    assert daemon.asked == ["CreateAlias"]


def test_a_lost_connection_is_opened_again(caller: Caller, daemon: ScriptedDaemon) -> None:
    """A daemon that started anew between two calls is not noticed, and a change goes over the new connection once."""
    daemon.answer = random_answer
    caller.call(GENERATE_RANDOM, RANDOM)
    daemon.hang_up()
    caller.call(GENERATE_RANDOM, RANDOM)
    assert daemon.accepted == 2
    daemon.hang_up()
    daemon.answer = lambda _name, _request: (Empty(), [])

    assert caller.call(CREATE_ALIAS, ALIAS) == Empty()
    assert daemon.asked.count("CreateAlias") == 1


def test_a_daemon_that_hangs_up_on_a_change_is_told(caller: Caller, daemon: ScriptedDaemon) -> None:
    """It may have made the change, so it is not asked again."""
    with pytest.raises(ConnectionLostError, match="closed the connection"):
        caller.call(CREATE_ALIAS, ALIAS)

    assert daemon.asked == ["CreateAlias"]


def test_a_refused_connection_says_why(caller: Caller, daemon: ScriptedDaemon) -> None:
    """The daemon's reason is read even if it closed the connection before the request was sent."""
    daemon.greeting = bytes(connection_error(LimitExceededError("64 connections of this uid")))
    with pytest.raises(LimitExceededError, match="64 connections"):
        caller.call(GENERATE_RANDOM, RANDOM)


def test_nonsense_from_the_daemon_ends_the_connection(caller: Caller, daemon: ScriptedDaemon) -> None:
    """The next call has a new one."""

    def answer(_name: str, _request: Any) -> Answer:
        raise HangUpError(b"\xff\xff\xff\xff")

    daemon.answer = answer
    with pytest.raises(ConnectionLostError, match="broke the protocol"):
        caller.call(GENERATE_RANDOM, RANDOM)
    daemon.answer = random_answer

    assert caller.call(GENERATE_RANDOM, RANDOM) == RANDOM_ANSWER


def test_a_silent_daemon_is_given_up(make_caller: MakeCaller, daemon: ScriptedDaemon) -> None:
    """After the client's time limit, saying so, and not asked again."""
    daemon.hold, daemon.held_back = "GenerateRandom", 10**6
    with pytest.raises(ConnectionLostError, match=r"within 0\.2 seconds"):
        make_caller(daemon.path, 0.2).call(GENERATE_RANDOM, RANDOM)

    assert daemon.asked == ["GenerateRandom"]


def test_a_request_that_cannot_be_sent_is_refused_by_the_client(caller: Caller, daemon: ScriptedDaemon) -> None:
    """The connection is as good as before."""
    daemon.answer = lambda _name, _request: (ENCRYPTED, [])
    with pytest.raises(ValidationError, match="at most 65536"):
        caller.call(ENCRYPT, EncryptRequest(key_id="x" * 70_000, plaintext=memoryview(b"")))
    request = EncryptRequest(key_id="a", plaintext=memoryview(b"a"))

    assert caller.call(ENCRYPT, request) == ENCRYPTED


def test_descriptors_come_with_their_response(caller: Caller, daemon: ScriptedDaemon) -> None:
    """They work, and no child inherits them."""
    daemon.answer = file_answer
    response, (descriptor,) = caller.call_with_descriptors(ENCRYPT_FILE, FILE)

    assert response.header == b"header"
    assert not os.get_inheritable(descriptor)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        assert file.read() == b"from the daemon"


def test_descriptors_nobody_takes_are_closed(caller: Caller, daemon: ScriptedDaemon) -> None:
    """A call that only wants the response leaks none."""
    daemon.answer = random_answer
    caller.call(GENERATE_RANDOM, RANDOM)
    before = descriptors_open()
    daemon.answer = file_answer
    for _ in range(3):
        caller.call(ENCRYPT_FILE, FILE)

    assert comes_down_to(before)


def test_descriptors_of_an_operation_that_has_none_are_not_let_in(caller: Caller, daemon: ScriptedDaemon) -> None:
    """The kernel drops them, and the connection ends as the reply's number is wrong."""
    daemon.answer = lambda name, request: (RANDOM_ANSWER, file_answer(name, request)[1])
    with pytest.raises(ConnectionLostError, match="descriptors"):
        caller.call(GENERATE_RANDOM, RANDOM)


@pytest.mark.parametrize("count", [2, 31], ids=["that fit", "that do not fit"])
def test_more_descriptors_than_declared_end_the_connection(caller: Caller, daemon: ScriptedDaemon, count: int) -> None:
    """And all of them are closed."""
    reading, writing = os.pipe()

    def answer(_name: str, _request: Any) -> Answer:
        return EncryptFileResponse(key_id="arn", header=b""), [os.dup(reading) for _ in range(count)]

    daemon.answer = answer
    with pytest.raises(ConnectionLostError, match="descriptors"):
        caller.call(ENCRYPT_FILE, FILE)
    os.close(reading)

    watched = select.poll()
    watched.register(writing, 0)
    assert watched.poll(5000) == [(writing, select.POLLERR)]  # a pipe nobody can read any more
    os.close(writing)


def test_a_missing_socket_is_told_with_its_path(make_caller: MakeCaller, short_path: Path) -> None:
    """There is nothing to wait for."""
    with pytest.raises(ConnectionLostError, match=f"{short_path}/none: No such file"):
        make_caller(short_path / "none").call(GENERATE_RANDOM, RANDOM)


def test_a_daemon_that_is_starting_is_waited_for(make_caller: MakeCaller, short_path: Path) -> None:
    """A socket on which nobody listens is tried again, and in the end told."""
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unheard:
        unheard.bind(str(path))
        with pytest.raises(ConnectionLostError, match="refused"):
            make_caller(path).call(CREATE_ALIAS, ALIAS)


@pytest.mark.root
def test_a_server_of_another_user_is_not_trusted(make_caller: MakeCaller, short_path: Path) -> None:
    """A socket in the right place is not enough; the kernel says who listens."""
    path = short_path / "s"
    short_path.chmod(0o777)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as impostor:
        os.seteuid(54321)
        try:
            impostor.bind(str(path))
            impostor.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(UntrustedServerError, match="uid 54321"):
            make_caller(path).call(GENERATE_RANDOM, RANDOM)
