"""Bodies of frames to messages and back.

The envelope is read by the msgpack package, member by member and without building containers; `params` and `result`
stay raw bytes until the operation's own typed decoder reads them. A generic tree of hostile input is never built: a
legal 1 MiB frame of nested arrays takes 213 ms in `msgpack.unpackb`, at most some 2 ms here.

Decode errors are raised anew outside their `except` blocks: the libraries' own exceptions carry the data, and
`__context__` would keep them alive even under `from None`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeGuard, TypeVar

import msgpack  # type: ignore[import-untyped] # ships no types
import msgspec

from kmsd.api.errors import KmsError, KMSInternalError, ProtocolError, ValidationError, error_from_wire
from kmsd.api.operation import DEFAULT_FRAME_BYTES, MAX_FRAME_BYTES
from kmsd.wire.framing import LENGTH_BYTES, seal_frame

# Requests of a connection are numbered from 1. An error under number 0 is about the connection itself.
CONNECTION_ID = 0
LARGEST_ID = 2**64 - 1

# Names of operations and of members; AWS's longest operation name has 35 characters.
_NAME_BYTES = 64

# Frames begin alike, so their beginnings are written at once: room for the length, the map and its first members. An
# id is always written as msgpack's uint 64, which any reader takes for the same number as a shorter form.
_REQUEST_HEAD = struct.Struct(f">{LENGTH_BYTES}x5sQ3s")
_RESULT_HEAD = struct.Struct(f">{LENGTH_BYTES}x5sQ7s")
_RESULT_FDS_HEAD = struct.Struct(f">{LENGTH_BYTES}x5sQ4sB7s")
_write = msgspec.msgpack.Encoder().encode_into

# An unpacker keeps a buffer of up to twice the longest frame it read. After a frame above this many bytes it is
# dropped, so that an idle connection does not keep megabytes; making another takes 0.4 us, far less than such a
# frame does.
_KEPT_BYTES = 16 * 1024

# An error's text may be long: where a policy is malformed, which statement decided.
_TEXT_BYTES = 32 * 1024

# What writing a Struct may raise (msgspec 0.22): a type or number msgpack cannot say, text that has no UTF-8 form.
_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)

# What msgspec says of a value without repeating it; other texts of it may carry the value.
_SAFE_PROBLEM = re.compile(
    r"Expected (`[\w .|-]+`(, got `[\w .|-]+`)?|`\w+` ((of length )?(<=|>=|<|>|==) -?[\d.]+))"
    r"|Object missing required field `\w+`|Object contains unknown field `\w{1,64}`",
    re.ASCII,
)
_PATH = re.compile(r"(`key` in )?`\$[\w.\[\]]*`", re.ASCII)

StructT = TypeVar("StructT", bound=msgspec.Struct)


class Request(NamedTuple):
    """A request whose `params` are not decoded yet; they are a view of its frame."""

    id: int
    op: str
    params: memoryview


class Reply(NamedTuple):
    """A reply; exactly one of `result` (raw), `error` and `progress` (done, total in the operation's unit) is given."""

    id: int
    result: memoryview | None
    error: KmsError | None
    descriptors: int
    progress: tuple[int, int | None] | None


def _unpacker(text_bytes: int) -> Any:
    """Return a reader of envelopes that takes no containers: expected ones are read by their headers."""
    return msgpack.Unpacker(
        read_size=_NAME_BYTES,
        max_buffer_size=2 * MAX_FRAME_BYTES,
        max_str_len=text_bytes,
        max_bin_len=0,
        max_ext_len=0,
        max_array_len=0,
        max_map_len=0,
    )


class RequestDecoder:
    """Decodes requests of any number of connections, one after the other."""

    def __init__(self) -> None:
        # Kept from frame to frame, as making one takes longer than decoding; after an error it is half way in a frame.
        self._unpacker = _unpacker(_NAME_BYTES)

    def decode(self, frame: memoryview) -> Request:
        """Return the request in a frame's body; its members may have any order.

        Raises ProtocolError when the body is no map of exactly `id`, `op` and `params`; what `params` holds is looked
        at by a ParamsDecoder only.
        """
        try:
            request = self._decode(frame)
        except (ValueError, msgpack.UnpackException):
            self._unpacker = _unpacker(_NAME_BYTES)
        else:
            if len(frame) > _KEPT_BYTES:
                self._unpacker = _unpacker(_NAME_BYTES)
            return request
        raise ProtocolError("a request must be one msgpack map of id (1 or more), op (a name) and params (a map)")

    def _decode(self, frame: memoryview) -> Request:
        unpacker = self._unpacker
        scalar, tell = unpacker.unpack, unpacker.tell
        request_id = op = params = None
        base = tell()
        unpacker.feed(frame)
        if unpacker.read_map_header() != len(Request._fields):
            raise ValueError
        for _ in Request._fields:
            name = scalar()
            if name == "id":
                request_id = scalar()
            elif name == "op":
                op = scalar()
            elif name == "params":
                start = tell() - base
                unpacker.skip()
                params = frame[start : tell() - base]
        # As many members as there are names: one that is unknown or comes twice leaves another one missing.
        if (
            type(request_id) is not int
            or request_id <= CONNECTION_ID
            or type(op) is not str
            or params is None
            or tell() - base != len(frame)
        ):
            raise ValueError
        return Request(request_id, op, params)


class ReplyDecoder:
    """Decodes the replies of one connection; passes over unknown members, so that newer daemons may add some."""

    def __init__(self) -> None:
        self._unpacker = _unpacker(_TEXT_BYTES)

    def decode(self, frame: memoryview) -> Reply:
        """Return the reply in a frame's body. Raises ProtocolError when it has not the form of one."""
        try:
            reply = self._decode(frame)
        except (ValueError, msgpack.UnpackException):
            self._unpacker = _unpacker(_TEXT_BYTES)
        else:
            if len(frame) > _KEPT_BYTES:
                self._unpacker = _unpacker(_TEXT_BYTES)
            return reply
        raise ProtocolError("a reply must be one msgpack map of id and one of result, error and progress")

    def _decode(self, frame: memoryview) -> Reply:
        unpacker = self._unpacker
        scalar, tell = unpacker.unpack, unpacker.tell
        reply_id = result = error = progress = None
        descriptors = 0
        base = tell()
        unpacker.feed(frame)
        for _ in range(unpacker.read_map_header()):
            name = scalar()
            if name == "id":
                reply_id = scalar()
            elif name == "result":
                start = tell() - base
                unpacker.skip()
                result = frame[start : tell() - base]
            elif name == "fds":
                descriptors = scalar()
            elif name == "error":
                error = _error(self._scalars("code", "message", "retryable", "request_id"))
            elif name == "progress":
                progress = _progress(self._scalars("done", "total"))
            else:
                unpacker.skip()
        kinds = (result is not None) + (error is not None) + (progress is not None)
        if not _is_unsigned(reply_id) or not _is_unsigned(descriptors) or kinds != 1 or tell() - base != len(frame):
            raise ValueError
        return Reply(reply_id, result, error, descriptors, progress)

    def _scalars(self, *names: str) -> dict[str, Any]:
        members: dict[str, Any] = dict.fromkeys(names)
        for _ in range(self._unpacker.read_map_header()):
            name = self._unpacker.unpack()
            if name in names:  # compares, where a dict would hash: an empty array gets this far
                members[name] = self._unpacker.unpack()
            else:
                self._unpacker.skip()
        return members


def _is_unsigned(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0  # a bool is an int, but not one's type


def _error(members: Mapping[str, Any]) -> KmsError:
    code, message, request_id = members["code"], members["message"], members["request_id"]
    if not (isinstance(code, str) and isinstance(message, str) and isinstance(request_id, str)):
        raise ValueError  # noqa: TRY004 - the decoder turns ValueError into ProtocolError
    return error_from_wire(code, message, retryable=members["retryable"] is True, request_id=request_id)


def _progress(members: Mapping[str, Any]) -> tuple[int, int | None]:
    done, total = members["done"], members["total"]
    if not _is_unsigned(done) or not (total is None or _is_unsigned(total)):
        raise ValueError
    return done, total


class ParamsDecoder(Generic[StructT]):
    """Decodes the params, or the result, of one operation; `max_bytes` is the longest it reads."""

    def __init__(self, shape: type[StructT], *, max_bytes: int = DEFAULT_FRAME_BYTES) -> None:
        self._decode = msgspec.msgpack.Decoder(shape).decode
        self._max_bytes = max_bytes

    def decode(self, params: memoryview) -> StructT:
        """Return the Struct; members typed `memoryview` refer to `params`.

        Raises ValidationError saying where and what is wrong, without the value.
        """
        if len(params) > self._max_bytes:
            raise ValidationError(f"the members have {len(params)} bytes; at most {self._max_bytes} are allowed")
        try:
            return self._decode(params)
        except UnicodeDecodeError:
            problem = "text that is not UTF-8"
        except msgspec.ValidationError as error:
            problem = _describe(str(error))
        except (msgspec.DecodeError, RecursionError):
            problem = "the members are not one well-formed msgpack map"
        raise ValidationError(problem)


def _describe(text: str) -> str:
    """Return msgspec's text if it holds nothing of the data, else as much of it as does not."""
    problem, separator, path = text.rpartition(" - at ")
    if not separator:
        problem, path = text, ""
    if not _SAFE_PROBLEM.fullmatch(problem):
        problem = "Invalid value"
    return f"{problem} - at {path}" if _PATH.fullmatch(path) else problem


def append_request(
    out: bytearray,
    id: int,  # noqa: A002 - the member's name
    op: str,
    params: msgspec.Struct,
    *,
    max_bytes: int = DEFAULT_FRAME_BYTES,
) -> None:
    """Append a request as a whole frame.

    Raises ValidationError, and leaves `out` as it was, when a member cannot be written or they exceed `max_bytes`.
    """
    start = len(out)
    out += _REQUEST_HEAD.pack(b"\x83\xa2id\xcf", id, b"\xa2op")
    out += msgspec.msgpack.encode(op)
    out += b"\xa6params"
    before = len(out)
    problem = _append_struct(out, params)
    if problem is None and len(out) - before > max_bytes:
        problem = f"the members have {len(out) - before} bytes; at most {max_bytes} are allowed"
    if problem is not None:
        del out[start:]
        raise ValidationError(problem)
    seal_frame(out, start)


class ReplyEncoder:
    """Appends replies as whole frames; when it raises, `out` is as it was."""

    def append_result(self, out: bytearray, id: int, result: msgspec.Struct, descriptors: int = 0) -> None:  # noqa: A002 - the member's name
        """Append a result with which `descriptors` come (0 to 127).

        Raises KMSInternalError when it cannot be written or is longer than any frame may be.
        """
        start = len(out)
        if descriptors:
            out += _RESULT_FDS_HEAD.pack(b"\x83\xa2id\xcf", id, b"\xa3fds", descriptors, b"\xa6result")
        else:
            out += _RESULT_HEAD.pack(b"\x82\xa2id\xcf", id, b"\xa6result")
        problem = _append_struct(out, result)
        if problem is None and len(out) - start - LENGTH_BYTES > MAX_FRAME_BYTES:
            problem = "the result is longer than a frame"
        if problem is not None:
            del out[start:]
            raise KMSInternalError(problem)
        seal_frame(out, start)

    def append_error(self, out: bytearray, id: int, error: KmsError) -> None:  # noqa: A002 - the member's name
        """Append an error; text that no frame could carry is cut."""
        members = {
            "code": error.code,
            "message": _sendable(error.message),
            "retryable": error.retryable,
            "request_id": error.request_id,
        }
        self._append(out, {"id": id, "error": members})

    def append_progress(self, out: bytearray, id: int, done: int, total: int | None) -> None:  # noqa: A002 - the member's name
        """Append a report of progress, which leaves the request in flight."""
        self._append(out, {"id": id, "progress": {"done": done, "total": total}})

    def _append(self, out: bytearray, reply: dict[str, Any]) -> None:
        start = len(out)
        out += bytes(LENGTH_BYTES)
        out += msgpack.packb(reply)
        seal_frame(out, start)


def _append_struct(out: bytearray, value: msgspec.Struct) -> str | None:
    """Write straight into `out`, as a copy in `bytes` could not be wiped; return what went wrong, without the value."""
    try:
        _write(value, out, -1)
    except _ENCODE_ERRORS as error:
        return f"a member cannot be sent ({type(error).__name__})"
    return None


def _sendable(text: str) -> str:
    encoded = text.encode(errors="replace")[:_TEXT_BYTES]
    return encoded.decode(errors="ignore")
