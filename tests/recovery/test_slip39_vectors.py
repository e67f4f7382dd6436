"""The package that splits and combines does as SLIP-0039 says: its published vectors, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shamir_mnemonic

from kmsd.recovery.shares import SharesError, read_shares

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "slip39" / "vectors.json").read_text())
PASSPHRASE = b"TREZOR"


def name_of(vector: Any) -> str:
    return str(vector[0])


def test_all_vectors_are_there() -> None:
    assert len(VECTORS) == 45


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_a_published_vector_gives_its_secret_or_is_refused(vector: list[Any]) -> None:
    """Whatever SLIP-0039 calls valid gives the secret it says; everything else is refused."""
    _, mnemonics, secret, _ = vector
    if secret:
        assert shamir_mnemonic.combine_mnemonics(mnemonics, PASSPHRASE).hex() == secret
    else:
        with pytest.raises(shamir_mnemonic.MnemonicError):
            shamir_mnemonic.combine_mnemonics(mnemonics, PASSPHRASE)


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if not vector[2]], ids=name_of)
def test_what_the_standard_refuses_makes_no_recovery_key(vector: list[Any]) -> None:
    """Our own checks, which come first, let none of it pass."""
    with pytest.raises(SharesError):
        read_shares("\n".join(vector[1])).combine()
