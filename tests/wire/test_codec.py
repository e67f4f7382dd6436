"""Bodies to messages and back, with msgpack's own package as the judge."""

import time
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack  # type: ignore[import-untyped] # ships no types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import (
    AccessDeniedError,
    KmsError,
    KMSInternalError,
    ProtocolError,
    SealedError,
    ThrottlingError,
    ValidationError,
)
from kmsd.api.files import DecryptFileRequest
from kmsd.api.operation import MAX_FRAME_BYTES
from kmsd.api.shapes import DataKeySpec, EncryptionAlgorithm, Request
from kmsd.api.symmetric import (
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    GenerateDataKeyRequest,
    GenerateRandomResponse,
)
from kmsd.wire.codec import (
    ParamsDecoder,
    ReplyDecoder,
    ReplyEncoder,
    RequestDecoder,
    append_request,
)

REQUEST = EncryptRequest(key_id="alias/a", plaintext=memoryview(b"secret"), encryption_context={"app": "db"})
RESPONSE = EncryptResponse(
    ciphertext_blob=b"blob", key_id="arn", encryption_algorithm=EncryptionAlgorithm.SYMMETRIC_DEFAULT
)

# msgpack that is legal and small, but large or deep once it is decoded
BOMBS = {
    "deep arrays": b"\x91" * (MAX_FRAME_BYTES - 100),
    "deep maps": b"\x81\xa0" * (MAX_FRAME_BYTES // 2 - 100),
    "a wide array of arrays": b"\xdd\x00\x0f\xff\x00" + b"\x90" * 0xFFF00,
    "an array that announces four billion": b"\xdd\xff\xff\xff\xff",
    "a map that announces four billion": b"\xdf\xff\xff\xff\xff",
    "text that announces four gigabytes": b"\xdb\xff\xff\xff\xff",
    "bytes that announce four gigabytes": b"\xc6\xff\xff\xff\xff",
}

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
ids = st.integers(1, 2**64 - 1)


def body(frames: bytearray) -> memoryview:
    """Return the body of the one frame in `frames`."""
    assert int.from_bytes(frames[:4], "big") == len(frames) - 4
    return memoryview(frames)[4:]


def packed(value: Any) -> memoryview:
    return memoryview(msgpack.packb(value))


@given(ids)
def test_a_request_comes_back_as_it_was_sent(identifier: int) -> None:
    """Id, operation and params survive, and params decode to the same Struct."""
    out = bytearray()
    append_request(out, identifier, "Encrypt", REQUEST)
    request = RequestDecoder().decode(body(out))

    assert (identifier, "Encrypt") == request[:2]
    assert ParamsDecoder(EncryptRequest).decode(request.params) == REQUEST


def test_a_request_is_what_the_protocol_says() -> None:
    """Another msgpack library sees the documented map, without members that are at their defaults."""
    out = bytearray()
    append_request(out, 7, "Encrypt", REQUEST)
    params = {"KeyId": "alias/a", "Plaintext": b"secret", "EncryptionContext": {"app": "db"}}

    assert {"id": 7, "op": "Encrypt", "params": params} == msgpack.unpackb(body(out))


@given(ids, values, st.permutations(["id", "op", "params"]))
def test_members_of_a_request_may_have_any_order(identifier: int, params: Any, order: list[str]) -> None:
    """And params is exactly the bytes that stood there."""
    members = {"id": identifier, "op": "Encrypt", "params": params}
    request = RequestDecoder().decode(packed({name: members[name] for name in order}))

    assert (identifier, "Encrypt", packed(params)) == request


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x80",
        packed([1, "Encrypt", {}]),
        packed({"id": 1, "op": "Encrypt"}),
        packed({"id": 1, "op": "Encrypt", "params": {}, "more": 1}),
        packed({"id": 1, "op": "Encrypt", "parms": {}}),
        packed({"id": 0, "op": "Encrypt", "params": {}}),
        packed({"id": -1, "op": "Encrypt", "params": {}}),
        packed({"id": True, "op": "Encrypt", "params": {}}),
        packed({"id": 1.0, "op": "Encrypt", "params": {}}),
        packed({"id": None, "op": "Encrypt", "params": {}}),
        packed({"id": 1, "op": b"Encrypt", "params": {}}),
        packed({"id": 1, "op": ["Encrypt"], "params": {}}),
        packed({"id": 1, "op": "E" * 65, "params": {}}),
        packed({b"id": 1, "op": "Encrypt", "params": {}}),
        b"\x83\xa2id\x01\xa2id\x02\xa6params\x80",
        b"\x83\xa2id\x01\xa2op\xa2\xff\xff\xa6params\x80",
        b"\x83\x90\x01\xa2op\xa1E\xa6params\x80",
        b"\x83\xa2id\x01\xa2op\xa1E\xa6params",
        bytes(packed({"id": 1, "op": "Encrypt", "params": {}})) + b"\xc0",
    ],
)
def test_a_request_of_another_form_is_refused(frame: bytes) -> None:
    """With a ProtocolError that drags no data along, after which the decoder still works."""
    decoder = RequestDecoder()
    with pytest.raises(ProtocolError) as refusal:
        decoder.decode(memoryview(frame))

    assert refusal.value.__context__ is None
    assert decoder.decode(packed({"id": 1, "op": "Encrypt", "params": {}})).id == 1


