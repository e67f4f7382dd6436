"""No secret of a request is anywhere but in the reply: not in the trail, the service log, an error, a repr, a file.

Every operation is asked with marks in its sensitive members, well formed and not, sealed and not (see
tests/support/marked_requests.py for what is sensitive, and what is not by design).
"""

from __future__ import annotations

import itertools
import os
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.api import OPERATIONS
from kmsd.api.administration import UNSEAL, UnsealRequest
from kmsd.api.errors import KmsError, RecoveryUnavailableError, TokenPinIncorrectError, ValidationError
from kmsd.api.operation import KeyState, Operation
from kmsd.api.unsealing import MAX_DATAGRAM_BYTES, decode_outcome
from kmsd.wire.codec import ParamsDecoder
from kmsd_client import Client
from kmsd_client.unsealing import unseal
from tests.support.dev_daemon import DevDaemon
from tests.support.marked_requests import MarkedRequests
from tests.support.marks import Marks, forms
from tests.support.raw_peer import RawPeer, frame

of_each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


# The audit key's public half, which is there for everybody to keep.
PUBLIC = {"PublicKey"}


class Asked:
    """A daemon that is asked with marks, and all that is said about it."""

    def __init__(self, daemon: DevDaemon) -> None:
        self.daemon = daemon
        self.marks = Marks()
        # Bytes of replies, which others take.
        self.outputs: dict[str, bytes] = {}
        self.pin = (daemon.directory / "token" / "pin").read_bytes()
        self.marks.add("the PIN", self.pin)
        with daemon.client() as client:
            self.key = client.create_key().key_metadata.arn
            self.outputs["ciphertext_blob"] = client.encrypt(key_id=self.key, plaintext=b"text").ciphertext_blob

    def requests(self, operation: Operation[Any, Any]) -> MarkedRequests:
        return MarkedRequests(operation, self.marks, self.key, self.outputs)

    def told(self, operation: Operation[Any, Any], reply: dict[str, Any] | None) -> list[str]:
        """What an error gives away; a result is meant to have what was asked for, and then nobody else has it."""
        if reply is None:
            return []
        if "error" in reply:
            return self.marks.leaks(f"the error of {operation.name}", str(reply["error"]))
        for member, value in reply["result"].items():
            if isinstance(value, bytes) and member not in PUBLIC:
                self.marks.add(f"{operation.name}'s {member}", value)
        return []

    def leaks(self) -> list[str]:
        """What the daemon's folder and its log give away."""
        said = self.marks.leaks("the service log", self.daemon.said())
        files = self.marks.leaks_below(self.daemon.directory)
        # The token's PIN is where it belongs.
        return said + [leak for leak in files if not leak.startswith("token/pin: the PIN")]

    def restore(self) -> None:
        with self.daemon.client() as client:
            if client.status().state == "sealed":
                unseal(client, self.pin)
            if client.describe_key(key_id=self.key).key_metadata.key_state is KeyState.PENDING_DELETION:
                client.cancel_key_deletion(key_id=self.key)
            client.enable_key(key_id=self.key)


@pytest.fixture(scope="module")
def asked(dev: DevDaemon) -> Asked:
    return Asked(dev)


@pytest.fixture(autouse=True)
def restored(asked: Asked) -> Iterator[None]:
    """Whatever an operation does, the next one finds keys that can be used."""
    yield
    asked.restore()


@of_each
def test_a_request_leaves_nothing(asked: Asked, operation: Operation[Any, Any]) -> None:
    """Well formed or not, answered or refused."""
    requests, leaks = asked.requests(operation), []
    with RawPeer(asked.daemon.socket) as peer:
        for params in itertools.chain(requests.malformed(), requests.well_formed()):
            leaks += asked.told(operation, peer.ask(operation.name, params))
    for body in requests.broken_frames():
        with RawPeer(asked.daemon.socket) as peer:
            peer.send(frame(body))
            reply = peer.reply()
            leaks += asked.told(operation, reply)
            assert reply is None or reply["error"]["code"] == "ProtocolException"

    assert leaks + asked.leaks() == []


def test_a_sealed_daemon_keeps_nothing_of_what_it_refuses(asked: Asked) -> None:
    """Every operation, one after the other."""
    leaks = []
    with asked.daemon.client() as client, RawPeer(asked.daemon.socket) as peer:
        client.seal()
        for operation in OPERATIONS:
            for params in asked.requests(operation).well_formed():
                leaks += asked.told(operation, peer.ask(operation.name, params))

    assert leaks + asked.leaks() == []


@of_each
def test_a_client_s_errors_and_reprs_show_nothing(asked: Asked, operation: Operation[Any, Any]) -> None:
    """Nor do its tracebacks: programs log all of them."""
    decode = ParamsDecoder(operation.request, max_bytes=operation.frame_bytes).decode
    leaks, shown = [], []
    with asked.daemon.client() as client:
        for params in asked.requests(operation).well_formed():
            try:
                request = decode(memoryview(msgspec.msgpack.encode(params)))
            except ValidationError as error:
                shown += texts_of(error)
                continue
            shown += [*shows(request), *ask(client, operation, request)]
            for member in operation.request.__struct_fields__:
                unsendable = msgspec.structs.replace(request, **{member: Unsendable(asked.marks.make(member))})
                shown += ask(client, operation, unsendable)
    for text in shown:
        leaks += asked.marks.leaks(operation.name, text)

    assert leaks + asked.leaks() == []


