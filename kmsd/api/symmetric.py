"""Operations with symmetric keys: encryption, data keys, random bytes."""

from __future__ import annotations

from kmsd.api.operation import Cost, KeyAccess, KeyState, KeyUsage, Operation
from kmsd.api.shapes import (
    CiphertextBlob,
    DataKeyBytes,
    DataKeySpec,
    EncryptionAlgorithm,
    EncryptionContext,
    GrantTokens,
    KeyIdentifier,
    Plaintext,
    RandomBytes,
    Request,
    Response,
)


class EncryptRequest(Request, frozen=True, kw_only=True):
    """Members of Encrypt."""

    key_id: KeyIdentifier
    plaintext: Plaintext
    encryption_context: EncryptionContext = {}
    encryption_algorithm: EncryptionAlgorithm = EncryptionAlgorithm.SYMMETRIC_DEFAULT
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class EncryptResponse(Response, frozen=True, kw_only=True):
    """What Encrypt answers: `key_id` is the key's ARN."""

    ciphertext_blob: bytes
    key_id: str
    encryption_algorithm: EncryptionAlgorithm


class DecryptRequest(Request, frozen=True, kw_only=True):
    """Members of Decrypt: a given `key_id` must be the key that made the ciphertext."""

    ciphertext_blob: CiphertextBlob
    encryption_context: EncryptionContext = {}
    key_id: KeyIdentifier | None = None
    encryption_algorithm: EncryptionAlgorithm = EncryptionAlgorithm.SYMMETRIC_DEFAULT
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class DecryptResponse(Response, frozen=True, kw_only=True):
    """What Decrypt answers."""

    key_id: str
    plaintext: memoryview
    encryption_algorithm: EncryptionAlgorithm
    key_material_id: str


class ReEncryptRequest(Request, frozen=True, kw_only=True):
    """Members of ReEncrypt."""

    ciphertext_blob: CiphertextBlob
    destination_key_id: KeyIdentifier
    source_encryption_context: EncryptionContext = {}
    source_key_id: KeyIdentifier | None = None
    destination_encryption_context: EncryptionContext = {}
    source_encryption_algorithm: EncryptionAlgorithm = EncryptionAlgorithm.SYMMETRIC_DEFAULT
    destination_encryption_algorithm: EncryptionAlgorithm = EncryptionAlgorithm.SYMMETRIC_DEFAULT
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class ReEncryptResponse(Response, frozen=True, kw_only=True):
    """What ReEncrypt answers: both key ids are ARNs."""

    ciphertext_blob: bytes
    source_key_id: str
    key_id: str
    source_encryption_algorithm: EncryptionAlgorithm
    destination_encryption_algorithm: EncryptionAlgorithm
    source_key_material_id: str
    destination_key_material_id: str


class GenerateDataKeyRequest(Request, frozen=True, kw_only=True):
    """Members of GenerateDataKey: exactly one of `key_spec` and `number_of_bytes`."""

    key_id: KeyIdentifier
    encryption_context: EncryptionContext = {}
    number_of_bytes: DataKeyBytes | None = None
    key_spec: DataKeySpec | None = None
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class GenerateDataKeyResponse(Response, frozen=True, kw_only=True):
    """What GenerateDataKey answers."""

    ciphertext_blob: bytes
    plaintext: memoryview
    key_id: str
    key_material_id: str


class GenerateDataKeyWithoutPlaintextResponse(Response, frozen=True, kw_only=True):
    """What GenerateDataKeyWithoutPlaintext answers."""

    ciphertext_blob: bytes
    key_id: str
    key_material_id: str


class GenerateRandomRequest(Request, frozen=True, kw_only=True):
    """Members of GenerateRandom."""

    number_of_bytes: RandomBytes


class GenerateRandomResponse(Response, frozen=True, kw_only=True):
    """What GenerateRandom answers."""

    plaintext: memoryview


ENCRYPT = Operation(
    name="Encrypt",
    summary="Encrypt up to 4 KiB under a key.",
    request=EncryptRequest,
    response=EncryptResponse,
    cost=Cost.CRYPTOGRAPHY,
    key="key_id",
    key_access=KeyAccess.ANY,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    audit_fields=("key_id", "encryption_context", "encryption_algorithm", "dry_run"),
)
DECRYPT = Operation(
    name="Decrypt",
    summary="Decrypt what Encrypt, GenerateDataKey or ReEncrypt made.",
    request=DecryptRequest,
    response=DecryptResponse,
    cost=Cost.CRYPTOGRAPHY,
    key_access=KeyAccess.ANY,
    resolves_keys=False,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    audit_fields=("key_id", "encryption_context", "encryption_algorithm", "dry_run"),
)
REENCRYPT = Operation(
    name="ReEncrypt",
    summary="Move a ciphertext to another key, to a key's current material, or to another encryption context.",
    request=ReEncryptRequest,
    response=ReEncryptResponse,
    cost=Cost.CRYPTOGRAPHY,
    key_access=KeyAccess.ANY,
    resolves_keys=False,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    actions=("kms:ReEncryptFrom", "kms:ReEncryptTo"),
    audit_fields=(
        "source_key_id",
        "source_encryption_context",
        "source_encryption_algorithm",
        "destination_key_id",
        "destination_encryption_context",
        "destination_encryption_algorithm",
        "dry_run",
    ),
)
GENERATE_DATA_KEY = Operation(
    name="GenerateDataKey",
    summary="Make a data key: in plaintext, and encrypted under a key.",
    request=GenerateDataKeyRequest,
    response=GenerateDataKeyResponse,
    cost=Cost.CRYPTOGRAPHY,
    key="key_id",
    key_access=KeyAccess.ANY,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    audit_fields=("key_id", "encryption_context", "number_of_bytes", "key_spec", "dry_run"),
)
GENERATE_DATA_KEY_WITHOUT_PLAINTEXT = Operation(
    name="GenerateDataKeyWithoutPlaintext",
    summary="Make a data key that is only given out encrypted under a key.",
    request=GenerateDataKeyRequest,
    response=GenerateDataKeyWithoutPlaintextResponse,
    cost=Cost.CRYPTOGRAPHY,
    key="key_id",
    key_access=KeyAccess.ANY,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    audit_fields=("key_id", "encryption_context", "number_of_bytes", "key_spec", "dry_run"),
)
GENERATE_RANDOM = Operation(
    name="GenerateRandom",
    summary="Give random bytes.",
    request=GenerateRandomRequest,
    response=GenerateRandomResponse,
    cost=Cost.CRYPTOGRAPHY,
    audit_fields=("number_of_bytes",),
)

OPERATIONS = (
    ENCRYPT,
    DECRYPT,
    REENCRYPT,
    GENERATE_DATA_KEY,
    GENERATE_DATA_KEY_WITHOUT_PLAINTEXT,
    GENERATE_RANDOM,
)
