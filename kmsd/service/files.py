"""Encrypted files: the daemon authorizes, derives and records; a worker process moves the data.

1. Authorize, then make or open the message header with the data key: for decryption, commitment and header tag are
   verified before any descriptor moves.
2. Write the `begin` record.
3. Hand header and message key to a worker, and the client's end of its socketpair to the client.
4. When the worker reports, write the `end` record, and only then let the worker tell the client that it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from kmsd.api import files as api
from kmsd.api.encryption_context import check_size
from kmsd.api.errors import (
    AuditUnavailableError,
    FileAccessError,
    IncorrectKeyError,
    InvalidCiphertextError,
    KmsError,
    KMSInternalError,
    MessageFormatError,
)
from kmsd.api.operation import KeyAccess, Operation
from kmsd.audit.record import Kind, Record
from kmsd.envelope.header import CHANGED, EncryptedDataKey, MessageHeader, make_header, open_header, parse_header
from kmsd.envelope.pool import Direction, FileJob, FileStream, WorkerPool
from kmsd.memory.arena import Arena
from kmsd.service.call import Call
from kmsd.service.changing import Trail
from kmsd.service.key_cipher import KeyCipher
from kmsd.service.key_lookup import KeyLookup
from kmsd.service.loading import loaded
from kmsd.service.records import KeyRecord
from kmsd.service.table import WithDescriptors

# AWS Encryption SDK: the provider id of data keys that AWS KMS wraps; its info is the key's ARN.
_PROVIDER = "aws-kms"
_DATA_KEY_BYTES = 32
# Data keys of a message that are looked at: each takes a look into the store before anything is authorized. The SDKs
# offer the same bound (max_encrypted_data_keys).
_MAX_DATA_KEYS = 16
# Wrappings that a refusal names.
_NAMED = 3
_MESSAGE_ID_BYTES = 32


class Files:
    """Handlers of files; `random` gives that many public random bytes, for message ids.

    `settles`: no client is told of an outcome before its record is on the disk, not only written.
    """

    def __init__(
        self,
        *,
        lookup: KeyLookup,
        cipher: KeyCipher,
        arena: Arena,
        pool: WorkerPool,
        trail: Trail,
        random: Callable[[int], bytes],
        settles: bool,
    ) -> None:
        self._lookup = lookup
        self._cipher = cipher
        self._arena = arena
        self._pool = pool
        self._trail = trail
        self._random = random
        self._settles = settles
        self._streams: set[asyncio.Task[None]] = set()

    @property
    def streams(self) -> int:
        """How many files are being worked on."""
        return len(self._streams)

    async def encrypt(self, call: Call, request: api.EncryptFileRequest, key: KeyRecord) -> WithDescriptors:
        """Make a data key and a header for a new message and start a worker on it."""
        context = request.encryption_context
        with self._arena.random(_DATA_KEY_BYTES) as data_key, self._arena.lease(_DATA_KEY_BYTES) as message_key:
            wrapped = await loaded(lambda: self._cipher.encrypt(key, data_key.view, context))
            header = make_header(
                data_key.view,
                message_id=self._random(_MESSAGE_ID_BYTES),
                encryption_context=context,
                encrypted_data_keys=(EncryptedDataKey(_PROVIDER, key.arn.encode(), wrapped.blob),),
                frame_length=request.frame_length,
                into=message_key.view,
            ).serialize()
            parameters = {"keyId": request.key_id, "encryptionContext": context, "frameLength": request.frame_length}
            job = FileJob(direction=Direction.ENCRYPT, header=header, message_key=message_key.view)
            stream = await self._start(call, job, parameters)
        # The whole message is one use. A worker has its key by now, so it is one whatever becomes of the file.
        key.use.note_encryption(call.operation.name, call.request_id, wrapped.number)
        response = api.EncryptFileResponse(key_id=key.arn, header=header)
        return WithDescriptors(response, [stream.client_descriptor])

    async def decrypt(self, call: Call, request: api.DecryptFileRequest) -> WithDescriptors:
        """Authenticate a message's header and start a worker on what follows it."""
        header, length = parse_header(request.header)
        if length != len(request.header):
            raise MessageFormatError(f"the header has {length} bytes, but {len(request.header)} were sent")
        check_size(header.encryption_context)
        # Policies are asked about the message's own context: a changed one does not unwrap (kmsd.service.facts).
        call.context = header.encryption_context
        key, wrapped = await self._key_of(call, header, request.key_id)
        _check_wanted(header, request.encryption_context)
        context = dict(header.encryption_context)
        with self._arena.lease(_DATA_KEY_BYTES) as data_key, self._arena.lease(_DATA_KEY_BYTES) as message_key:
            try:
                number = await loaded(lambda: self._unwrap(key, wrapped, context, data_key.view))
            except InvalidCiphertextError:
                # One and the same as for a wrong commitment or tag of the header (DESIGN 7), which says more than a
                # blob's, because people read it.
                raise InvalidCiphertextError(CHANGED) from None
            open_header(header, data_key.view, into=message_key.view)
            parameters = {"keyId": request.key_id or key.arn, "encryptionContext": context}
            job = FileJob(direction=Direction.DECRYPT, header=request.header, message_key=message_key.view)
            stream = await self._start(call, job, parameters)
        key.use.note_decryption(call.operation.name, call.request_id, number)
        response = api.DecryptFileResponse(key_id=key.arn, encryption_context=context)
        return WithDescriptors(response, [stream.client_descriptor])

    def _unwrap(self, key: KeyRecord, wrapped: bytes, context: dict[str, str], into: memoryview) -> int:
        # The header's ARN chose the key that was authorized; the cipher takes that key's blobs and no other's.
        unwrapped = self._cipher.decrypt_into(key, wrapped, context, into)
        if unwrapped.length != len(into):
            raise InvalidCiphertextError
        return unwrapped.number

    async def _key_of(self, call: Call, header: MessageHeader, named: str | None) -> tuple[KeyRecord, bytes]:
        """Return the key that can unwrap one of the header's data keys, authorized, and that data key's blob."""
        call.named = named
        wanted = await self._lookup.fetch(named, call.operation.key_access, call) if named is not None else None
        if wanted is not None:
            await loaded(partial(call.use, wanted))
        candidates = [key for key in header.encrypted_data_keys if key.provider_id == _PROVIDER]
        if len(candidates) > _MAX_DATA_KEYS:
            raise MessageFormatError(f"the message names {len(candidates)} keys; at most {_MAX_DATA_KEYS} are tried")
        for candidate in candidates:
            key = await self._record_of(candidate, call)
            if key is None or (wanted is not None and key.key_id != wanted.key_id):
                continue
            if wanted is None:
                await loaded(partial(call.use, key))
            return key, candidate.ciphertext
        if wanted is not None:
            raise IncorrectKeyError("The key ID in the request does not identify a CMK that can decrypt this message.")
        names = ", ".join(_named(candidate) for candidate in header.encrypted_data_keys[:_NAMED])
        raise MessageFormatError(f"no key of this service made this message; it names: {names}")

    async def _record_of(self, candidate: EncryptedDataKey, call: Call) -> KeyRecord | None:
        try:
            return await self._lookup.fetch(candidate.provider_info.decode(), KeyAccess.ID_OR_ARN, call)
        except (KmsError, UnicodeDecodeError) as error:
            if isinstance(error, KmsError) and error.retryable:
                raise
            return None  # a key of another account, or one that never was here

    async def _start(self, call: Call, job: FileJob, parameters: dict[str, Any]) -> FileStream:
        self._append(call, call.record(Kind.BEGIN, parameters=parameters))
        call.began = True
        try:
            stream = await self._pool.start(job, uid=call.session.place)
        except KmsError as error:
            self._append(call, call.record(Kind.END, parameters=parameters, error=error))
            raise
        except asyncio.CancelledError:
            gone = FileAccessError("the client went away before a worker had its file")
            with contextlib.suppress(AuditUnavailableError):  # nobody is answered; the next start settles it
                self._append(call, call.record(Kind.END, parameters=parameters, error=gone))
            raise
        except BaseException:
            fault = KMSInternalError("no file worker could be given this file")
            self._append(call, call.record(Kind.END, parameters=parameters, error=fault))
            raise
        task = asyncio.ensure_future(self._follow(call, stream, parameters))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        return stream

    def _append(self, call: Call, record: Record) -> None:
        call.budget.charge(self._trail.append([record]))

    async def _follow(self, call: Call, stream: FileStream, parameters: dict[str, Any]) -> None:
        outcome = await stream.outcome()
        details = {"plaintextBytes": outcome.plaintext_bytes, "messageBytes": outcome.message_bytes}
        failure: KmsError | None = KMSInternalError("kmsd failed to record the end of this file")
        try:
            self._append(call, call.record(Kind.END, parameters=parameters, error=outcome.error, details=details))
            if self._settles:
                await self._trail.sync()
            failure = None
        except KmsError as error:
            failure = error
        finally:
            # Whatever happened: a worker that is not told waits for it, and stays charged to its uid.
            await stream.acknowledge(failure)

    async def drain(self, timeout_seconds: float) -> None:
        """Give files under way so long to end; the pool's close ends the rest."""
        if self._streams:
            await asyncio.wait(self._streams, timeout=timeout_seconds)


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.ENCRYPT_FILE: Files.encrypt,
    api.DECRYPT_FILE: Files.decrypt,
}


def _check_wanted(header: MessageHeader, wanted: dict[str, str]) -> None:
    for name, value in wanted.items():
        if header.encryption_context.get(name) != value:
            raise InvalidCiphertextError(f"the message's encryption context does not have the pair '{name}={value}'")


def _named(candidate: EncryptedDataKey) -> str:
    # The peer's bytes: bounded and printable in what we say of them.
    return repr(f"{candidate.provider_id[:32]} {candidate.provider_info[:96].decode(errors='replace')}")
