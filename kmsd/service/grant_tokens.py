"""Grant tokens: names of grants that only CreateGrant gives out.

AWS's tokens let a new grant be used before all of AWS knows of it. Here a grant counts from the moment that it is
answered, so a token is an identifier and never an authority: it says which grant RetireGrant is to retire, and
everywhere else it is taken if it is well-formed, and permits nothing.

A token is URL-safe base64 without padding of: version 0x01 (1), grant id (32), nonce (16), and the first 8 bytes of
the SHA-256 of all that, by which typing errors are found.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable

from kmsd.api.errors import InvalidGrantTokenError

_VERSION = b"\x01"
_GRANT_ID_BYTES = 32
NONCE_BYTES = 16
_CHECKSUM_BYTES = 8
_TOKEN_BYTES = len(_VERSION) + _GRANT_ID_BYTES + NONCE_BYTES + _CHECKSUM_BYTES


def make_token(grant_id: str, nonce: bytes) -> str:
    """Return a token of a grant, a different one for each nonce."""
    named = _VERSION + bytes.fromhex(grant_id) + nonce
    return base64.urlsafe_b64encode(named + _checksum(named)).rstrip(b"=").decode()


def grant_id_in(token: str) -> str:
    """Return the id of the grant that a token names; raises InvalidGrantTokenError, which does not show the token."""
    try:
        content = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        content = b""
    named, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if len(content) != _TOKEN_BYTES or not named.startswith(_VERSION) or checksum != _checksum(named):
        raise InvalidGrantTokenError("the grant token is malformed: it is none that CreateGrant gave out here")
    return named[len(_VERSION) : len(_VERSION) + _GRANT_ID_BYTES].hex()


def check_tokens(tokens: Iterable[str]) -> None:
    """Raise InvalidGrantTokenError unless each is well-formed."""
    for token in tokens:
        grant_id_in(token)


def _checksum(named: bytes) -> bytes:
    return hashlib.sha256(named).digest()[:_CHECKSUM_BYTES]
