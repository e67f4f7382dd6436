"""The policy of default keys, which kmsd makes and looks after itself: a template, by version."""

from __future__ import annotations

import json

# Which template `default_key_template` writes. Whoever changes it raises this: kmsd then writes the policies of the
# default keys that there are anew.
TEMPLATE = 2

# Left out is whatever changes the key or lets others in: that is kmsd's alone.
_OWNERS_ACTIONS = (
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey*",
    "kms:GetKeyLastUsage",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyRotations",
    "kms:ListResourceTags",
    "kms:ReEncrypt*",
)
# What administrators may see of a key that they can neither use nor change.
_ADMINISTRATORS_ACTIONS = (
    "kms:DescribeKey",
    "kms:GetKeyLastUsage",
    "kms:GetKeyPolicy",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListResourceTags",
)


def default_key_template(owner: str) -> str:
    """Return the policy of the default key of `owner`, a principal: "user:alice" or "unit:nginx.service".

    Its owner may use it, and administrators may look at it. Nobody may change it or give it to others. Host policies
    can only let others look at it, as the account's root is let in for no more.
    """
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Id": f"default-key-{TEMPLATE}",
            "Statement": [
                _allow("Allow its owner to use the key", owner, _OWNERS_ACTIONS),
                _allow("Allow administrators to look at the key", "administrators", _ADMINISTRATORS_ACTIONS),
            ],
        },
        indent=2,
    )


def _allow(sid: str, principal: str, actions: tuple[str, ...]) -> dict[str, object]:
    return {"Sid": sid, "Effect": "Allow", "Principal": {"Unix": principal}, "Action": actions, "Resource": "*"}
