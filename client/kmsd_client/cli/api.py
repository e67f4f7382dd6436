"""Call any operation by its AWS name; the options are the members of its declaration, the answer is JSON."""

from __future__ import annotations

import argparse
import base64
import binascii
import sys
from pathlib import Path
from typing import Any

import msgspec

from kmsd.api import BY_NAME
from kmsd.api.operation import Operation
from kmsd_client import Client
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, context_of, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line: one parser for each operation."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Values: bytes are base64, or @FILE (@- is standard input) for the content of a file; what is secret is only\n"
        "taken from a file. Maps are NAME=VALUE, repeated; lists and structures are JSON. Nothing is printed for an\n"
        "empty answer."
    )
    parser.set_defaults(json=True)
    verbs = parser.add_subparsers(required=True, metavar="OPERATION")
    for name, operation in sorted(BY_NAME.items()):
        if operation.descriptors:
            continue  # its answer is a conversation about a file: kms encrypt and kms decrypt
        verb = verbs.add_parser(name, help=operation.summary, description=operation.summary)
        for member in msgspec.inspect.type_info(operation.request).fields:  # type: ignore[attr-defined] # a struct's
            _add_member(verb, member)
        verb.set_defaults(run=run, operation=operation)


def _add_member(parser: argparse.ArgumentParser, member: msgspec.inspect.Field) -> None:
    kind = _kind(member.type)
    if kind is bool:
        parser.add_argument(_option(member.name), action="store_true", dest=member.name)
        return
    parser.add_argument(
        _option(member.name),
        dest=member.name,
        required=member.required,
        action="append" if kind is dict else "store",
        metavar={dict: "NAME=VALUE", int: "N", memoryview: "@FILE", bytes: "BASE64", list: "JSON"}.get(kind, "TEXT"),
        type=_READERS.get(kind, str),
    )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(declared: msgspec.inspect.Type) -> type:
    """Return the Python type that a member's value is read as."""
    if isinstance(declared, msgspec.inspect.Metadata):
        return _kind(declared.type)
    if isinstance(declared, msgspec.inspect.UnionType):
        return _kind(next(one for one in declared.types if not isinstance(one, msgspec.inspect.NoneType)))
    return {
        msgspec.inspect.IntType: int,
        msgspec.inspect.BoolType: bool,
        msgspec.inspect.BytesType: bytes,
        msgspec.inspect.MemoryViewType: memoryview,
        msgspec.inspect.DictType: dict,
        msgspec.inspect.ListType: list,
    }.get(type(declared), str)


def _read_bytes(text: str) -> bytes:
    if text.startswith("@"):
        return _read_file(text)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise argparse.ArgumentTypeError("neither base64 nor @FILE") from None


def _read_secret(text: str) -> memoryview:
    if not text.startswith("@"):
        raise argparse.ArgumentTypeError("a secret is taken from a file, @FILE or @-: everybody sees a command line")
    return memoryview(_read_file(text))


def _read_file(text: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text[1:]}: {error.strerror}") from None


def _read_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None


_READERS: dict[type, Any] = {int: int, bytes: _read_bytes, memoryview: _read_secret, list: _read_json}


def run(options: argparse.Namespace) -> None:
    """Call the operation and print what it answers."""
    operation: Operation[Any, Any] = options.operation
    options.key = getattr(options, operation.key or "key_id", None)  # as a refusal names it
    members = {
        field.name: context_of(value) if isinstance(value, list) and _is_map(field) else value
        for field in msgspec.structs.fields(operation.request)
        if (value := getattr(options, field.name)) not in (None, False)
    }
    with Client(options.socket) as client:
        response = client.call(operation, _request(operation, members))
    if msgspec.structs.fields(response):
        print_json(response)


def _is_map(field: msgspec.structs.FieldInfo) -> bool:
    return bool(field.type == dict[str, str])


def _request(operation: Operation[Any, Any], members: dict[str, Any]) -> msgspec.Struct:
    """Return the request; enumerations and structures are converted, and what does not fit is said."""
    fields = {field.name: field for field in msgspec.structs.fields(operation.request)}
    try:
        converted = {
            name: value if isinstance(value, memoryview | bytes) else msgspec.convert(value, fields[name].type)
            for name, value in members.items()
        }
    except msgspec.ValidationError as error:
        raise CommandError(str(error), f"kms api {operation.name} --help lists the members", code=EXIT_USAGE) from None
    request: msgspec.Struct = operation.request(**converted)
    return request


__all__ = ["add_arguments", "run"]