@given(st.binary(max_size=200) | values.map(msgpack.packb))
def test_any_body_gives_a_request_a_reply_or_a_protocol_error(frame: bytes) -> None:
    """Arbitrary bytes and arbitrary msgpack raise nothing else."""
    for decoder in (RequestDecoder(), ReplyDecoder()):
        with suppress(ProtocolError):
            decoder.decode(memoryview(frame))


@given(
    st.dictionaries(
        st.sampled_from(["id", "result", "error", "progress", "fds", "else"]),
        values | st.dictionaries(st.sampled_from(["code", "message", "retryable", "request_id", "done"]), scalars),
    )
)
def test_any_map_in_place_of_a_reply_gives_one_or_a_protocol_error(members: dict[str, Any]) -> None:
    """Members of the right names with anything in them raise nothing else."""
    try:
        reply = ReplyDecoder().decode(packed(members))
    except ProtocolError:
        return
    assert reply.id >= 0
    assert sum(part is not None for part in (reply.result, reply.error, reply.progress)) == 1


@given(values)
def test_any_params_give_a_struct_or_a_validation_error(params: Any) -> None:
    """Whatever well-formed msgpack stands there."""
    with suppress(ValidationError):
        ParamsDecoder(EncryptRequest).decode(packed(params))


@given(st.binary(max_size=100))
def test_any_bytes_as_params_give_a_struct_or_a_validation_error(params: bytes) -> None:
    """Bytes that are no msgpack at all are told like wrong members."""
    with suppress(ValidationError):
        ParamsDecoder(GenerateDataKeyRequest).decode(memoryview(params))


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize(
    "head", [b"", b"\x83", b"\x83\xa2id", b"\x83\xa2op", b"\x83\xa6params"], ids=["body", "name", "id", "op", "params"]
)
def test_a_bomb_is_refused_quickly_wherever_it_stands(bomb: bytes, head: bytes) -> None:
    """No frame builds containers: 1 MiB is done with in a few milliseconds (50 allow for a busy machine)."""
    started = time.perf_counter()
    with pytest.raises(ProtocolError):
        RequestDecoder().decode(memoryview(head + bomb))

    assert time.perf_counter() - started < 0.05


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("head", [b"", b"\x81\xa5KeyId", b"\x81\xb1EncryptionContext", b"\x81\xa4Else"])
def test_a_bomb_in_params_is_refused_quickly(bomb: bytes, head: bytes) -> None:
    """The typed decoder stops at the first value of another type."""
    started = time.perf_counter()
    with pytest.raises(ValidationError):
        ParamsDecoder(EncryptRequest, max_bytes=2 * MAX_FRAME_BYTES).decode(memoryview(head + bomb))

    assert time.perf_counter() - started < 0.05


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"Plaintext": b"a"}, "Object missing required field `KeyId`"),
        ({"KeyId": 1, "Plaintext": b"a"}, "Expected `str`, got `int` - at `$.KeyId`"),
        ({"KeyId": "a", "Plaintext": b""}, "Expected `bytes` of length >= 1 - at `$.Plaintext`"),
        (
            {"KeyId": "a", "Plaintext": b"a", "EncryptionContext": {"s3cret": 1}},
            "Expected `str`, got `int` - at `$.EncryptionContext[...]`",
        ),
        ({"KeyId": "a", "Plaintext": b"a", "Keyid": 1}, "Object contains unknown field `Keyid`"),
        ({"KeyId": "a", "Plaintext": b"a", "s3cret and more": 1}, "Invalid value"),
        (
            {"KeyId": "a", "Plaintext": b"a", "EncryptionAlgorithm": "s3cret"},
            "Invalid value - at `$.EncryptionAlgorithm`",
        ),
        (
            {"KeyId": "a", "Plaintext": b"a", "EncryptionAlgorithm": "x' - at `$.s3cret`"},
            "Invalid value - at `$.EncryptionAlgorithm`",
        ),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_what_is_wrong_with_params_is_told_without_the_value(params: Any, message: str) -> None:
    """A value may be a secret that was put into the wrong member."""
    with pytest.raises(ValidationError) as refusal:
        ParamsDecoder(EncryptRequest).decode(packed(params))

    assert message == refusal.value.message
    assert refusal.value.__context__ is None


