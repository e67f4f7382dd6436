"""The table of operations: each declaration with its handler and with what the hot path needs at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec

from kmsd.access.document import MAX_BYTES as MAX_POLICY_BYTES
from kmsd.api.encryption_context import check_size
from kmsd.api.errors import LimitExceededError
from kmsd.api.operation import Cost, Operation, member_name
from kmsd.metrics.meter import Meter, Tally
from kmsd.wire.codec import ParamsDecoder

# What a module's table HANDLERS holds for each operation: a function of the serving object, the call, the request, and
# the key if the declaration names one.
Handler: TypeAlias = Callable[..., Any]


def bind(handlers: Mapping[Operation[Any, Any], Handler], service: object) -> dict[Operation[Any, Any], Handler]:
    """Return the handlers of a module's table as methods of the object that serves them."""
    return {operation: partial(handler, service) for operation, handler in handlers.items()}


class WithDescriptors(msgspec.Struct, frozen=True):
    """A response that descriptors come with; the pipeline's caller sends and then closes them."""

    response: msgspec.Struct
    descriptors: list[int]


class Entry:
    """An operation with everything the hot path needs at hand; `tally` counts what comes of its requests."""

    __slots__ = (
        "contexts",
        "decode",
        "elements",
        "fields",
        "handler",
        "has_tokens",
        "operation",
        "synchronous",
        "tally",
    )

    def __init__(self, operation: Operation[Any, Any], handler: Handler, tally: Tally) -> None:
        self.operation = operation
        self.handler = handler
        self.tally = tally
        self.decode = ParamsDecoder(operation.request, max_bytes=operation.frame_bytes).decode
        self.synchronous = operation.cost is Cost.CRYPTOGRAPHY
        self.contexts = tuple(
            name for name in operation.request.__struct_fields__ if name.endswith("encryption_context")
        )
        self.has_tokens = "grant_tokens" in operation.request.__struct_fields__
        self.fields = tuple((_json_name(member_name(attribute)), attribute) for attribute in operation.audit_fields)
        self.elements = tuple((_json_name(member_name(attribute)), attribute) for attribute in operation.audit_response)

    def check_sizes(self, request: msgspec.Struct) -> None:
        """Raise ValidationError or LimitExceededError for members too large to be recorded with a refusal."""
        for name in self.contexts:
            check_size(getattr(request, name))
        policy = getattr(request, "policy", None)
        if policy is not None and len(policy.encode()) > MAX_POLICY_BYTES:
            raise LimitExceededError(f"a key policy may have {MAX_POLICY_BYTES} bytes")

    def parameters(self, request: msgspec.Struct | None) -> dict[str, Any] | None:
        """Return the request's members that may be logged."""
        return _chosen(request, self.fields)

    def response_elements(self, response: msgspec.Struct | None) -> dict[str, Any] | None:
        """Return the response's members that may be logged."""
        return _chosen(response, self.elements)


# Values that JSON takes as they are; a tuple, because `str | dict` would be made anew for each request.
_PLAIN = (str, dict)


def _json_name(member: str) -> str:
    """Return a member's name in the trail: `KeyId` -> `keyId`, but `AWSAccountId` stays, as in CloudTrail."""
    return member if member[1:2].isupper() else member[:1].lower() + member[1:]


def _json_value(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        members = msgspec.structs.fields(value)
        return {_json_name(member.encode_name): _json_value(getattr(value, member.name)) for member in members}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return msgspec.to_builtins(value)


def _chosen(struct: msgspec.Struct | None, fields: tuple[tuple[str, str], ...]) -> dict[str, Any] | None:
    if struct is None:
        return None
    chosen = {}
    for name, attribute in fields:
        value = getattr(struct, attribute)
        if not value and value != 0:
            continue
        chosen[name] = value if isinstance(value, _PLAIN) else _json_value(value)
    return chosen or None


def make_table(
    operations: Sequence[Operation[Any, Any]], handlers: Mapping[Operation[Any, Any], Handler], meter: Meter
) -> dict[str, Entry]:
    """Return the table by operation name; `meter` counts requests by operation.

    Raises TypeError, so that nothing starts, when an operation has no handler or a handler no operation.
    """
    missing = {operation.name for operation in set(operations) ^ set(handlers)}
    if missing:
        raise TypeError(f"operations without a handler, or handlers without an operation: {sorted(missing)}")
    return {operation.name: Entry(operation, handlers[operation], meter.of(operation.name)) for operation in operations}
