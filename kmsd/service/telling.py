"""How what the daemon depends on fails, told as errors that cross the socket: the one edge between the two trees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kmsd.api import errors
from kmsd.hsm import root
from kmsd.memory.arena import ArenaFullError
from kmsd.memory.mapping import SecretMemoryUnavailableError
from kmsd.store.base import StoreFormatError, StoreUnavailableError

# Every class of `RootError` stands here; a test holds that. Their messages are for administrators and hold no secret.
_TOLD: dict[type[Exception], type[errors.KmsError]] = {
    root.TokenMissingError: errors.TokenError,
    root.TokenCrashedError: errors.TokenError,
    root.TokenFailedError: errors.TokenError,
    root.TokenTimeoutError: errors.DependencyTimeoutError,
    root.UnsupportedTokenError: errors.TokenUnsuitableError,
    root.RootKeyMissingError: errors.TokenUnsuitableError,
    root.PinUnavailableError: errors.TokenPinUnavailableError,
    root.PinIncorrectError: errors.TokenPinIncorrectError,
    root.PinNearlyLockedError: errors.TokenPinBlockedError,
    root.WrappedKeyInvalidError: errors.IntegrityError,
    root.AnchorInvalidError: errors.IntegrityError,
    StoreUnavailableError: errors.StorageError,
    # SQLite takes a disk that fails to read for a damaged file; the former may pass.
    StoreFormatError: errors.StorageError,
    SecretMemoryUnavailableError: errors.KeyUnavailableError,
    ArenaFullError: errors.KeyUnavailableError,
}


def told_as(fault: BaseException | None) -> errors.KmsError | None:
    """Return the error that a foreseen fault is told as; None for any other."""
    told = next((told for kind, told in _TOLD.items() if isinstance(fault, kind)), None)
    return None if told is None else told(str(fault))


@contextmanager
def told() -> Iterator[None]:
    """Raise foreseen faults as what they are told as."""
    try:
        yield
    except tuple(_TOLD) as fault:
        error = told_as(fault)
        if error is None:
            raise
        raise error from None
