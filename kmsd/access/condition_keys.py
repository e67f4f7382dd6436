"""What conditions may ask about: every condition key, with the type of its values.

POLICY.md has the table for people. What a key is worth in a request, the service tells (`facts.Facts`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ValueType(enum.StrEnum):
    """What the values of a key are, which decides what operators fit."""

    STRING = "string"
    ARN = "ARN"
    BOOL = "bool"
    NUMBER = "number"
    DATE = "date"


@dataclass(frozen=True)
class ConditionKey:
    """A key as AWS writes it; `several` tells whether a request can have several values of it.

    A name that ends in ":" or "/" goes on with a name of the policy's own.
    """

    name: str
    type: ValueType = ValueType.STRING
    several: bool = False

    @property
    def open(self) -> bool:
        """Whether the name goes on with one of the policy's own."""
        return self.name.endswith((":", "/"))


CONDITION_KEYS = (
    ConditionKey("aws:CurrentTime", ValueType.DATE),
    ConditionKey("aws:EpochTime", ValueType.DATE),
    ConditionKey("aws:PrincipalAccount"),
    ConditionKey("aws:PrincipalArn", ValueType.ARN),
    ConditionKey("aws:RequestTag/"),
    ConditionKey("aws:ResourceTag/"),
    ConditionKey("aws:TagKeys", several=True),
    ConditionKey("kms:BypassPolicyLockoutSafetyCheck", ValueType.BOOL),
    ConditionKey("kms:CallerAccount"),
    ConditionKey("kms:DataKeyPairSpec"),
    ConditionKey("kms:EncryptionAlgorithm"),
    ConditionKey("kms:EncryptionContext:"),
    ConditionKey("kms:EncryptionContextKeys", several=True),
    ConditionKey("kms:ExpirationModel"),
    ConditionKey("kms:GrantConstraintType"),
    ConditionKey("kms:GranteePrincipal"),
    ConditionKey("kms:GrantIsForAWSResource", ValueType.BOOL),
    ConditionKey("kms:GrantOperations", several=True),
    ConditionKey("kms:KeyOrigin"),
    ConditionKey("kms:KeySpec"),
    ConditionKey("kms:KeyUsage"),
    ConditionKey("kms:MacAlgorithm"),
    ConditionKey("kms:MessageType"),
    ConditionKey("kms:MultiRegion", ValueType.BOOL),
    ConditionKey("kms:PolicyName"),
    ConditionKey("kms:ReEncryptOnSameKey", ValueType.BOOL),
    ConditionKey("kms:RequestAlias"),
    ConditionKey("kms:ResourceAliases", several=True),
    ConditionKey("kms:RetiringPrincipal"),
    ConditionKey("kms:RotationPeriodInDays", ValueType.NUMBER),
    ConditionKey("kms:ScheduleKeyDeletionPendingWindowInDays", ValueType.NUMBER),
    ConditionKey("kms:SigningAlgorithm"),
    ConditionKey("kms:TrailingDaysWithoutKeyUsage", ValueType.NUMBER),
    ConditionKey("kms:ValidTo", ValueType.DATE),
    ConditionKey("kms:ViaService"),
    ConditionKey("kms:WrappingAlgorithm"),
    ConditionKey("kms:WrappingKeySpec"),
    ConditionKey("kmsd:Executable"),
    ConditionKey("kmsd:Gids", ValueType.NUMBER, several=True),
    ConditionKey("kmsd:SystemdUnit"),
    ConditionKey("kmsd:Uid", ValueType.NUMBER),
    ConditionKey("kmsd:UserUnit"),
)

_BY_NAME = {key.name.lower(): key for key in CONDITION_KEYS}
_OPEN = tuple((name, key) for name, key in _BY_NAME.items() if key.open)


def condition_key(text: str) -> ConditionKey | None:
    """Return the key that `text` names, in whatever case; None if there is none."""
    folded = text.lower()
    if (found := _BY_NAME.get(folded)) is not None:
        return None if found.open else found
    return next((key for name, key in _OPEN if folded.startswith(name)), None)
