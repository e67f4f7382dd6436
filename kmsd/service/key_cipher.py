"""Encryption under a key: which of its material is used, and which a blob may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kmsd.api.errors import InvalidCiphertextError
from kmsd.material.ciphertext import BlobCipher, address_of
from kmsd.material.versions import Versions
from kmsd.service.records import KeyRecord


class Encrypted(NamedTuple):
    """A ciphertext blob, and the public name and the number of the material that made it."""

    blob: bytes
    material_id: str
    number: int


class Decrypted(NamedTuple):
    """How many bytes of plaintext there are, and the public name and the number of the material that made the blob."""

    length: int
    material_id: str
    number: int


class KeyCipher:
    """Encrypts and decrypts under keys that were authorized before.

    Both methods raise a NotLoadedError, before anything is done, for material that is not in memory.
    """

    def __init__(self, versions: Versions, cipher: BlobCipher) -> None:
        self._versions = versions
        self._cipher = cipher

    def encrypt(self, key: KeyRecord, plaintext: memoryview, context: Mapping[str, str]) -> Encrypted:
        """Encrypt under the key's current material."""
        number = key.row.current_material
        material = self._versions.get(key.key_id, number)
        blob = self._cipher.encrypt(material.view, material.prefix, plaintext, context)
        return Encrypted(blob, material.material_id, number)

    def decrypt_into(self, key: KeyRecord, blob: bytes, context: Mapping[str, str], into: memoryview) -> Decrypted:
        """Decrypt a blob of this key, and of no other, to the beginning of `into`; raises InvalidCiphertextError."""
        made_by = address_of(blob)
        if made_by.key_id != key.key_id or not 1 <= made_by.number <= key.row.current_material:
            raise InvalidCiphertextError
        material = self._versions.get(key.key_id, made_by.number)
        length = self._cipher.decrypt_into(material.view, blob, context, into)
        return Decrypted(length, material.material_id, made_by.number)
