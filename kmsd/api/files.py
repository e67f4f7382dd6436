"""Operations on whole files, which are ours: the reply carries one end of a socketpair to a file worker.

`kmsd/envelope/FORMAT.md` specifies the message format and the conversation on that socketpair.
"""

from __future__ import annotations

from kmsd.api.operation import Cost, KeyAccess, KeyState, KeyUsage, Operation
from kmsd.api.shapes import (
    DEFAULT_FRAME_LENGTH,
    MAX_HEADER_BYTES,
    EncryptionContext,
    FrameLength,
    GrantTokens,
    KeyIdentifier,
    MessageHeaderBytes,
    Request,
    Response,
)


class EncryptFileRequest(Request, frozen=True, kw_only=True):
    """Members of EncryptFile; `frame_length` is in bytes of plaintext."""

    key_id: KeyIdentifier
    encryption_context: EncryptionContext = {}
    frame_length: FrameLength = DEFAULT_FRAME_LENGTH
    grant_tokens: GrantTokens = []


class EncryptFileResponse(Response, frozen=True, kw_only=True):
    """What EncryptFile answers: the key's ARN and the header the worker writes first."""

    key_id: str
    header: bytes


class DecryptFileRequest(Request, frozen=True, kw_only=True):
    """Members of DecryptFile.

    `header` is the message's whole header. A given `key_id` must be the message's key, and each pair of
    `encryption_context` must be among the message's own.
    """

    header: MessageHeaderBytes
    key_id: KeyIdentifier | None = None
    encryption_context: EncryptionContext = {}
    grant_tokens: GrantTokens = []


class DecryptFileResponse(Response, frozen=True, kw_only=True):
    """What DecryptFile answers: the key's ARN and the message's encryption context."""

    key_id: str
    encryption_context: EncryptionContext


ENCRYPT_FILE = Operation(
    name="EncryptFile",
    summary="Encrypt a file, pipe or socket of any length.",
    request=EncryptFileRequest,
    response=EncryptFileResponse,
    cost=Cost.FILE,
    key="key_id",
    key_access=KeyAccess.ANY,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    # A file is encrypted under a data key, so the permission is the one for data keys, as with AWS's own SDK.
    actions=("kms:GenerateDataKey",),
    descriptors=1,
    reply_bytes=MAX_HEADER_BYTES * 2,  # a header of full size, and the other members
    audit_fields=("key_id", "encryption_context", "frame_length"),
)
DECRYPT_FILE = Operation(
    name="DecryptFile",
    summary="Decrypt a message that EncryptFile or an AWS Encryption SDK made.",
    request=DecryptFileRequest,
    response=DecryptFileResponse,
    cost=Cost.FILE,
    key_access=KeyAccess.ANY,
    resolves_keys=False,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    actions=("kms:Decrypt",),
    descriptors=1,
    frame_bytes=MAX_HEADER_BYTES * 2,  # a header of full size, and the other members
    audit_fields=("key_id", "encryption_context"),
    audit_response=("encryption_context",),
)

OPERATIONS = (ENCRYPT_FILE, DECRYPT_FILE)
