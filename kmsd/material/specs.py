"""What each key spec means: the size of its material and the algorithms it serves."""

from __future__ import annotations

from dataclasses import dataclass

from kmsd.api.operation import KeyUsage
from kmsd.api.shapes import DataKeySpec, EncryptionAlgorithm, KeySpec


@dataclass(frozen=True)
class SpecFacts:
    """`material_bytes` is the size of the secret; `usages` are the usages a key of this spec may have."""

    material_bytes: int
    usages: tuple[KeyUsage, ...]
    encryption_algorithms: tuple[EncryptionAlgorithm, ...]


SPECS: dict[KeySpec, SpecFacts] = {
    # AWS KMS: a symmetric key is 256 bits (cryptographic details, key hierarchy).
    KeySpec.SYMMETRIC_DEFAULT: SpecFacts(
        material_bytes=32,
        usages=(KeyUsage.ENCRYPT_DECRYPT,),
        encryption_algorithms=(EncryptionAlgorithm.SYMMETRIC_DEFAULT,),
    ),
}

DATA_KEY_BYTES: dict[DataKeySpec, int] = {DataKeySpec.AES_256: 32, DataKeySpec.AES_128: 16}
