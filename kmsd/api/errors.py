"""Every error that crosses the socket, as one tree.

Codes, meanings and HTTP statuses are those of AWS KMS (its service model, botocore 1.44); those that are ours say so.
A class says whose fault an error is (`CallerError` or `DaemonError`) and whether the same request may succeed later.
"""

from __future__ import annotations

from typing import ClassVar


class KmsError(Exception):
    """An error with a code that both sides of the socket know.

    `message` is for people and never holds a secret. `request_id` names the request in the audit trail; the daemon
    fills it in when it replies, so it is empty until then.
    """

    code: ClassVar[str] = "KMSInternalException"
    http_status: ClassVar[int] = 500
    retryable: bool = False

    def __init__(self, message: str = "", *, request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id


class CallerError(KmsError):
    """The request cannot succeed as it is; the caller has to change something."""

    http_status = 400


class DaemonError(KmsError):
    """The daemon or something it depends on failed; the request itself may be right."""

    http_status = 500


class AccessDeniedError(CallerError):
    """The caller may not do this: an explicit deny, or nothing that allows it."""

    code = "AccessDeniedException"


class AlreadyExistsError(CallerError):
    """The resource that was to be made exists."""

    code = "AlreadyExistsException"


class ConflictError(CallerError):
    """Somebody else changed the same thing at the same time; nothing was done."""

    code = "ConflictException"
    retryable = True


class DisabledError(CallerError):
    """The key is disabled."""

    code = "DisabledException"


class DryRunOperationError(CallerError):
    """The request would have succeeded; it asked for a dry run."""

    code = "DryRunOperationException"


class IncorrectKeyError(CallerError):
    """The key named in the request is not the key that made the ciphertext."""

    code = "IncorrectKeyException"


class InvalidAliasNameError(CallerError):
    """The alias name has a form that is not allowed."""

    code = "InvalidAliasNameException"


class InvalidArnError(CallerError):
    """An ARN is malformed."""

    code = "InvalidArnException"


class InvalidCiphertextError(CallerError):
    """The ciphertext was changed, is not ours, or its encryption context differs; never said which."""

    code = "InvalidCiphertextException"


class InvalidGrantIdError(CallerError):
    """The key has no grant with this id."""

    code = "InvalidGrantIdException"


class InvalidGrantTokenError(CallerError):
    """A grant token is malformed."""

    code = "InvalidGrantTokenException"


class InvalidKeyUsageError(CallerError):
    """The key's usage or spec does not fit the operation."""

    code = "InvalidKeyUsageException"


class InvalidMarkerError(CallerError):
    """A pagination marker was not made by this service."""

    code = "InvalidMarkerException"


class KMSInvalidStateError(CallerError):
    """The key's state does not allow the operation."""

    code = "KMSInvalidStateException"


class LimitExceededError(CallerError):
    """A quota is used up."""

    code = "LimitExceededException"


class MalformedPolicyDocumentError(CallerError):
    """A key policy is not valid; the message says where."""

    code = "MalformedPolicyDocumentException"


class NotFoundError(CallerError):
    """No such key or alias here; keys of another account or region are not here either."""

    code = "NotFoundException"


class TagError(CallerError):
    """A tag is not valid."""

    code = "TagException"


class UnsupportedOperationError(CallerError):
    """The operation, or a member of it, is not offered for this key or by this daemon."""

    code = "UnsupportedOperationException"


class ValidationError(CallerError):
    """The request does not have the shape its operation declares (AWS's common error)."""

    code = "ValidationException"


class UnknownOperationError(CallerError):
    """No operation has this name (AWS's common error)."""

    code = "UnknownOperationException"


class ProtocolError(CallerError):
    """Ours: the peer broke the framing or the envelope; the connection ends after this."""

    code = "ProtocolException"


class ThrottlingError(CallerError):
    """The caller exceeds its share; the same request succeeds later (AWS's common error)."""

    code = "ThrottlingException"
    retryable = True


class MessageFormatError(CallerError):
    """Ours: a file is not an encrypted message, or is no longer a whole one; says what its public structure shows."""

    code = "MessageFormatException"


class FileAccessError(CallerError):
    """Ours: reading or writing one of the caller's descriptors failed; names the direction and errno."""

    code = "FileAccessException"


class KMSInternalError(DaemonError):
    """The daemon failed in a way that is not the caller's fault; details are in its log under the request id."""

    code = "KMSInternalException"
    retryable = True


class DependencyTimeoutError(DaemonError):
    """Something the daemon depends on did not answer in time."""

    code = "DependencyTimeoutException"
    retryable = True


class KeyUnavailableError(DaemonError):
    """The key's material cannot be used now."""

    code = "KeyUnavailableException"
    retryable = True


class SealedError(DaemonError):
    """Ours: the daemon is sealed and holds no keys; an administrator has to unseal it."""

    code = "SealedException"
    http_status = 503
    retryable = True


class TokenError(DaemonError):
    """Ours: the token is away, or failed at what it was asked; it may work later."""

    code = "TokenException"
    http_status = 503
    retryable = True


class TokenUnsuitableError(DaemonError):
    """Ours: the token cannot do what kmsd needs, or is not the one that kmsd was set up with."""

    code = "TokenUnsuitableException"


class TokenPinIncorrectError(CallerError):
    """Ours: the token refused the PIN; tokens count wrong ones and then lock, so it is never tried again by itself."""

    code = "TokenPinIncorrectException"


class TokenPinBlockedError(DaemonError):
    """Ours: the token reports failed logins, or is locked; the PIN was not tried, and somebody has to look at it."""

    code = "TokenPinBlockedException"


class TokenPinUnavailableError(DaemonError):
    """Ours: no PIN was given, or the configured source of the PIN gives none."""

    code = "TokenPinUnavailableException"


class RecoverySharesError(CallerError):
    """Ours: recovery shares are not valid, too few, or not of this store; says which, and no word of them."""

    code = "RecoverySharesException"


class RecoveryUnavailableError(DaemonError):
    """Ours: this host has no recovery key, or the process that puts one together failed."""

    code = "RecoveryUnavailableException"


class StorageError(DaemonError):
    """Ours: the store cannot be read or written; names it and the reason."""

    code = "StorageException"
    http_status = 503
    retryable = True


class AuditUnavailableError(DaemonError):
    """Ours: the audit trail cannot be written, so nothing is done; names the sink."""

    code = "AuditUnavailableException"
    http_status = 503
    retryable = True


class IntegrityError(DaemonError):
    """Ours: a stored record does not authenticate; it is reported and never used."""

    code = "IntegrityException"


class ShuttingDownError(DaemonError):
    """Ours: the daemon is stopping; ask again after it has started."""

    code = "ShuttingDownException"
    http_status = 503
    retryable = True


class ConnectionLostError(DaemonError):
    """Ours, made by the client: the daemon went away or answered nonsense before the reply was complete."""

    code = "ConnectionLostException"


class UntrustedServerError(DaemonError):
    """Ours, made by the client: the process behind the socket is not one that may hold keys."""

    code = "UntrustedServerException"


def _tree(base: type[KmsError]) -> list[type[KmsError]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _tree(child))]


ERRORS: dict[str, type[KmsError]] = {
    error.code: error for error in _tree(KmsError) if error not in {KmsError, CallerError, DaemonError}
}


def error_from_wire(code: str, message: str, *, retryable: bool, request_id: str) -> KmsError:
    """Return the error that a reply describes; an unknown code becomes a `KmsError` that keeps its text."""
    known = ERRORS.get(code)
    error = known(message, request_id=request_id) if known else KmsError(f"{code}: {message}", request_id=request_id)
    error.retryable = retryable
    return error
