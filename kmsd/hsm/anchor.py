"""The anchor in the token: the highest sequence of a store that was seen at an unseal.

A store cannot show by itself that all of it was put back to an earlier day; a number elsewhere can. It is one private
data object (CKO_DATA) for each store, whose value is

    version 0x01 (1) | sequence (8, big-endian)

SoftHSM lets nobody change the value of a data object, so a higher number is a new object, made before the lower one is
destroyed: whatever ends the job in between, the highest number is there, and the next job tidies up.

Imported only in a job's process, like `cryptoki`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pkcs11 import Attribute, ObjectClass, Session, TokenFlag, exceptions

from kmsd.hsm.conversation import TokenConfig
from kmsd.hsm.cryptoki import check, find_token, mapped
from kmsd.hsm.root import AnchorInvalidError

_APPLICATION = "kmsd"
_VERSION = b"\x01"
_SEQUENCE_BYTES = 8

# How tokens say that they have no data objects at all.
_NOT_KNOWN = (
    exceptions.AttributeTypeInvalid,
    exceptions.AttributeValueInvalid,
    exceptions.FunctionNotSupported,
    exceptions.TemplateInconsistent,
)
# And that whoever uses the keys may not make or destroy objects, or that there is no room for any.
_NOT_KEPT = (
    *_NOT_KNOWN,
    exceptions.DeviceMemory,
    exceptions.FunctionRejected,
    exceptions.SessionReadOnly,
    exceptions.TemplateIncomplete,
    exceptions.TokenWriteProtected,
)


class _Anchor(NamedTuple):
    sequence: int
    # Any: the package makes a class for each object, of what its attributes allow.
    object: Any


def read(config: TokenConfig, session: Session, store_id: str) -> int | None:
    """Return the number that the token holds for the store; None when there is none, or the token has no such objects.

    Raises AnchorInvalidError for an object that holds something else: what kmsd did not write may stand in the place of
    a higher number.
    """
    with mapped(config):
        try:
            anchors = _find(config, session, store_id)
        except _NOT_KNOWN:
            return None
    return anchors[-1].sequence if anchors else None


def keep(config: TokenConfig, pin: str, store_id: str, sequence: int, *, attended: bool) -> bool:
    """Log in, have the token hold `sequence` or what is higher, and return whether it does: not every token can."""
    token = find_token(config)
    check(config, token, attended=attended)
    if TokenFlag.WRITE_PROTECTED in token.flags:
        return False
    with mapped(config):
        try:
            with token.open(rw=True, user_pin=pin) as session:
                _raise_to(config, session, store_id, sequence)
        except _NOT_KEPT:
            return False
    return True


def _raise_to(config: TokenConfig, session: Session, store_id: str, sequence: int) -> None:
    anchors = _find(config, session, store_id)
    # Before another is made: a token that makes objects but destroys none must not be filled with them.
    for lower in anchors[:-1]:
        lower.object.destroy()
    if anchors and anchors[-1].sequence >= sequence:
        return
    value = _VERSION + sequence.to_bytes(_SEQUENCE_BYTES, "big")
    session.create_object({**_template(store_id), Attribute.MODIFIABLE: True, Attribute.VALUE: value})
    for lower in anchors[-1:]:
        lower.object.destroy()


def _find(config: TokenConfig, session: Session, store_id: str) -> list[_Anchor]:
    """Return the store's anchors, the highest last."""
    anchors = []
    for found in list(session.get_objects(_template(store_id))):
        value = found[Attribute.VALUE]
        if len(value) != len(_VERSION) + _SEQUENCE_BYTES or not value.startswith(_VERSION):
            raise AnchorInvalidError(
                f"the data object {_label(store_id)!r} in the token {config.token_label!r} is not as kmsd writes it: a "
                "newer kmsd or another program did; if you are sure that the store is the newest one, delete the "
                "object with the token's own tool and unseal"
            )
        anchors.append(_Anchor(int.from_bytes(value[len(_VERSION) :], "big"), found))
    return sorted(anchors, key=lambda anchor: anchor.sequence)


def _template(store_id: str) -> dict[Attribute, object]:
    return {
        Attribute.CLASS: ObjectClass.DATA,
        Attribute.TOKEN: True,
        # Without the PIN, public objects are all that can be made.
        Attribute.PRIVATE: True,
        Attribute.APPLICATION: _APPLICATION,
        Attribute.LABEL: _label(store_id),
    }


def _label(store_id: str) -> str:
    return f"kmsd-store-{store_id}"
