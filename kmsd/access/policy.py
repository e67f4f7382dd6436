"""Policies: text to what is evaluated. POLICY.md specifies them.

Whatever is not understood is refused, never passed over: a Deny that means nothing here, or an Allow without the
condition it was written with, would grant what its author withheld.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kmsd.access.document import read_document
from kmsd.access.grammar import (
    MAX_NAMES,
    MAX_WILDCARDS,
    PolicyKind,
    StatementReader,
    as_unix,
    check_members,
    names_exceeded,
)
from kmsd.access.places import DOCUMENT, GrammarError, line_and_column, locate
from kmsd.access.rules import RuleTable, Statement
from kmsd.api.errors import MalformedPolicyDocumentError
from kmsd.identity.principals import Names

__all__ = [
    "MANAGEMENT_ACTIONS",
    "MAX_NAMES",
    "MAX_WILDCARDS",
    "VERSION",
    "Policy",
    "PolicyKind",
    "default_key_policy",
    "named_in",
    "parse_policy",
]

# The one version that AWS recommends; the older 2008-10-17 differs in what it does with policy variables.
VERSION = "2012-10-17"
_DOCUMENT_MEMBERS = ("Version", "Id", "Statement")

# What administrators may do with a key under the default policy: manage it and let others use it. Left out is what
# uses the material (Encrypt, Decrypt, Sign, ...) and ImportKeyMaterial, since who brings material knows it.
MANAGEMENT_ACTIONS = (
    "kms:CancelKeyDeletion",
    "kms:CreateAlias",
    "kms:CreateGrant",
    "kms:DeleteAlias",
    "kms:DeleteImportedKeyMaterial",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetKeyLastUsage",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListKeyRotations",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:RevokeGrant",
    "kms:RotateKeyOnDemand",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateAlias",
    "kms:UpdateKeyDescription",
)


@dataclass(frozen=True)
class Policy:
    """A policy that was understood.

    `principals` gives the ids that the names in it were resolved to, by the principals' texts; it is to be stored with
    the policy. `suspended` lists the texts of principals whose name no longer leads there: their statements allow
    nothing to anybody by that name, and deny to everybody who may be meant.
    """

    statements: tuple[Statement, ...]
    principals: Mapping[str, int]
    suspended: tuple[str, ...]
    table: RuleTable


def parse_policy(
    text: str,
    *,
    account: str,
    names: Names,
    resolved: Mapping[str, int] | None = None,
    kind: PolicyKind = PolicyKind.KEY,
    origin: str | None = None,
) -> Policy:
    """Return the policy that `text` holds, compiled.

    `account` is the host's own account id. `resolved` gives the ids that names had when a stored policy was written;
    without it, names are looked up and a key policy may only name users and groups that exist. `origin` is what
    decisions call the document. Raises LimitExceededError when it is too large and MalformedPolicyDocumentError, which
    tells where and what, when it is not valid.
    """
    document = read_document(text)
    reader = StatementReader(account=account, names=names, resolved=resolved, kind=kind, origin=origin or kind.value)
    try:
        statements = tuple(_statements(document, kind, reader))
    except GrammarError as error:
        where = line_and_column(text, locate(text, error.place))
        raise MalformedPolicyDocumentError(f"{where}: {error.place.label}: {error.problem}") from None
    named = {str(one): one for one in reader.named}
    return Policy(
        statements=statements,
        principals={said: one.value for said, one in named.items() if one.value is not None},
        suspended=tuple(said for said, one in named.items() if one.suspended),
        table=RuleTable(statements),
    )


def _statements(document: dict[str, Any], kind: PolicyKind, reader: StatementReader) -> Iterator[Statement]:
    check_members(document, _DOCUMENT_MEMBERS, DOCUMENT)
    if document.get("Version") != VERSION:
        at = DOCUMENT.member("Version") if "Version" in document else replace(DOCUMENT, label="Version")
        raise GrammarError(at, f'only "{VERSION}" is supported, and it must be given')
    if not isinstance(document.get("Id", ""), str):
        raise GrammarError(DOCUMENT.member("Id"), "must be a string")
    listed = document.get("Statement")
    place = DOCUMENT.member("Statement")
    if isinstance(listed, dict):
        yield reader.statement(1, listed, replace(place, label="statement 1"))
    elif not isinstance(listed, list) or (not listed and kind is PolicyKind.KEY):
        at = place if "Statement" in document else replace(DOCUMENT, label="Statement")
        raise GrammarError(at, "must be a list of at least one statement")
    else:
        for number, members in enumerate(listed, 1):
            yield reader.statement(number, members, replace(place.item(number - 1), label=f"statement {number}"))


def named_in(text: str) -> frozenset[str]:
    """Return the users and groups that the principals of a document name: "user:backup", "group:kms-users".

    What of it is not valid is passed over, `parse_policy` tells it. Raises LimitExceededError when it is too large or
    names too many, and MalformedPolicyDocumentError when it is no JSON object.
    """
    listed = read_document(text).get("Statement")
    said = [
        text
        for members in (listed if isinstance(listed, list) else [listed])
        if isinstance(members, dict)
        for name in ("Principal", "NotPrincipal")
        for text in _principal_texts(members.get(name))
    ]
    named = frozenset(text for text in map(as_unix, said) if text.startswith(("user:", "group:")))
    if len(named) > MAX_NAMES:
        raise names_exceeded()
    return named


def _principal_texts(value: object) -> Iterator[str]:
    for said in value.values() if isinstance(value, dict) else ():
        yield from (one for one in (said if isinstance(said, list) else [said]) if isinstance(one, str))


def default_key_policy(account: str, creator_uid: int, creator_user: str | None = None) -> str:
    """Return the policy of a key that was made without one.

    Its creator may do everything with it; administrators may manage it and let others, but not use it. With
    `creator_user`, the name of `creator_uid`, the policy names the user, so that an account that gets the same uid
    later inherits nothing.
    """
    creator = f"uid:{creator_uid}" if creator_user is None else f"user:{creator_user}"
    return json.dumps(
        {
            "Version": VERSION,
            "Id": "key-default-1",
            "Statement": [
                {
                    "Sid": "Allow administrators to manage the key",
                    "Effect": "Allow",
                    "Principal": {"AWS": f"arn:aws:iam::{account}:root"},
                    "Action": MANAGEMENT_ACTIONS,
                    "Resource": "*",
                },
                {
                    "Sid": "Allow the creator to manage and use the key",
                    "Effect": "Allow",
                    "Principal": {"Unix": creator},
                    "Action": "kms:*",
                    "Resource": "*",
                },
            ],
        },
        indent=2,
    )
