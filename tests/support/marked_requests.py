"""Requests of every operation with marks where secrets are, made from the declarations: a new operation has them, too.

A member is sensitive that is not declared as one that may be logged; bytes always are. Three texts of the caller's own
are told by design, so no mark stands for a secret in them: encryption contexts (kmsd/audit/FORMAT.md), the name of an
operation that nobody declared, and the name of a member that nobody declared if it has the form of one.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from kmsd.api.errors import ValidationError
from kmsd.api.operation import Operation
from kmsd.service.grant_tokens import NONCE_BYTES, make_token
from kmsd.wire.codec import ParamsDecoder
from tests.support.marks import Marks

# A frame of the daemon's largest operation takes it.
_LONGEST = 140_000
# Values of members that take not every text.
_TEXTS = {
    "actions": "kms:Encrypt",
    "grantee_principal": "uid:1",
    "retiring_principal": "uid:1",
    "alias_name": "alias/name",
    "policy_name": "default",
    "principals": "uid:0",
    "name": "name",
    "request_id": "00000000",
    "unit": "app.service",
}
_TOKENS = {"grant_token", "grant_tokens"}
_BYTES = (inspect.BytesType, inspect.ByteArrayType, inspect.MemoryViewType)


class MarkedRequests:
    """The requests of one operation; `key` is the ARN of a key.

    `outputs` are bytes that earlier replies had, by the names of their members: what one operation makes another takes.
    """

    def __init__(self, operation: Operation[Any, Any], marks: Marks, key: str, outputs: Mapping[str, bytes]) -> None:
        self._operation = operation
        self._marks = marks
        self._key = key
        self._outputs = outputs
        self._decode = ParamsDecoder(operation.request, max_bytes=operation.frame_bytes).decode
        self._fields = inspect.type_info(operation.request).fields  # type: ignore[attr-defined] # a struct's

    def well_formed(self) -> Iterator[dict[str, Any]]:
        """Members of the declared types: with all that is sensitive, also with the outputs; and without what can be."""
        yield self._members(lambda field: self._is_sensitive(field) or field.required, {})
        yield self._members(lambda field: self._is_sensitive(field) or field.required, self._outputs)
        yield self._members(lambda field: field.required, self._outputs)

    def malformed(self) -> Iterator[Any]:
        """Params that are not as declared: a member of a wrong type, too long or unknown; no members at all."""
        right = self._members(lambda field: field.required, self._outputs)
        for field in self._fields:
            for value in (*self._wrong_values(field), *self._long_values(field)):
                params = {**right, field.encode_name: value}
                if self._is_sensitive(field) or not self._accepts(params):
                    yield params
        yield {**right, "Unknown": self._mark("unknown member")}
        mark = self._mark("params")
        yield from (mark, mark.encode(), [mark])
        numbered: dict[Any, Any] = {1: mark}
        yield numbered
        # Names that nobody declared are told if they are short words.
        yield {**right, mark + "x" * 64: mark}
        yield {**right, mark + "-": mark}

    def broken_frames(self) -> Iterator[bytes]:
        """Bodies of frames that hold no request."""
        mark = self._mark("frame")
        params = self._members(lambda field: self._is_sensitive(field) or field.required, {})
        whole = msgspec.msgpack.encode({"id": 1, "op": self._operation.name, "params": {**params, "Unknown": mark}})
        yield whole[:-1]
        yield whole + mark.encode()
        yield msgspec.msgpack.encode({"id": mark, "op": self._operation.name, "params": {}})
        yield msgspec.msgpack.encode({"id": 1, "op": self._operation.name, "params": {}, mark: mark})
        yield mark.encode()

    def _mark(self, what: str) -> str:
        return self._marks.make(f"{self._operation.name}: {what}")

    def _is_sensitive(self, field: inspect.Field) -> bool:
        return field.name not in self._operation.audit_fields or _holds_bytes(field.type)

    def _accepts(self, params: Any) -> bool:
        try:
            self._decode(memoryview(msgspec.msgpack.encode(params)))
        except ValidationError:
            return False
        return True

    def _members(self, wanted: Any, outputs: Mapping[str, bytes]) -> dict[str, Any]:
        members = {}
        for field in self._fields:
            if not wanted(field):
                continue
            if field.name in outputs:
                members[field.encode_name] = outputs[field.name]
            elif self._is_sensitive(field):
                members[field.encode_name] = self._value(field.type, field.name, marked=True)
            else:
                members[field.encode_name] = self._value(field.type, field.name, marked=False)
        return members

    def _value(self, declared: inspect.Type, name: str, *, marked: bool) -> Any:
        """A value of the declared type, with a mark wherever there is room for one."""
        match declared:
            case inspect.Metadata(type=inner) | inspect.UnionType(types=(inner, *_)):
                return self._value(inner, name, marked=marked)
            case inspect.DictType(key_type=key, value_type=value):
                return {self._value(key, name, marked=marked): self._value(value, name, marked=marked)}
            case inspect.ListType(item_type=item):
                return [self._value(item, name, marked=marked)]
            case inspect.StructType(fields=fields):
                return {field.encode_name: self._value(field.type, field.name, marked=marked) for field in fields}
        return self._scalar(declared, name, marked=marked)

    def _scalar(self, declared: inspect.Type, name: str, *, marked: bool) -> Any:
        match declared:
            case inspect.BytesType() | inspect.ByteArrayType() | inspect.MemoryViewType():
                return _fitting(self._mark(name), declared).encode()
            case inspect.StrType() if marked and name in _TOKENS:
                # Any other text is refused before anything else is looked at.
                token = make_token(secrets.token_hex(32), secrets.token_bytes(NONCE_BYTES))
                self._marks.add(f"{self._operation.name}: {name} {token}", token.encode())
                return token
            case inspect.StrType() if marked:
                return _fitting(self._mark(name), declared)
            case inspect.StrType():
                return self._key if name.endswith("key_id") else _TEXTS.get(name, "text")
            case inspect.IntType():
                return declared.ge or 1
            case inspect.BoolType():
                return False
            case inspect.EnumType(cls=members):
                return next(iter(members)).value
            case inspect.DateTimeType():
                return dt.datetime.now(dt.UTC)
        raise NotImplementedError(f"{self._operation.name} has a member of a type without marks: {declared}")

    def _wrong_values(self, field: inspect.Field) -> Iterator[Any]:
        mark = self._mark(f"{field.name} of a wrong type")
        yield from (mark, mark.encode(), [mark], [{f"{mark}-": mark}], {f"{mark}-": mark}, {1: mark})
        # Where members are declared, this is the name of one that nobody declared.
        named = f"{mark}-" if any(isinstance(part, inspect.StructType) for part in _parts(field.type)) else mark
        yield {named: [mark]}
        yield msgspec.msgpack.Ext(7, mark.encode())

    def _long_values(self, field: inspect.Field) -> Iterator[Any]:
        for declared in _parts(field.type):
            longest = getattr(declared, "max_length", None)
            if isinstance(declared, inspect.DictType) or longest is None or longest >= _LONGEST:
                continue
            mark = self._mark(f"{field.name}, too long")
            if isinstance(declared, inspect.ListType):
                yield [mark] * (longest + 1)
                continue
            text = (mark * (longest // len(mark) + 1))[: longest + 1]
            value = text.encode() if isinstance(declared, _BYTES) else text
            yield from (value, [value])


def _parts(declared: inspect.Type) -> Iterator[inspect.Type]:
    """A type, and what it is made of."""
    yield declared
    match declared:
        case inspect.Metadata(type=inner) | inspect.ListType(item_type=inner):
            yield from _parts(inner)
        case inspect.UnionType(types=inners):
            for one in inners:
                yield from _parts(one)
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from _parts(field.type)
        case inspect.DictType(key_type=key, value_type=value):
            yield from _parts(key)
            yield from _parts(value)


def _holds_bytes(declared: inspect.Type) -> bool:
    return any(isinstance(part, _BYTES) for part in _parts(declared))


def _fitting(mark: str, declared: Any) -> str:
    """A mark as long as is allowed."""
    repeated = mark * ((declared.min_length or 0) // len(mark) + 1)
    return repeated[: declared.max_length]
