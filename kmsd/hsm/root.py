"""What kmsd needs from the root of trust, and how that can fail.

The root key never leaves its token. It does one thing: it wraps domain keys. Whoever implements `Root` keeps no domain
key; it hands them over into secret memory that the caller owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kmsd.metrics.meter import Meter

# AES-256 (DESIGN 7): the size of a domain key, and of the root key that wraps it.
DOMAIN_KEY_BYTES = 32


@dataclass(frozen=True)
class WrappedDomainKey:
    """A domain key as the store keeps it: readable only by the root key, and only under this id and generation."""

    domain_key_id: str
    generation: int
    wrapped: bytes


@dataclass(frozen=True)
class TokenInfo:
    """What a token says about itself without a login; `mechanisms` are names without CKM_, sorted."""

    label: str
    serial: str
    manufacturer: str
    model: str
    firmware: str
    mechanisms: tuple[str, ...]


class RootError(RuntimeError):
    """The root of trust did not do what it was asked; the message tells an administrator what to do."""


class TokenMissingError(RootError):
    """The PKCS#11 module cannot be loaded, or has no token (or more than one) with the configured label."""


class TokenTimeoutError(RootError):
    """The token did not answer in time; its process was killed."""


class TokenCrashedError(RootError):
    """The process that ran the PKCS#11 module died before it answered, or answered nonsense."""


class TokenFailedError(RootError):
    """The token reported a failure that has no class of its own; the message carries its name in PKCS#11."""


class UnsupportedTokenError(RootError):
    """The token cannot wrap with AES-GCM."""


class RootKeyMissingError(RootError):
    """The token holds no key with the configured label that may serve as root key."""


class PinUnavailableError(RootError):
    """The configured source of the PIN gives none."""


class PinIncorrectError(RootError):
    """The token refused the PIN. The same PIN must not be tried again by itself: tokens count and then lock."""


class PinNearlyLockedError(RootError):
    """The token reports failed logins, or is locked: an administrator has to look, kmsd does not try the PIN."""


class AnchorInvalidError(RootError):
    """The token's anchor of a store holds something else than a number, or the store's id is none."""


class WrappedKeyInvalidError(RootError):
    """A wrapped domain key was changed, moved to another id or generation, or wrapped by another root key."""


class PinSource(Protocol):
    """Gives the PIN for one login."""

    def read_into(self, view: memoryview) -> int:
        """Write the PIN (UTF-8) to the start of `view`, which is secret memory, and return its length in bytes.

        Keep no reference to `view`. Raises PinUnavailableError.
        """


class Root(Protocol):
    """The holder of the root key. All methods raise a `RootError`.

    Those that log in do so with `pin`, if it is given: somebody brought it for this login.
    """

    @property
    def seen(self) -> TokenInfo | None:
        """What the token said about itself at the last job that succeeded."""

    @property
    def meter(self) -> Meter:
        """What counts its uses of the token."""

    async def look(self) -> TokenInfo:
        """Ask the token who it is and what it can do; needs no PIN."""

    async def make_domain_key(
        self, domain_key_id: str, generation: int, into: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        """Write a new random domain key into `into` (`DOMAIN_KEY_BYTES` long) and return it wrapped."""

    async def wrap_domain_key(
        self, domain_key_id: str, generation: int, key: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        """Return a domain key wrapped that another root key has wrapped until now; `key` is borrowed."""

    async def unwrap(
        self,
        records: Sequence[WrappedDomainKey],
        into: Sequence[memoryview],
        pin: PinSource | None = None,
        *,
        anchor: str | None = None,
    ) -> int | None:
        """Write each record's domain key into the buffer at the same place of `into`.

        With the id of a store as `anchor`, return the number that `keep_anchor` left for it; None when there is none.
        When this raises, some buffers may already hold their key: the caller wipes them all.
        """

    async def keep_anchor(self, store_id: str, sequence: int, pin: PinSource | None = None) -> bool:
        """Have the token hold `sequence` for the store, unless it holds a higher one; return whether it can.

        That is a login of its own.
        """
