"""What the declaration of an operation says, and the enumerations it is said in.

Each operation is declared once, as an `Operation`; decoding, dispatch, authorization, audit, limits, the generated
client, `kms api` and the reference documentation all read that one declaration.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

RequestT = TypeVar("RequestT", bound=msgspec.Struct)
ResponseT = TypeVar("ResponseT", bound=msgspec.Struct)

# A frame's body unless its operation says more, and the most any operation may say (DESIGN 4).
DEFAULT_FRAME_BYTES = 64 * 1024
MAX_FRAME_BYTES = 1024 * 1024


class KeyState(enum.StrEnum):
    """States of a key, as AWS KMS names them."""

    CREATING = "Creating"
    ENABLED = "Enabled"
    DISABLED = "Disabled"
    PENDING_DELETION = "PendingDeletion"
    PENDING_IMPORT = "PendingImport"
    UNAVAILABLE = "Unavailable"
    UPDATING = "Updating"


class KeyUsage(enum.StrEnum):
    """What a key is for, as AWS KMS names it."""

    SIGN_VERIFY = "SIGN_VERIFY"
    ENCRYPT_DECRYPT = "ENCRYPT_DECRYPT"
    GENERATE_VERIFY_MAC = "GENERATE_VERIFY_MAC"
    KEY_AGREEMENT = "KEY_AGREEMENT"
    ENCAPSULATE_DECAPSULATE = "ENCAPSULATE_DECAPSULATE"


class Cost(enum.Enum):
    """What serving a request takes, which decides how its handler is called."""

    CRYPTOGRAPHY = "cryptography"  # a plain function on the event loop that never awaits
    STORE = "store"  # reads or writes records: awaits the store's thread
    FILE = "file"  # hands work to a file worker
    TOKEN = "token"  # waits for the HSM  # noqa: S105 - the PKCS#11 word, not a password
    STATUS = "status"  # looks at memory only, and works while sealed


class KeyAccess(enum.Enum):
    """How a request names the key it acts on."""

    NONE = "none"  # acts on no key: the host policy decides
    ID_OR_ARN = "id"  # key id or key ARN
    ANY = "any"  # key id, key ARN, alias name or alias ARN


ALL_STATES = tuple(KeyState)


def action_of(name: str) -> str:
    """Return the IAM-style action that permits the operation `name`."""
    return f"kms:{name}"


def member_name(attribute: str) -> str:
    """Return the wire name of a member: `key_id` -> `KeyId`, as msgspec's `rename="pascal"` makes it."""
    return "".join(part.title() for part in attribute.split("_"))


def attribute_name(member: str) -> str:
    """Return the attribute of a wire name: `KeyId` -> `key_id`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", member).lower()


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[RequestT, ResponseT]):
    """The one declaration of an operation.

    `key` names the request member that identifies the key it acts on, or is None. An operation whose key is found in
    another way (in a ciphertext blob, or that acts on two keys) says `resolves_keys=False`: its handler then resolves
    and authorizes them itself through the pipeline. `usable_in` and `usage` are checked after authorization.
    `audit_fields` are the only request members that may be logged, `audit_response` the only response members.
    `actions` are the IAM-style actions that permit it: one, `kms:NAME`, unless AWS has it otherwise.
    `frame_bytes` bounds the request's members and `reply_bytes` the reply's frame.
    `descriptors` is how many descriptors come with the reply. `works_sealed` operations need no keys.
    """

    name: str
    summary: str
    request: type[RequestT]
    response: type[ResponseT]
    cost: Cost
    audit_fields: tuple[str, ...]
    audit_response: tuple[str, ...] = ()
    key: str | None = None
    key_access: KeyAccess = KeyAccess.NONE
    resolves_keys: bool = True
    usable_in: tuple[KeyState, ...] = ALL_STATES
    usage: KeyUsage | None = None
    read_only: bool = True
    descriptors: int = 0
    works_sealed: bool = False
    frame_bytes: int = DEFAULT_FRAME_BYTES
    reply_bytes: int = DEFAULT_FRAME_BYTES
    actions: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.actions:
            object.__setattr__(self, "actions", (action_of(self.name),))
        members = {f.name for f in msgspec.structs.fields(self.request)}
        unknown = set(self.audit_fields) - members
        if unknown or (self.key is not None and self.key not in members):
            raise TypeError(f"{self.name}: declares members its request does not have: {sorted(unknown) or self.key}")
        if max(self.frame_bytes, self.reply_bytes) > MAX_FRAME_BYTES:
            raise TypeError(f"{self.name}: frames may have at most {MAX_FRAME_BYTES} bytes")

    @property
    def action(self) -> str:
        """The action that permits the operation."""
        return self.actions[0]
