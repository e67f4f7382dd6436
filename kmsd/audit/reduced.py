"""What retention leaves of a rotated file: the head line that vouches for what was kept (pure; FORMAT.md).

The hashes of records that were dropped are gone, so the lines that were kept no longer hang together by themselves.
The head line says from where to where the chain of the whole file went, and the audit key signs that and the SHA-256
of all kept lines: Ed25519 over

    kmsd-audit-reduced/1 LF | the JSON text of `reduced` as it stands | LF | sha256 LF
"""

from __future__ import annotations

import base64

import msgspec

from kmsd.audit.chain import MalformedLineError
from kmsd.audit.checkpoint import Signer

# A head line has some 500 bytes.
HEADER_BYTES = 4096

_DOMAIN = b"kmsd-audit-reduced/1\n"


class Reduced(msgspec.Struct, frozen=True, rename="camel"):
    """A rotated file before it was reduced, and how many of its records were kept.

    `prev` is what its first record continues, `last_hash` the SHA-256 of its last line.
    """

    first_seq: int
    last_seq: int
    prev: str
    last_hash: str
    kept: int
    dropped: int


class HeadLine(msgspec.Struct, frozen=True, rename={"key_id": "keyId"}):
    """The first line of a reduced file; `reduced` is kept as the text that is signed."""

    reduced: msgspec.Raw
    sha256: str
    key_id: str
    signature: str


def head_line(signer: Signer, reduced: Reduced, sha256: str) -> bytes:
    """Return the signed first line of a reduced file whose other lines have this SHA-256."""
    text = msgspec.json.encode(reduced)
    signature = base64.b64encode(signer.sign(message(text, sha256))).decode("ascii")
    return msgspec.json.encode(HeadLine(msgspec.Raw(text), sha256, signer.key_id, signature)) + b"\n"


def parse_head_line(line: bytes) -> Reduced:
    """Return what the first line of a reduced file says; raises MalformedLineError. Its signature is not checked."""
    try:
        return msgspec.json.decode(msgspec.json.decode(line, type=HeadLine).reduced, type=Reduced)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedLineError(f"not the head line of a reduced file: {exc}") from None


def message(reduced: bytes, sha256: str) -> bytes:
    """Return what is signed."""
    return _DOMAIN + reduced + b"\n" + sha256.encode("ascii") + b"\n"
