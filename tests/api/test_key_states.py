"""In which states of a key each operation works, from its declaration, against AWS KMS's own table."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsd.api import OPERATIONS
from kmsd.api.operation import KeyState
from tests.support.key_state_table import FROZEN, LIKE, acts_on_a_key, read_table

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "aws-kms.md"

_UPDATING = "Updating is a state of multi-Region keys, which there are none of: no operation needs to work in it"
_BY_ORIGIN = (
    "AWS tells of the key's origin and of its key store, which no key here has; it changes nothing in any state"
)
# Where a declaration has it otherwise, and why.
DIFFERENCES = {
    **{
        (name, KeyState.UPDATING): _UPDATING
        for name in (
            "Decrypt",
            "DecryptFile",
            "DisableKeyRotation",
            "EnableKeyRotation",
            "Encrypt",
            "EncryptFile",
            "GenerateDataKey",
            "GenerateDataKeyWithoutPlaintext",
            "ReEncrypt",
            "RotateKeyOnDemand",
        )
    },
    **{
        (name, state): _BY_ORIGIN
        for name in ("GetKeyRotationStatus", "ListKeyRotations")
        for state in (KeyState.PENDING_IMPORT, KeyState.UNAVAILABLE)
    },
}


def test_every_operation_works_in_the_states_that_aws_says() -> None:
    """But for the differences above, each of which there is."""
    table = read_table(FROZEN)
    different = {
        (operation.name, state)
        for operation in OPERATIONS
        if acts_on_a_key(operation)
        for state, cell in table[LIKE.get(operation.name, operation.name)].items()
        if cell.works is not None and cell.works is not (state in operation.usable_in)
    }

    assert different == set(DIFFERENCES)


def test_every_state_is_in_the_table() -> None:
    """A new state has a column of its own."""
    assert all(set(row) == set(KeyState) for row in read_table(FROZEN).values())


def test_what_acts_on_no_key_is_no_matter_of_states() -> None:
    """It would be checked nowhere."""
    assert all(set(one.usable_in) == set(KeyState) for one in OPERATIONS if not acts_on_a_key(one))


def test_the_table_is_the_reference_s() -> None:
    """Where that is at hand: beside the repository, among the facts on AWS KMS."""
    if not REFERENCE.exists():
        pytest.skip("there is no ../shared/reference/aws-kms.md beside the repository to compare with")
    _, _, behind = REFERENCE.read_text(encoding="utf-8").partition("### B.1 ")
    section, _, _ = behind.partition("\n### ")
    reference = {name: row for name, row in read_table(section).items() if name not in {"API", "---"}}

    assert read_table(FROZEN) == reference