def test_params_that_are_too_long_are_refused_unread() -> None:
    """A frame may be as long as the largest operation's; what each takes is checked before decoding."""
    with pytest.raises(ValidationError, match="65537 bytes; at most 65536"):
        ParamsDecoder(EncryptRequest).decode(memoryview(bytes(65537)))


def test_bytes_of_params_are_not_copied() -> None:
    """A plaintext stays where it was received."""
    out = bytearray()
    append_request(out, 1, "Encrypt", REQUEST)
    plaintext = ParamsDecoder(EncryptRequest).decode(RequestDecoder().decode(body(out)).params).plaintext
    assert isinstance(plaintext, memoryview)
    out[out.index(b"secret")] = ord("S")

    assert bytes(plaintext) == b"Secret"


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (GenerateDataKeyRequest(key_id="\ud800"), "UnicodeEncodeError"),
        (GenerateDataKeyRequest(key_id="a", number_of_bytes=2**70), "OverflowError"),
        (GenerateDataKeyRequest(key_id="a", key_spec=object()), "TypeError"),  # type: ignore[arg-type] # that is the point
        (DecryptFileRequest(header=bytes(70_000)), "at most 65536"),
    ],
)
def test_a_request_that_cannot_be_sent_leaves_nothing_behind(request_: Request, problem: str) -> None:
    """What was queued before it is untouched."""
    out = bytearray(b"queued")
    with pytest.raises(ValidationError, match=problem):
        append_request(out, 1, "GenerateDataKey", request_)

    assert out == b"queued"


@given(ids, st.integers(0, 127))
def test_a_result_comes_back_as_it_was_sent(identifier: int, descriptors: int) -> None:
    """With the number of descriptors that come with it."""
    out = bytearray()
    ReplyEncoder().append_result(out, identifier, RESPONSE, descriptors)
    reply = ReplyDecoder().decode(body(out))
    assert reply.result is not None

    assert (identifier, None, descriptors, None) == (reply.id, reply.error, reply.descriptors, reply.progress)
    assert ParamsDecoder(EncryptResponse).decode(reply.result) == RESPONSE


