"""In which states of a key AWS KMS does what: the table of its developer guide (page "Key states of KMS keys", 2023).

A cell is `OK`, or `X` with the number of its footnote, `?` where the footnote says when; `N/A`: no such key has the
state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kmsd.api.operation import KeyAccess, KeyState, Operation

COLUMNS = (
    KeyState.ENABLED,
    KeyState.DISABLED,
    KeyState.PENDING_DELETION,
    KeyState.PENDING_IMPORT,
    KeyState.UNAVAILABLE,
    KeyState.CREATING,
    KeyState.UPDATING,
)
# As ../shared/reference/aws-kms.md has it in section B.1, but for spaces.
FROZEN = """
CancelKeyDeletion | X[4] | X[4] | OK | X[4] | X[4],[13] | X[4] | X[4]
CreateAlias | OK | OK | X[3] | OK | OK | OK | OK
CreateGrant | OK | X[1] | X[2]or[3] | X[5] | OK | X[14] | OK
Decrypt | OK | X[1] | X[2]or[3] | X[5] | X[11] | X[14] | OK
DeleteAlias | OK | OK | OK | OK | OK | OK | OK
DeleteImportedKeyMaterial | OK[9] | OK[9] | OK[9] | OK(Noeffect) | N/A | X[14] | X[15]
DescribeKey | OK | OK | OK | OK | OK | OK | OK
DisableKey | OK | OK | X[3] | X[5] | OK[12] | X[14] | X[15]
DisableKeyRotation | ?[7] | X[1]or[7] | X[3]or[7] | X[6] | X[7] | X[14] | ?[7]
EnableKey | OK | OK | X[3] | X[5] | OK[12] | X[14] | X[15]
EnableKeyRotation | ?[7] | X[1]or[7] | X[3]or[7] | X[6] | X[7] | X[14] | ?[7]
Encrypt | OK | X[1] | X[2]or[3] | X[5] | X[11] | X[14] | OK
GenerateDataKey | OK | X[1] | X[2]or[3] | X[5] | X[11] | X[14] | OK
GenerateDataKeyPair | OK | X[1] | X[2]or[3] | X[5] | X[11] | X[14] | OK
GenerateDataKeyPairWithoutPlaintext | OK | X[1] | X[2]or[3] | X[5] | X[11] | X[14] | OK
GenerateDataKeyWithoutPlaintext | OK | X[1] | X[2]or[3] | X[5] | X[11] | X[14] | OK
GenerateMac | OK | X[1] | X[2]or[3] | N/A | N/A | X[14] | OK
GetKeyPolicy | OK | OK | OK | OK | OK | OK | OK
GetKeyRotationStatus | ?[7] | ?[7] | ?[7] | X[6] | X[7] | ?[7] | ?[7]
GetParametersForImport | ?[9] | ?[9] | X[8]or[9] | OK | X[9] | X[14] | X[15]
GetPublicKey | OK | X[1] | X[2]or[3] | N/A | N/A | X[14] | OK
ImportKeyMaterial | ?[9] | ?[9] | X[8]or[9] | OK | X[9] | X[14] | OK
ListAliases | OK | OK | OK | OK | OK | OK | OK
ListGrants | OK | OK | OK | OK | OK | OK | OK
ListKeyPolicies | OK | OK | OK | OK | OK | OK | OK
ListResourceTags | OK | OK | OK | OK | OK | OK | OK
PutKeyPolicy | OK | OK | OK | OK | OK | OK | OK
ReEncrypt | OK | X[1] | X[2]or[3] | X[5] | X[11] | X[14] | OK
ReplicateKey | OK | X[1] | X[2]or[3] | X[5] | N/A | X[14] | X[15]
RetireGrant | OK | OK | OK | OK | OK | OK | OK
RevokeGrant | OK | OK | OK | OK | OK | OK | OK
ScheduleKeyDeletion | OK | OK | X[3] | OK | OK | OK | X[15]
Sign | OK | X[1] | X[2]or[3] | N/A | N/A | X[14] | OK
TagResource | OK | OK | X[3] | OK | OK | OK | OK
UntagResource | OK | OK | X[3] | OK | OK | OK | OK
UpdateAlias | OK | OK | ?[10] | OK | OK | OK | OK
UpdateKeyDescription | OK | OK | X[3] | OK | OK | OK | OK
UpdatePrimaryRegion | OK | X[1] | X[2]or[3] | X[5] | N/A | X[14] | OK
Verify | OK | X[1] | X[2]or[3] | N/A | N/A | X[14] | OK
VerifyMac | OK | X[1] | X[2]or[3] | N/A | N/A | X[14] | OK
"""
# Operations without a row by the one whose row is theirs, too: those that are younger than the page, and kmsd's own.
LIKE = {
    # Measured with AWS: refused for a disabled key with footnote 1.
    "RotateKeyOnDemand": "EnableKeyRotation",
    # Tells of what happened.
    "ListKeyRotations": "GetKeyRotationStatus",
    "GetKeyLastUsage": "DescribeKey",
    "EncryptFile": "GenerateDataKey",
    "DecryptFile": "Decrypt",
}


class Cell(NamedTuple):
    """What AWS KMS does when an operation is asked for with a key in a state."""

    text: str

    @property
    def works(self) -> bool | None:
        """Whether it works with a symmetric key that AWS KMS made itself; None if there is no such case.

        Footnote 7 refuses keys that are imported or in a custom key store. Footnote 10 refuses the new key
        of an alias.
        """
        if self.text == "N/A":
            return None
        return self.text.startswith("OK") or self.text == "?[7]"

    @property
    def footnote(self) -> str:
        """The footnote that says how it is refused; of two that are left open the one that kmsd keeps to.

        Footnotes 2 and 3 differ in the code only. What is no longer there, and does not come back by being enabled, is
        an invalid state (3).
        """
        for number in ("[1]", "[3]", "[4]", "[10]"):
            if number in self.text:
                return number
        raise ValueError(f"no footnote that tells how a reachable state is refused: {self.text}")


def read_table(text: str) -> dict[str, dict[KeyState, Cell]]:
    """Read rows of cells between bars, with or without bars around them; spaces do not count."""
    table = {}
    for line in text.splitlines():
        name, *cells = line.replace(" ", "").strip("|").split("|")
        if len(cells) == len(COLUMNS):
            table[name] = dict(zip(COLUMNS, map(Cell, cells), strict=True))
    return table


def acts_on_a_key(operation: Operation[Any, Any]) -> bool:
    """Tell whether a request of the operation is about a key, which it names or which is found by what it has."""
    if operation.key is not None:
        return True
    return not operation.resolves_keys and operation.key_access is not KeyAccess.NONE
