"""The keys under which the rows of a store are written and verified: one is stored, wrapped, the other made of it."""

from __future__ import annotations

from kmsd.material.derivation import Label, derive_into
from kmsd.material.hierarchy import Place
from kmsd.memory.arena import Arena, Slot

ROW_MAC = "row-mac"
# HMAC-SHA-256 takes a key of its own output's size (RFC 2104, section 3).
ROW_MAC_BYTES = 32
ROW_MAC_PLACE = Place("secrets", ROW_MAC, 0, "HMAC_256")
# RFC 7693 takes BLAKE2b keys of up to 64 bytes; this is as strong as the key that it is derived from.
_SET_KEY_BYTES = 32


def derive_set_key(mac_key: Slot, arena: Arena) -> Slot:
    """Return a new slot with the key of the multiset hashes, derived from the row-MAC key.

    The row-MAC key is both an HMAC key and, here, the key of a KDF made of the same HMAC. Their inputs differ in the
    fifth byte: 0x01, the version of the row format, and the first letter of the label.
    """
    set_key = arena.lease(_SET_KEY_BYTES)
    derive_into(mac_key.view, Label.STORE_SET, b"", set_key.view)
    return set_key
