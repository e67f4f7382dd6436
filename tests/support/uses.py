"""Uses of keys in a test, and what is told of them."""

from __future__ import annotations

import os

from kmsd.api.credentials import CREATE_CREDENTIAL, CreateCredentialRequest
from kmsd.api.deletion import GET_KEY_LAST_USAGE, GetKeyLastUsageRequest, GetKeyLastUsageResponse
from kmsd.api.files import DECRYPT_FILE, ENCRYPT_FILE, DecryptFileRequest, EncryptFileRequest
from kmsd.api.operation import KeyAccess
from kmsd.api.symmetric import (
    DECRYPT,
    ENCRYPT,
    GENERATE_DATA_KEY,
    GENERATE_DATA_KEY_WITHOUT_PLAINTEXT,
    REENCRYPT,
    DecryptRequest,
    EncryptRequest,
    GenerateDataKeyRequest,
    ReEncryptRequest,
)
from kmsd.service.call import Session
from tests.support.embedded import ALICE, ROOT, Embedded
from tests.support.systemd_peer import address

UNIT, NAME = "nginx.service", "tls-key"


async def encrypt(service: Embedded, arn: str, session: Session = ALICE, *, dry_run: bool = False) -> bytes:
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"secret"), dry_run=dry_run)
    return (await service.ask(session, ENCRYPT, request)).ciphertext_blob


async def decrypt(service: Embedded, blob: bytes, *, dry_run: bool = False) -> None:
    await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob, dry_run=dry_run))


async def re_encrypt(service: Embedded, blob: bytes, to: str) -> bytes:
    request = ReEncryptRequest(ciphertext_blob=blob, destination_key_id=to)
    return (await service.ask(ALICE, REENCRYPT, request)).ciphertext_blob


async def encrypt_file(service: Embedded, arn: str) -> bytes:
    """Begin to encrypt a file; its header."""
    batch = await service.reply_to(ALICE, ENCRYPT_FILE, EncryptFileRequest(key_id=arn))
    response = service.response(batch, ENCRYPT_FILE)
    os.close(batch.descriptors[0])
    return response.header


async def decrypt_file(service: Embedded, header: bytes) -> None:
    """Begin to decrypt a file."""
    batch = await service.reply_to(ALICE, DECRYPT_FILE, DecryptFileRequest(header=header))
    service.response(batch, DECRYPT_FILE)
    os.close(batch.descriptors[0])


async def keep_credential(service: Embedded) -> str:
    """Keep a secret for a unit; the ARN of the unit's key."""
    request = CreateCredentialRequest(unit=UNIT, name=NAME, plaintext=memoryview(b"secret"), overwrite=True)
    return (await service.ask(ROOT, CREATE_CREDENTIAL, request)).key_id


async def hand_credential_out(service: Embedded) -> None:
    await service.delivery.deliver(ROOT, address(UNIT, NAME), lambda _: None)


async def last_usage(service: Embedded, arn: str, session: Session = ALICE) -> GetKeyLastUsageResponse:
    return await service.ask(session, GET_KEY_LAST_USAGE, GetKeyLastUsageRequest(key_id=arn))


async def counted(service: Embedded, arn: str) -> dict[str, int]:
    """The uses of a key of which nobody here may ask."""
    total = (await service.records.fetch(arn, KeyAccess.ID_OR_ARN)).use.total()
    return {} if total is None else total.counts


async def use_in_all_ways(service: Embedded, arn: str) -> None:
    """Use a key once by each operation; two files are under way behind it."""
    blob = await encrypt(service, arn)
    await decrypt(service, blob)
    members = GenerateDataKeyRequest(key_id=arn, number_of_bytes=32)
    await service.ask(ALICE, GENERATE_DATA_KEY, members)
    await service.ask(ALICE, GENERATE_DATA_KEY_WITHOUT_PLAINTEXT, members)
    await decrypt_file(service, await encrypt_file(service, arn))
