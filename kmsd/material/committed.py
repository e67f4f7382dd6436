"""Key-committing authenticated encryption, which ciphertext blobs and wrapped material share.

1. A fresh 16-byte nonce is drawn for each message.
2. KBKDF of the secret, with the nonce and SHA-256 of the binding as context, gives a message key (32 bytes), an IV
   (12) and a commitment (32).
3. The output is nonce || commitment || AES-256-GCM(message key, IV, plaintext, AAD) with its 16-byte tag.
4. Opening derives the same three, compares the commitment in constant time, and only then decrypts.

The IV is derived and not random because the message key is fresh for each nonce: 128 bits of nonce and the key of one
material give every message its own key, so no bound on the number of messages per key comes from 96-bit IVs. The
commitment makes a ciphertext open under one key only, which AES-GCM alone does not promise.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsd.api.errors import InvalidCiphertextError
from kmsd.material.derivation import Label, derive_into
from kmsd.memory.arena import Arena

NONCE_BYTES = 16
COMMITMENT_BYTES = 32
TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + COMMITMENT_BYTES + TAG_BYTES
_KEY_BYTES = 32
_IV_BYTES = 12
_DERIVED_BYTES = _KEY_BYTES + _IV_BYTES + COMMITMENT_BYTES
_ZEROS = bytes(_DERIVED_BYTES)


class CommittedCipher:
    """Seals and opens under a secret, with one leased slot for what is derived; for one thread.

    `random` gives that many unpredictable bytes; they are nonces, which are public.
    """

    def __init__(self, arena: Arena, label: Label, random: Callable[[int], bytes]) -> None:
        self._label = label
        self._random = random
        self._derived = arena.lease(_DERIVED_BYTES).view
        self._key = self._derived[:_KEY_BYTES]
        self._iv = self._derived[_KEY_BYTES : _KEY_BYTES + _IV_BYTES]
        self._commitment = self._derived[_KEY_BYTES + _IV_BYTES :]

    def seal(self, secret: memoryview, plaintext: memoryview, *, binding: bytes, prefix: bytes, suffix: bytes) -> bytes:
        """Return `prefix` || nonce || commitment || ciphertext || tag.

        `binding` is bound through the derivation; all that stands before the ciphertext, then `suffix`, is the AAD.
        """
        nonce = self._random(NONCE_BYTES)
        try:
            derive_into(secret, self._label, nonce + hashlib.sha256(binding).digest(), self._derived)
            head = prefix + nonce + self._commitment
            return head + AESGCM(self._key).encrypt(self._iv, plaintext, head + suffix)
        finally:
            self._derived[:] = _ZEROS

    def open_into(
        self, secret: memoryview, sealed: bytes, into: memoryview, *, binding: bytes, prefix_bytes: int, suffix: bytes
    ) -> None:
        """Decrypt what `seal` made into `into`, which has exactly the plaintext's size.

        Raises the same InvalidCiphertextError for a wrong secret, binding, commitment, AAD or tag.
        """
        head_bytes = prefix_bytes + NONCE_BYTES + COMMITMENT_BYTES
        if len(sealed) != head_bytes + len(into) + TAG_BYTES:
            raise InvalidCiphertextError
        nonce = sealed[prefix_bytes : prefix_bytes + NONCE_BYTES]
        head = sealed[:head_bytes]
        try:
            derive_into(secret, self._label, nonce + hashlib.sha256(binding).digest(), self._derived)
            if not hmac.compare_digest(self._commitment, sealed[prefix_bytes + NONCE_BYTES : head_bytes]):
                raise InvalidCiphertextError
            AESGCM(self._key).decrypt_into(self._iv, memoryview(sealed)[head_bytes:], head + suffix, into)
        except InvalidTag:
            raise InvalidCiphertextError from None
        finally:
            self._derived[:] = _ZEROS