def test_a_result_is_what_the_protocol_says() -> None:
    """Another msgpack library sees the documented maps."""
    result = {"CiphertextBlob": b"blob", "KeyId": "arn", "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
    plain, carrying = bytearray(), bytearray()
    ReplyEncoder().append_result(plain, 7, RESPONSE)
    ReplyEncoder().append_result(carrying, 7, RESPONSE, 1)

    assert {"id": 7, "result": result} == msgpack.unpackb(body(plain))
    assert {"id": 7, "fds": 1, "result": result} == msgpack.unpackb(body(carrying))


@pytest.mark.parametrize(
    "response",
    [
        GenerateRandomResponse(plaintext=memoryview(bytes(MAX_FRAME_BYTES))),
        DecryptResponse(
            key_id="\ud800",
            plaintext=memoryview(b""),
            encryption_algorithm=EncryptionAlgorithm.SYMMETRIC_DEFAULT,
            key_material_id="",
        ),
    ],
)
def test_a_result_that_cannot_be_sent_leaves_nothing_behind(response: Any) -> None:
    """The daemon can answer with an error instead."""
    out = bytearray(b"queued")
    with pytest.raises(KMSInternalError):
        ReplyEncoder().append_result(out, 1, response)

    assert out == b"queued"


@pytest.mark.parametrize("error", [AccessDeniedError("no"), SealedError("später"), ThrottlingError()])
def test_an_error_comes_back_as_it_was_sent(error: KmsError) -> None:
    """With its class, text, request id and whether to ask again."""
    error.request_id = "0b5a"
    out = bytearray()
    ReplyEncoder().append_error(out, 9, error)
    reply = ReplyDecoder().decode(body(out))
    assert reply.error is not None

    assert type(error) is type(reply.error)
    assert (error.message, "0b5a", error.retryable) == (
        reply.error.message,
        reply.error.request_id,
        reply.error.retryable,
    )


@given(st.text(alphabet=st.characters(), max_size=50), st.integers(1, 3000))
def test_any_text_of_an_error_can_be_sent(text: str, times: int) -> None:
    """Text without a UTF-8 form or of any length never stops an error from being told."""
    out = bytearray()
    ReplyEncoder().append_error(out, 9, ValidationError(text * times))

    assert ReplyDecoder().decode(body(out)).error is not None


@given(st.integers(0, 2**63), st.none() | st.integers(0, 2**63))
def test_progress_comes_back_as_it_was_sent(done: int, total: int | None) -> None:
    """Also when the total is not known."""
    out = bytearray()
    ReplyEncoder().append_progress(out, 3, done, total)

    assert (3, None, None, 0, (done, total)) == ReplyDecoder().decode(body(out))


def test_a_reply_may_have_members_that_the_client_does_not_know() -> None:
    """So that newer daemons may say more."""
    error = {"code": "DisabledException", "message": "m", "retryable": False, "request_id": "", "hint": [1, {"a": 2}]}
    reply = ReplyDecoder().decode(packed({"warning": {"a": [1]}, "id": 1, "error": error}))

    assert (reply.error and reply.error.code) == "DisabledException"


def test_decoders_keep_no_memory_of_a_large_frame() -> None:
    """A connection has one each, and may be idle for long."""
    frame = memoryview(packed({"id": 1, "op": "Encrypt", "params": {"a": bytes(MAX_FRAME_BYTES - 100)}}))
    reply = memoryview(packed({"id": 1, "result": {"a": bytes(MAX_FRAME_BYTES - 100)}}))
    tracemalloc.start()
    try:
        requests, replies = RequestDecoder(), ReplyDecoder()
        before, _ = tracemalloc.get_traced_memory()
        requests.decode(frame)
        replies.decode(reply)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 32 * 1024


def test_enumerations_are_read_into_their_members() -> None:
    """Requests hold enumeration members, not text."""
    params = packed({"KeyId": "a", "KeySpec": "AES_256"})

    assert DataKeySpec.AES_256 is ParamsDecoder(GenerateDataKeyRequest).decode(params).key_spec
