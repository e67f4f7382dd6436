"""The one byte form of an encryption context, for ciphertext blobs and encrypted files alike.

It is the AWS Encryption SDK's serialization: a count, then length-prefixed UTF-8 pairs in ascending order of the keys'
bytes; all numbers are unsigned 16-bit big-endian. The empty context is the empty string of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from kmsd.api.errors import ValidationError

# Counts and lengths are 16-bit numbers.
_LARGEST = 0xFFFF

# The most that a context may have, serialized: AWS KMS's own bound. A context is logged whole with every request,
# allowed or not, so its size is also what a caller can make the daemon write.
MAX_BYTES = 8192


def serialize(context: Mapping[str, str]) -> bytes:
    """Return the canonical bytes of `context`; two contexts have the same bytes only when they are equal.

    Raises ValidationError for more pairs, or longer ones, than the 16-bit lengths can tell, and for text that has no
    UTF-8 form (lone surrogates).
    """
    if not context:
        return b""
    try:
        pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
        parts = [len(pairs).to_bytes(2, "big")]
        for name, value in pairs:
            parts += (len(name).to_bytes(2, "big"), name, len(value).to_bytes(2, "big"), value)
    except OverflowError:
        raise ValidationError(f"an encryption context may have {_LARGEST} pairs of {_LARGEST} bytes each") from None
    except UnicodeEncodeError:
        raise ValidationError("an encryption context must be valid Unicode text") from None
    return b"".join(parts)


def check_size(context: Mapping[str, str]) -> None:
    """Raise ValidationError for a context of more than `MAX_BYTES`, serialized."""
    if len(serialize(context)) > MAX_BYTES:
        raise ValidationError(f"an encryption context may have {MAX_BYTES} bytes")
