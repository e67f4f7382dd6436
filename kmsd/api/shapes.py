"""Shapes that several operations share: limits, enumerations and structures of AWS KMS.

Every limit is AWS KMS's own (its service model, botocore 1.44.5) unless a comment says otherwise.
"""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kmsd.api.operation import KeyState, KeyUsage

# Text that belongs into no log, beside all bytes.
_HIDDEN_MEMBERS = frozenset({"grant_token", "grant_tokens"})


class Shape(msgspec.Struct, rename="pascal", frozen=True, kw_only=True, omit_defaults=True):
    """What all shapes have in common: their `repr` shows neither bytes (plaintext, ciphertext, keys) nor tokens.

    Programs log what they call with and what they get, and tracebacks with local variables do it for them.
    """

    def __repr__(self) -> str:
        members = ", ".join(f"{name}={_shown(name, getattr(self, name))!r}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({members})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # The base class has one of its own, which shows everything: rich prints tracebacks by it.
        return [(name, _shown(name, getattr(self, name))) for name in self.__struct_fields__]


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    return "hidden" if name in _HIDDEN_MEMBERS and value else value


class Request(Shape, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all request shapes: a member nobody declared is an error, never ignored."""


class Response(Shape, frozen=True, kw_only=True):
    """Base of all response shapes: an older client passes over members it does not know."""


class Structure(Shape, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of structures inside requests and responses."""


class Empty(Response, frozen=True, kw_only=True):
    """The response of an operation that answers nothing."""


class KeySpec(enum.StrEnum):
    """Kinds of keys this version makes; AWS KMS has more."""

    SYMMETRIC_DEFAULT = "SYMMETRIC_DEFAULT"


class KeyOrigin(enum.StrEnum):
    """Where key material comes from."""

    AWS_KMS = "AWS_KMS"  # made by this daemon; AWS's own word is kept so that AWS's tools understand it


class KeyManager(enum.StrEnum):
    """Who manages a key: the service itself or a person."""

    AWS = "AWS"
    CUSTOMER = "CUSTOMER"


class DataKeySpec(enum.StrEnum):
    """Named lengths of data keys."""

    AES_256 = "AES_256"
    AES_128 = "AES_128"


class EncryptionAlgorithm(enum.StrEnum):
    """Algorithms of Encrypt and Decrypt that this version offers."""

    SYMMETRIC_DEFAULT = "SYMMETRIC_DEFAULT"


KeyIdentifier = Annotated[str, Meta(min_length=1, max_length=2048, description="Key id, key ARN, alias or alias ARN.")]
AliasName = Annotated[str, Meta(min_length=1, max_length=256, description="Begins with alias/.")]
Plaintext = Annotated[memoryview, Meta(min_length=1, max_length=4096)]
CiphertextBlob = Annotated[bytes, Meta(min_length=1, max_length=6144)]
EncryptionContext = dict[str, str]
GrantTokens = Annotated[list[Annotated[str, Meta(min_length=1, max_length=8192)]], Meta(max_length=10)]
PolicyText = Annotated[str, Meta(min_length=1, max_length=131072, pattern="^[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+$")]
Description = Annotated[str, Meta(max_length=8192)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Marker = Annotated[str, Meta(min_length=1, max_length=1024)]
DataKeyBytes = Annotated[int, Meta(ge=1, le=1024)]
# AWS gives 1,024 bytes; kmsd's users want any length, so a request gives up to half a default frame and the command
# line and the library repeat it.
RandomBytes = Annotated[int, Meta(ge=1, le=32 * 1024)]
# A message header may have 64 KiB (DESIGN 10).
MAX_HEADER_BYTES = 64 * 1024
MessageHeaderBytes = Annotated[bytes, Meta(min_length=1, max_length=MAX_HEADER_BYTES)]
# Frames of 256 KiB to 4 MiB measure alike, 1 MiB is the default (DESIGN 10); below 4 KiB overhead dominates.
FrameLength = Annotated[int, Meta(ge=4 * 1024, le=4 * 1024 * 1024)]
DEFAULT_FRAME_LENGTH = 1024 * 1024


class Tag(Structure, frozen=True, kw_only=True):
    """A tag of a key."""

    tag_key: Annotated[str, Meta(min_length=1, max_length=128)]
    tag_value: Annotated[str, Meta(max_length=256)]


class KeyMetadata(Structure, frozen=True, kw_only=True):
    """What DescribeKey tells of a key."""

    account_id: str = msgspec.field(name="AWSAccountId")
    key_id: str
    arn: str
    creation_date: dt.datetime
    enabled: bool
    description: str
    key_usage: KeyUsage
    key_state: KeyState
    origin: KeyOrigin
    key_manager: KeyManager
    key_spec: KeySpec
    encryption_algorithms: list[EncryptionAlgorithm]
    multi_region: bool
    current_key_material_id: str
    deletion_date: dt.datetime | None = None
    pending_deletion_window_in_days: int | None = None


class KeyListEntry(Structure, frozen=True, kw_only=True):
    """A key in a list."""

    key_id: str
    key_arn: str


class AliasListEntry(Structure, frozen=True, kw_only=True):
    """An alias in a list."""

    alias_name: str
    alias_arn: str
    target_key_id: str
    creation_date: dt.datetime
    last_updated_date: dt.datetime