class Unsendable:
    """What a program gave by mistake; its text is a secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __str__(self) -> str:
        return self._secret


def ask(client: Client, operation: Operation[Any, Any], request: msgspec.Struct) -> list[str]:
    """What a program may log of a call."""
    try:
        response, descriptors = client.call_with_descriptors(operation, request)
    except KmsError as error:
        return texts_of(error)
    for descriptor in descriptors:
        os.close(descriptor)
    return shows(response)


def shows(shape: Any) -> list[str]:
    """What a request or response says of itself."""
    return [repr(shape), str(shape), f"{[shape]}", str(shape.__rich_repr__())]


def texts_of(error: BaseException) -> list[str]:
    return [str(error), repr(error), repr(error.args), "".join(traceback.format_exception(error))]


@of_each
def test_a_response_shows_no_bytes(operation: Operation[Any, Any]) -> None:
    """Whatever it has been asked for."""
    marks = Marks()
    described = msgspec.inspect.type_info(operation.response)
    fields = described.fields  # type: ignore[attr-defined] # a struct's
    values: dict[str, Any] = {
        field.name: marks.make(field.name).encode() if "Bytes" in str(field.type) or "Memory" in str(field.type) else ""
        for field in fields
    }

    for text in shows(operation.response(**values)):
        assert marks.leaks(operation.name, text) == []


def test_what_unseals_is_kept_nowhere(asked: Asked) -> None:
    """A PIN that is right, wrong, too long or no text, and whatever else the request says that is sent."""
    leaks = []
    flags = [field for field in UnsealRequest.__struct_fields__ if field != "configured"]
    requests = [UnsealRequest(), *(UnsealRequest(**{flag: True}) for flag in flags)]
    with asked.daemon.client() as client:
        client.seal()
        for request in requests:
            secrets = [asked.marks.make("a PIN") for _ in range(4)]
            for sent in (
                secrets[0].encode(),
                secrets[1].encode() + b"\xff",
                (secrets[2] * 100).encode(),
                " ".join([secrets[3]] * 33).encode() + b"\n" + " ".join(["academic"] * 33).encode(),
            ):
                leaks += asked.marks.leaks(f"the outcome of {request!r}", converse(client, request, sent))
        # The token counts wrong PINs, and its own is asked for then.
        unseal(client, asked.pin)

    assert leaks + asked.leaks() == []


def converse(client: Client, request: UnsealRequest, sent: bytes) -> str:
    """Send this over Unseal's descriptor; what the daemon says about it."""
    try:
        _, [descriptor] = client.call_with_descriptors(UNSEAL, request)
    except RecoveryUnavailableError as error:  # it takes no shares where there are none
        return repr(error)
    with socket.socket(fileno=descriptor) as channel:
        channel.send(sent)
        outcome = decode_outcome(channel.recv(MAX_DATAGRAM_BYTES))
    assert outcome.error is not None
    assert outcome.done is None
    return str(outcome)


def test_the_client_keeps_a_pin_to_itself(asked: Asked) -> None:
    """Its own errors about it, too."""
    shown = []
    with asked.daemon.client() as client:
        client.seal()
        for pin in (asked.marks.make("a PIN"), asked.marks.make("a PIN") * 100):
            with pytest.raises((TokenPinIncorrectError, ValidationError)) as refused:
                unseal(client, pin.encode())
            shown += texts_of(refused.value)

    assert [leak for text in shown for leak in asked.marks.leaks("the client", text)] + asked.leaks() == []


def test_the_search_finds_what_has_leaked(tmp_path: Path) -> None:
    """In each form, at each place in a text, whole or cut; else all of this would prove nothing."""
    marks = Marks()
    secret = marks.make("Encrypt: plaintext").encode()
    foreign = os.urandom(32)
    marks.add("Decrypt's Plaintext", foreign)
    for number, written in enumerate(
        [*forms(secret), *forms(foreign), secret[:22], foreign[:-1] + bytes([foreign[-1] ^ 1])]
    ):
        for shift in range(4):
            (tmp_path / f"{number}-{shift}").write_bytes(b"#" * shift + written + b"#")
    found = marks.leaks_below(tmp_path)
    whole = [leak for leak in found if "Encrypt: plaintext" in leak]

    assert len(whole) >= 4
    assert len({leak.partition(":")[0] for leak in found}) == len(list(tmp_path.iterdir())) - 4
    assert marks.leaks("a text", "nothing of it") == []


def test_a_leak_of_a_running_daemon_is_found(asked: Asked) -> None:
    """What may be logged is in the trail, and the same search finds it there."""
    marks = Marks()
    with asked.daemon.client() as client:
        client.encrypt(key_id=asked.key, plaintext=b"x", encryption_context={"name": marks.make("context")})

    [leak] = marks.leaks_below(asked.daemon.directory)
    assert leak.startswith("audit.log: context")
