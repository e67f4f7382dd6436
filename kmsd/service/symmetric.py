"""Encryption, data keys and random bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.api import symmetric as api
from kmsd.api.errors import IncorrectKeyError, ValidationError
from kmsd.api.operation import Operation
from kmsd.api.shapes import EncryptionAlgorithm
from kmsd.material.ciphertext import address_of
from kmsd.material.specs import DATA_KEY_BYTES
from kmsd.service.call import Call
from kmsd.service.key_cipher import KeyCipher
from kmsd.service.key_lookup import KeyLookup
from kmsd.service.records import KeyRecord
from kmsd.service.scratch import Scratch

# The largest plaintext of a blob (AWS KMS).
_MAX_PLAINTEXT_BYTES = 4096
# Kept at hand: looking a member up in its enumeration is not free.
_ALGORITHM = EncryptionAlgorithm.SYMMETRIC_DEFAULT


class Symmetric:
    """Handlers of cost CRYPTOGRAPHY: plain functions that never await.

    Each ends a dry run itself, where nothing that the request says can be wrong any more.
    """

    def __init__(self, *, lookup: KeyLookup, cipher: KeyCipher, scratch: Scratch) -> None:
        self._lookup = lookup
        self._cipher = cipher
        self._scratch = scratch

    def encrypt(self, call: Call, request: api.EncryptRequest, key: KeyRecord) -> api.EncryptResponse:
        """Encrypt under the key's current material."""
        call.end_dry_run(dry_run=request.dry_run)
        blob, _, number = self._cipher.encrypt(key, request.plaintext, request.encryption_context)
        key.use.note_encryption(call.operation.name, call.request_id, number)
        return api.EncryptResponse(ciphertext_blob=blob, key_id=key.arn, encryption_algorithm=_ALGORITHM)

    def decrypt(self, call: Call, request: api.DecryptRequest) -> api.DecryptResponse:
        """Decrypt a blob with the material its header names."""
        key = self._key_of(request.ciphertext_blob, request.key_id, call, "kms:Decrypt")
        call.end_dry_run(dry_run=request.dry_run)
        plaintext, material_id, number = self._decrypt(key, request.ciphertext_blob, request.encryption_context)
        key.use.note_decryption(call.operation.name, call.request_id, number)
        return api.DecryptResponse(
            key_id=key.arn,
            plaintext=plaintext,
            encryption_algorithm=_ALGORITHM,
            key_material_id=material_id,
        )

    def re_encrypt(self, call: Call, request: api.ReEncryptRequest) -> api.ReEncryptResponse:
        """Decrypt a blob and encrypt it again; both keys are authorized before either is used."""
        destination = self._lookup.get(request.destination_key_id, call)
        call.counterpart = destination
        source = self._key_of(request.ciphertext_blob, request.source_key_id, call, "kms:ReEncryptFrom")
        call.counterpart, call.named = source, request.destination_key_id
        call.use(destination, "kms:ReEncryptTo")
        call.end_dry_run(dry_run=request.dry_run)
        plaintext, source_material, opened_by = self._decrypt(
            source, request.ciphertext_blob, request.source_encryption_context
        )
        blob, material, made_by = self._cipher.encrypt(destination, plaintext, request.destination_encryption_context)
        source.use.note_decryption(call.operation.name, call.request_id, opened_by)
        destination.use.note_encryption(call.operation.name, call.request_id, made_by)
        return api.ReEncryptResponse(
            ciphertext_blob=blob,
            source_key_id=source.arn,
            key_id=destination.arn,
            source_encryption_algorithm=_ALGORITHM,
            destination_encryption_algorithm=_ALGORITHM,
            source_key_material_id=source_material,
            destination_key_material_id=material,
        )

    def generate_data_key(
        self,
        call: Call,
        request: api.GenerateDataKeyRequest,
        key: KeyRecord,
    ) -> api.GenerateDataKeyResponse:
        """Draw a data key and give it out in both forms."""
        size = _data_key_bytes(request)
        call.end_dry_run(dry_run=request.dry_run)
        data_key = self._scratch.random(size)
        blob, material_id, number = self._cipher.encrypt(key, data_key, request.encryption_context)
        key.use.note_encryption(call.operation.name, call.request_id, number)
        return api.GenerateDataKeyResponse(
            ciphertext_blob=blob, plaintext=data_key, key_id=key.arn, key_material_id=material_id
        )

    def generate_data_key_without_plaintext(
        self,
        call: Call,
        request: api.GenerateDataKeyRequest,
        key: KeyRecord,
    ) -> api.GenerateDataKeyWithoutPlaintextResponse:
        """Draw a data key and give it out encrypted only."""
        size = _data_key_bytes(request)
        call.end_dry_run(dry_run=request.dry_run)
        data_key = self._scratch.random(size)
        blob, material_id, number = self._cipher.encrypt(key, data_key, request.encryption_context)
        key.use.note_encryption(call.operation.name, call.request_id, number)
        return api.GenerateDataKeyWithoutPlaintextResponse(
            ciphertext_blob=blob, key_id=key.arn, key_material_id=material_id
        )

    def generate_random(self, call: Call, request: api.GenerateRandomRequest) -> api.GenerateRandomResponse:  # noqa: ARG002 - handlers share one form
        """Give bytes of the kernel's generator."""
        return api.GenerateRandomResponse(plaintext=self._scratch.random(request.number_of_bytes))

    def _key_of(self, blob: bytes, named: str | None, call: Call, action: str) -> KeyRecord:
        """Return the key that made `blob`, authorized; a key the request names has to be the same one."""
        made_by = address_of(blob).key_id
        call.named = named
        if named is None:
            key = self._lookup.get(made_by, call)
            call.use(key, action)
            return key
        key = self._lookup.get(named, call)
        call.use(key, action)
        if key.key_id != made_by:
            raise IncorrectKeyError(
                "The key ID in the request does not identify a CMK that can perform this operation."
            )
        return key

    def _decrypt(self, key: KeyRecord, blob: bytes, context: dict[str, str]) -> tuple[memoryview, str, int]:
        plaintext = self._scratch.take(_MAX_PLAINTEXT_BYTES)
        length, material_id, number = self._cipher.decrypt_into(key, blob, context, plaintext)
        return plaintext[:length], material_id, number


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.ENCRYPT: Symmetric.encrypt,
    api.DECRYPT: Symmetric.decrypt,
    api.REENCRYPT: Symmetric.re_encrypt,
    api.GENERATE_DATA_KEY: Symmetric.generate_data_key,
    api.GENERATE_DATA_KEY_WITHOUT_PLAINTEXT: Symmetric.generate_data_key_without_plaintext,
    api.GENERATE_RANDOM: Symmetric.generate_random,
}


def _data_key_bytes(request: api.GenerateDataKeyRequest) -> int:
    """Return the data key's size; exactly one member has to give it."""
    if request.key_spec is not None and request.number_of_bytes is None:
        return DATA_KEY_BYTES[request.key_spec]
    if request.number_of_bytes is not None and request.key_spec is None:
        return request.number_of_bytes
    raise ValidationError("Please specify either number of bytes or key spec.")
