"""What the daemon and a token job say to each other.

A job gets descriptors: first one end of a SOCK_SEQPACKET socketpair, then pages of secret memory. The daemon sends one
request and the job one reply, each a datagram of JSON. The PIN and keys are never in a datagram: the PIN lies in the
first page (length in two bytes, big-endian, then UTF-8), each domain key at the start of a page of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kmsd.hsm.root import RootError, TokenCrashedError, TokenInfo, WrappedDomainKey

# The largest request names KEYS_IN_A_JOB records of some 300 bytes and the configuration; the largest reply lists a
# token's mechanisms (SoftHSM 2.6: 2 KiB; PKCS#11 3.1 names some 400). The kernel takes 200 KiB in one datagram
# (net.core.wmem_default).
MAX_DATAGRAM_BYTES = 64 * 1024
# Each key needs a page, a page is a descriptor, and a child of the zygote gets at most 16: the channel, the PIN and
# these. Domain keys are made by rotation, so that a second job, with a second login, is for very old stores only.
KEYS_IN_A_JOB = 14
PIN_LENGTH_BYTES = 2


@dataclass(frozen=True)
class TokenConfig:
    """Which token and which key in it.

    `module` is the path of the vendor's PKCS#11 library; `environment` holds variables that this library reads, set in
    the job's process only.
    """

    module: str
    token_label: str
    root_key_label: str
    environment: tuple[tuple[str, str], ...] = ()


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Describe the token. No pages."""

    config: TokenConfig


class MakeDomainKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Make a domain key and wrap it. Pages: PIN, key. `attended`: somebody typed that PIN just now."""

    config: TokenConfig
    attended: bool
    domain_key_id: str
    generation: int


class Unwrap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Unwrap domain keys, and read the anchor of the store that `anchor` names. Pages: PIN, then one for each record.

    `attended` as above.
    """

    config: TokenConfig
    attended: bool
    records: tuple[WrappedDomainKey, ...]
    anchor: str | None = None


class KeepAnchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Write the anchor of a store. Pages: PIN. `attended` as above."""

    config: TokenConfig
    attended: bool
    store_id: str
    sequence: int


class WrapDomainKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Wrap a domain key that another token, or the recovery key, has given. Pages: PIN, key. `attended` as above."""

    config: TokenConfig
    attended: bool
    domain_key_id: str
    generation: int


class MakeToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Make a SoftHSM token with a root key. Pages: PIN."""

    config: TokenConfig


class MakeRootKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Make the root key in a token that is set up, unless it is there. Pages: PIN."""

    config: TokenConfig


class Looked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The answer to `Look`."""

    info: TokenInfo


class Wrapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The answer to `MakeDomainKey` and `WrapDomainKey`; the key itself is in its page."""

    wrapped: bytes
    info: TokenInfo


class Unwrapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The answer to `Unwrap`; the keys are in their pages. `anchor` is None when there is none."""

    info: TokenInfo
    anchor: int | None


class AnchorKept(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The answer to `KeepAnchor`: whether the token holds that number now, or a higher one."""

    kept: bool


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The answer to `MakeToken`."""


class RootKeyReady(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The answer to `MakeRootKey`: whether the key was `made` or was there; it works."""

    made: bool


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The answer to everything that failed: the name of a `RootError` and its message."""

    error: str
    message: str

    @classmethod
    def of(cls, error: RootError) -> Failed:
        """Return the reply that reports `error`."""
        return cls(type(error).__name__, str(error))

    def to_error(self) -> RootError:
        """Return the error that the job reported."""
        return ERRORS.get(self.error, TokenCrashedError)(self.message)


Request = Look | MakeDomainKey | Unwrap | WrapDomainKey | KeepAnchor | MakeToken | MakeRootKey
Reply = Looked | Wrapped | Unwrapped | AnchorKept | Done | RootKeyReady | Failed

ERRORS: dict[str, type[RootError]] = {error.__name__: error for error in RootError.__subclasses__()}
