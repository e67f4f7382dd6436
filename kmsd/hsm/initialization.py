"""The jobs that make a root key: in a new SoftHSM token, or in a token that somebody else has set up.

Imported only in a job's process, like `cryptoki`.

python-pkcs11 0.10 has no C_InitToken, so that one function is called through ctypes, in the module that python-pkcs11
has loaded and initialized: dlopen(3) gives the same library for the same path, with the same state.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from pkcs11 import Attribute, KeyType, MechanismFlag, SecretKey, Session, Slot, TokenFlag

from kmsd.hsm.conversation import TokenConfig
from kmsd.hsm.cryptoki import RootKey, check, find_slots, find_token, logged_in, mapped
from kmsd.hsm.root import DOMAIN_KEY_BYTES, RootError, TokenFailedError

# CK_TOKEN_INFO.label (PKCS#11 3.1, 3.2): 32 characters, padded with blanks, no terminator.
_LABEL_BYTES = 32
_CKR_OK = 0


def make_token(config: TokenConfig, pin: str, officer_pin: str, random: Callable[[int], bytes]) -> None:
    """Make the token, its user PIN and its root key in a module that has only an empty slot.

    `officer_pin` (the security officer's) is needed only here. Raises a RootError, also when the module has a token.
    """
    slots = [slot for slot in find_slots(config) if TokenFlag.TOKEN_INITIALIZED not in slot.get_token().flags]
    if len(slots) != 1:
        raise TokenFailedError(f"the module {config.module} has {len(slots)} empty slots instead of one")
    _initialize(config, slots[0], officer_pin)
    token = find_token(config)
    with mapped(config):
        with token.open(rw=True, so_pin=officer_pin) as session:
            session.init_pin(pin)
        with token.open(rw=True, user_pin=pin) as session:
            _generate(config, session)
    with logged_in(config, pin, attended=False) as session:
        RootKey(config, session, random).wrap(memoryview(bytes(DOMAIN_KEY_BYTES)), "trial", 0)


def make_root_key(config: TokenConfig, pin: str, random: Callable[[int], bytes]) -> bool:
    """Make the root key in the token, unless there is one, and return whether it was made; it works then.

    A token that cannot wrap with AES-GCM is refused, and one in which this shows only now keeps no key of ours. Raises
    a RootError.
    """
    token = find_token(config)
    check(config, token, attended=True)
    with mapped(config), token.open(rw=True, user_pin=pin) as session:
        made = None
        # Any key of this label: one that cannot be the root key is told below, and never gets a second beside it.
        if not list(session.get_objects({Attribute.LABEL: config.root_key_label})):
            made = _generate(config, session)
        try:
            RootKey(config, session, random).wrap(memoryview(bytes(DOMAIN_KEY_BYTES)), "trial", 0)
        except RootError:
            if made is not None:
                made.destroy()
            raise
    return made is not None


def _generate(config: TokenConfig, session: Session) -> SecretKey:
    key: SecretKey = session.generate_key(
        KeyType.AES,
        8 * DOMAIN_KEY_BYTES,
        label=config.root_key_label,
        store=True,
        capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
        template={
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.MODIFIABLE: False,
        },
    )
    return key


def _initialize(config: TokenConfig, slot: Slot, officer_pin: str) -> None:
    label = config.token_label.encode()
    if len(label) > _LABEL_BYTES:
        raise TokenFailedError(f"a token's label has at most {_LABEL_BYTES} bytes: shorten {config.token_label!r}")
    init_token = ctypes.CDLL(config.module).C_InitToken
    init_token.argtypes = (ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
    init_token.restype = ctypes.c_ulong
    pin = officer_pin.encode()
    result = init_token(slot.slot_id, pin, len(pin), label.ljust(_LABEL_BYTES))
    if result != _CKR_OK:
        raise TokenFailedError(f"C_InitToken of {config.module} failed with CKR 0x{result:08X}: see its own log")
