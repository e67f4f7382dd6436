"""The edge to python-pkcs11: everything a job does with a token, with every foreign exception mapped.

Imported only in a job's process, never in the daemon: this package and the vendor's module below it take PINs as `str`
and give keys as `bytes`, which nothing can wipe. Here they die with the process.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass, TokenFlag, exceptions

from kmsd.hsm.conversation import TokenConfig
from kmsd.hsm.root import (
    DOMAIN_KEY_BYTES,
    PinIncorrectError,
    PinNearlyLockedError,
    RootKeyMissingError,
    TokenFailedError,
    TokenInfo,
    TokenMissingError,
    UnsupportedTokenError,
    WrappedDomainKey,
    WrappedKeyInvalidError,
)
from kmsd.hsm.wrapped import IV_BYTES, TAG_BYTES, Sealed, associated_data, join, split

_ROOT_KEY_BITS = 8 * DOMAIN_KEY_BYTES

_PIN_REFUSED = (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange)
_PIN_NEEDS_SOMEONE = (exceptions.PinLocked, exceptions.PinExpired, exceptions.UserPinNotInitialized)
_TOKEN_AWAY = (exceptions.DeviceRemoved, exceptions.TokenNotPresent, exceptions.TokenNotRecognised)
_NOT_OFFERED = (exceptions.MechanismInvalid, exceptions.MechanismParamInvalid, exceptions.FunctionNotSupported)

_FLAGS_THAT_NEED_SOMEONE = {
    TokenFlag.USER_PIN_LOCKED: "its PIN is locked: an administrator has to reset the PIN with the token's own tool",
    TokenFlag.USER_PIN_FINAL_TRY: "one more wrong PIN locks it",
    TokenFlag.USER_PIN_COUNT_LOW: "a wrong PIN was tried since the last login",
    TokenFlag.USER_PIN_TO_BE_CHANGED: "it wants its PIN changed before it is used: do that with the token's own tool",
}


@contextmanager
def mapped(config: TokenConfig) -> Iterator[None]:
    """Raise what python-pkcs11 raises as the `RootError` that tells what to do."""
    name = f"the token {config.token_label!r}"
    try:
        yield
    except _PIN_REFUSED:
        raise PinIncorrectError(
            f"{name} refused the PIN: correct it before the next try, "
            "because a token locks itself after a few wrong ones"
        ) from None
    except _PIN_NEEDS_SOMEONE as error:
        raise PinNearlyLockedError(
            f"{name} takes no PIN ({_code(error)}): an administrator has to set one with the token's own tool"
        ) from None
    except _TOKEN_AWAY as error:
        raise TokenMissingError(f"{name} went away ({_code(error)}): connect it again and unseal") from None
    except _NOT_OFFERED as error:
        raise UnsupportedTokenError(
            f"{name} cannot wrap with AES-GCM ({_code(error)}): use a token that offers CKM_AES_GCM with 96-bit IVs"
        ) from None
    except exceptions.PKCS11Error as error:
        raise TokenFailedError(
            f"{name} failed with {_code(error)}: look at the token and the module's own log, then try again"
        ) from None


def _code(error: Exception) -> str:
    # The class alone: some carry text from the module, which may be anything.
    return type(error).__name__


def find_slots(config: TokenConfig) -> list[pkcs11.Slot]:
    """Load the module and return its slots that hold a token; raises TokenMissingError when it does not work here."""
    try:
        module = pkcs11.lib(config.module)
    except exceptions.PKCS11Error as error:
        # dlopen's own text names the missing file or symbol; nothing secret exists yet.
        reason = str(error) or _code(error)
        raise TokenMissingError(
            f"the PKCS#11 module {config.module} cannot be used ({reason}): install it, or correct its path and its "
            "settings"
        ) from None
    with mapped(config):
        return module.get_slots(token_present=True)


def find_token(config: TokenConfig) -> pkcs11.Token:
    """Return the one token with the configured label; raises TokenMissingError."""
    slots = find_slots(config)
    with mapped(config):
        present = [slot.get_token() for slot in slots]
    found = [token for token in present if token.label == config.token_label]
    if len(found) == 1:
        return found[0]
    if found:
        raise TokenMissingError(
            f"{len(found)} tokens are labelled {config.token_label!r}: give each its own label, or remove the others"
        )
    labels = ", ".join(sorted(repr(token.label) for token in present if token.label)) or "none"
    raise TokenMissingError(
        f"no token is labelled {config.token_label!r} (present: {labels}): connect it, or correct the label"
    )


def describe(config: TokenConfig) -> TokenInfo:
    """Return what the token says about itself; needs no login."""
    token = find_token(config)
    with mapped(config):
        mechanisms = token.slot.get_mechanisms()
    return TokenInfo(
        label=token.label,
        serial=token.serial.decode(errors="replace"),
        manufacturer=token.manufacturer_id,
        model=token.model,
        firmware=".".join(map(str, token.firmware_version)),
        mechanisms=tuple(sorted(_name(one) for one in mechanisms)),
    )


def _name(mechanism: int) -> str:
    # Outdated ones have an underscore in the package; those it does not know, the vendors' own, are plain numbers.
    return mechanism.name.lstrip("_") if isinstance(mechanism, Mechanism) else f"0x{mechanism:08X}"


def check(config: TokenConfig, token: pkcs11.Token, *, attended: bool) -> None:
    """Refuse a token before its PIN is tried; raises UnsupportedTokenError or PinNearlyLockedError.

    Somebody who mistyped the PIN may try again (`attended`), as long as that cannot lock the token.
    """
    with mapped(config):
        offered = Mechanism.AES_GCM in token.slot.get_mechanisms()
    if not offered:
        raise UnsupportedTokenError(
            f"the token {config.token_label!r} cannot wrap with AES-GCM: use a token that offers CKM_AES_GCM, or "
            "enable it in the module's settings"
        )
    for flag, meaning in _FLAGS_THAT_NEED_SOMEONE.items():
        low = flag is TokenFlag.USER_PIN_COUNT_LOW
        if flag in token.flags and not (low and attended):
            typing = "type it for `kms unseal`, or " if low else ""
            raise PinNearlyLockedError(
                f"the token {config.token_label!r} reports that {meaning}; kmsd does not try its PIN: "
                f"check the PIN, then {typing}log in to the token once with its own tool, and unseal"
            )


class RootKey:
    """The root key in a session that is logged in."""

    def __init__(self, config: TokenConfig, session: pkcs11.Session, random: Callable[[int], bytes]) -> None:
        self._config = config
        self._random = random
        self._key = self._find(session)

    def _find(self, session: pkcs11.Session) -> Any:
        # Any: the package makes a class for each object, of what the key's attributes allow.
        wanted = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.TOKEN: True,
            Attribute.LABEL: self._config.root_key_label,
        }
        with mapped(self._config):
            found = list(session.get_objects(wanted))
            fits = [key for key in found if _may_be_root(key)]
        name = f"labelled {self._config.root_key_label!r} in the token {self._config.token_label!r}"
        if not found:
            raise RootKeyMissingError(
                f"there is no AES key {name}: connect the token that kmsd was set up with, or correct the label"
            )
        if len(found) > 1:
            raise RootKeyMissingError(f"there are {len(found)} AES keys {name}: rename those that are not kmsd's")
        if not fits:
            raise RootKeyMissingError(
                f"the key {name} cannot be the root key: that is a sensitive, not extractable {_ROOT_KEY_BITS}-bit key "
                "for encryption and decryption"
            )
        return fits[0]

    def wrap(self, secret: memoryview, domain_key_id: str, generation: int) -> bytes:
        """Return `secret` wrapped, after a look whether it opens again, and only under its own generation.

        A token that picks IVs itself (some do in FIPS mode) or ignores associated data would otherwise be noticed
        only when the key is needed. Raises UnsupportedTokenError then.
        """
        iv = self._random(IV_BYTES)
        plain = bytes(secret)
        with mapped(self._config):
            body = self._key.encrypt(plain, **_gcm(iv, associated_data(domain_key_id, generation)))
        if len(body) == len(plain) + TAG_BYTES:
            record = WrappedDomainKey(domain_key_id, generation, join(Sealed(iv, body)))
            other = WrappedDomainKey(domain_key_id, generation + 1, record.wrapped)
            if self._opens_to(record, plain) and not self._opens_to(other, plain):
                return record.wrapped
        raise UnsupportedTokenError(
            f"the token {self._config.token_label!r} does not do AES-GCM as asked (it may use IVs of its own, or no "
            "associated data): use another token or firmware"
        )

    def unwrap(self, record: WrappedDomainKey, into: memoryview) -> None:
        """Write the domain key into `into`; raises WrappedKeyInvalidError."""
        try:
            secret = self._open(record)
        except _TOKEN_AWAY:
            with mapped(self._config):
                raise
        except exceptions.PKCS11Error:
            # SoftHSM says CKR_GENERAL_ERROR to a wrong tag, others have other words for it, and a broken token may use
            # the same. What tells them apart is whether it still opens what it wraps; if not, this raises why.
            self.wrap(memoryview(bytes(DOMAIN_KEY_BYTES)), record.domain_key_id, 0)
            raise WrappedKeyInvalidError(
                f"domain key {record.domain_key_id!r}: it was changed, or wrapped by another root key; connect the "
                "token that kmsd was set up with, or restore the store from a backup"
            ) from None
        into[:] = secret

    def _opens_to(self, record: WrappedDomainKey, plain: bytes) -> bool:
        try:
            return hmac.compare_digest(self._open(record), plain)
        except exceptions.PKCS11Error:
            return False

    def _open(self, record: WrappedDomainKey) -> bytes:
        sealed = split(record)
        aad = associated_data(record.domain_key_id, record.generation)
        secret: bytes = self._key.decrypt(sealed.body, **_gcm(sealed.iv, aad))
        return secret


def _may_be_root(key: Any) -> bool:
    return (
        key[Attribute.SENSITIVE]
        and not key[Attribute.EXTRACTABLE]
        and key[Attribute.VALUE_LEN] == DOMAIN_KEY_BYTES
        and key[Attribute.ENCRYPT]
        and key[Attribute.DECRYPT]
    )


def _gcm(iv: bytes, aad: bytes) -> dict[str, object]:
    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(iv, aad, 8 * TAG_BYTES)}


@contextmanager
def logged_in(config: TokenConfig, pin: str, *, attended: bool) -> Iterator[pkcs11.Session]:
    """Log in, once, and give a session that reads and uses objects; `attended` as for `check`."""
    token = find_token(config)
    check(config, token, attended=attended)
    with mapped(config):
        session = token.open(user_pin=pin)
    yield session
    # Logging out is a courtesy to the token: the work is done, and the session ends with the process anyway.
    with suppress(exceptions.PKCS11Error):
        session.close()
