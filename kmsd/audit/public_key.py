"""The audit key's public part as people keep it: PEM, or 64 hex digits, or base64 (pure)."""

from __future__ import annotations

import base64
import binascii
import re

_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----\s+(.*?)\s*-----END PUBLIC KEY-----", re.DOTALL)
# What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410): it never differs.
_SPKI = bytes.fromhex("302a300506032b6570032100")
_KEY_BYTES = 32


def to_pem(public_key: bytes) -> str:
    """Return a raw public key as PEM, as `openssl pkey -pubin` reads it."""
    text = base64.b64encode(_SPKI + public_key).decode("ascii")
    return f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"


def from_text(text: str) -> bytes:
    """Return the raw public key (32 bytes) that a text holds; raises ValueError."""
    pem = _PEM.search(text)
    try:
        if pem is not None:
            found = base64.b64decode("".join(pem[1].split()), validate=True)
            raw = found.removeprefix(_SPKI)
        elif re.fullmatch(r"\s*[0-9A-Fa-f]{64}\s*", text):
            raw = found = bytes.fromhex(text)
        else:
            raw = found = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raw = found = b""
    if len(raw) != _KEY_BYTES or (pem is not None and not found.startswith(_SPKI)):
        raise ValueError("no Ed25519 public key: neither PEM (PUBLIC KEY) nor 64 hex digits nor base64 of 32 bytes")
    return raw
