"""The grammar of policies: text to statements. POLICY.md specifies it.

Whatever is not understood is refused, never passed over: a Deny that means nothing here, or an Allow without the
condition it was written with, would grant what its author withheld.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmsd.access.document import read_document
from kmsd.access.rules import Effect, Patterns, RuleTable, Statement
from kmsd.access.wildcards import has_wildcard
from kmsd.api.errors import LimitExceededError, MalformedPolicyDocumentError
from kmsd.identity.principals import ADMINISTRATORS, ANYBODY, Names, Principal, PrincipalKind, parse_principal

# The one version that AWS recommends; the older 2008-10-17 differs in what it does with policy variables.
VERSION = "2012-10-17"
# Each name is looked up in the system's name service when a policy is read, which takes 20 us from a file and more
# from a directory.
MAX_NAMES = 128
# A hard one takes 40 us when an action is first asked about. AWS's own longest key policy, the console's, has 12.
MAX_WILDCARDS = 64

_DOCUMENT_MEMBERS = {"Version", "Id", "Statement"}
_STATEMENT_MEMBERS = {"Sid", "Effect", "Principal", "Action", "Resource"}
# Of AWS's grammar, but not of this version's.
_UNSUPPORTED_MEMBERS = {"Condition", "NotPrincipal", "NotAction", "NotResource"}
# AWS's longest action has 40 characters; with wildcards a pattern can have more, but has no reason to have many more.
_ACTION = re.compile(r"\*|(?i:kms):[A-Za-z0-9*?]{1,64}")
_ACCOUNT = re.compile(r"[0-9]{12}")
_IAM_ARN = re.compile(r"arn:aws:iam::([0-9]{12}):(.+)")
# What a Sid may be and a label shows: printable, so that it is harmless on a terminal and in the audit trail.
_SID = re.compile(r"[ -~\xa1-\xff]{0,128}")

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


class PolicyKind(enum.Enum):
    """Whose policy a document is."""

    KEY = "key policy"
    HOST = "host policy"


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
    _known_members(document, _DOCUMENT_MEMBERS, "the document")
    if document.get("Version") != VERSION:
        raise MalformedPolicyDocumentError(f'Version: only "{VERSION}" is supported, and it must be given')
    if not isinstance(document.get("Id", ""), str):
        raise MalformedPolicyDocumentError("Id: must be a string")
    listed = document.get("Statement")
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list) or (not listed and kind is PolicyKind.KEY):
        raise MalformedPolicyDocumentError("Statement: must be a list of at least one statement")
    reader = _Reader(account=account, names=names, resolved=resolved, kind=kind, origin=origin or kind.value)
    statements = tuple(reader.statement(number, members) for number, members in enumerate(listed, 1))
    named = {str(one): one for one in reader.named}
    return Policy(
        statements=statements,
        principals={said: one.value for said, one in named.items() if one.value is not None},
        suspended=tuple(said for said, one in named.items() if one.suspended),
        table=RuleTable(statements),
    )


def named_in(text: str) -> frozenset[str]:
    """Return the users and groups that the principals of a document name: "user:backup", "group:kms-users".

    What of it is not valid is passed over, `parse_policy` tells it. Raises LimitExceededError when it is too large or
    names too many, and MalformedPolicyDocumentError when it is no JSON object.
    """
    listed = read_document(text).get("Statement")
    found: set[str] = set()
    for members in listed if isinstance(listed, list) else [listed]:
        for name in ("Principal", "NotPrincipal"):
            principals = members.get(name) if isinstance(members, dict) else None
            for said in principals.values() if isinstance(principals, dict) else ():
                texts = [one for one in (said if isinstance(said, list) else [said]) if isinstance(one, str)]
                found |= {_as_unix(one) for one in texts}
    named = frozenset(one for one in found if one.startswith(("user:", "group:")))
    if len(named) > MAX_NAMES:
        raise LimitExceededError(f"A policy may name at most {MAX_NAMES} users and groups.")
    return named


def _as_unix(text: str) -> str:
    arn = _IAM_ARN.fullmatch(text)
    return f"user:{arn[2].removeprefix('user/')}" if arn and arn[2].startswith("user/") else text


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


def _known_members(members: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in members:
        if name in _UNSUPPORTED_MEMBERS:
            raise MalformedPolicyDocumentError(f"{where}: {name} is not supported by this version")
        if name not in known:
            raise MalformedPolicyDocumentError(f"{where}: the member {name!a:.80} is unknown")


class _Reader:
    """Reads the statements of one document, and counts what is bounded over all of them."""

    def __init__(
        self, *, account: str, names: Names, resolved: Mapping[str, int] | None, kind: PolicyKind, origin: str
    ) -> None:
        self._account = account
        self._names = names
        self._resolved = resolved
        self._kind = kind
        self._origin = origin
        self._wildcards = 0
        self.named: list[Principal] = []

    def statement(self, number: int, members: object) -> Statement:
        where = f"statement {number}"
        if not isinstance(members, dict):
            raise MalformedPolicyDocumentError(f"{where}: must be an object")
        _known_members(members, _STATEMENT_MEMBERS, where)
        for name in ("Effect", "Principal", "Action", "Resource"):
            if name not in members:
                raise MalformedPolicyDocumentError(f"{where}: {name} is missing")
        sid = members.get("Sid")
        if sid is not None and not (isinstance(sid, str) and _SID.fullmatch(sid)):
            raise MalformedPolicyDocumentError(f"{where}, Sid: must be a string of at most 128 printable characters")
        effect = members["Effect"]
        if effect not in ("Allow", "Deny"):
            raise MalformedPolicyDocumentError(f'{where}, Effect: must be "Allow" or "Deny"')
        return Statement(
            origin=self._origin,
            number=number,
            sid=sid,
            effect=Effect(effect),
            principals=self._principals(members["Principal"], Effect(effect), f"{where}, Principal"),
            excepting=False,
            actions=Patterns(action.lower() for action in self._actions(members["Action"], f"{where}, Action")),
            resources=Patterns(self._resources(members["Resource"], f"{where}, Resource")),
            condition=None,
        )

    def _actions(self, value: object, where: str) -> list[str]:
        actions = _strings(value, where)
        for action in actions:
            if not _ACTION.fullmatch(action):
                raise MalformedPolicyDocumentError(f'{where}: {action!a:.80} is neither "kms:NAME" nor "*"')
            if has_wildcard(action) and action != "*":
                self._wildcards += 1
        if self._wildcards > MAX_WILDCARDS and self._kind is PolicyKind.KEY:
            raise LimitExceededError(f"A key policy may have at most {MAX_WILDCARDS} actions with wildcards.")
        return actions

    def _resources(self, value: object, where: str) -> list[str]:
        resources = _strings(value, where)
        for resource in resources:
            if resource == "*":
                continue
            if not resource.startswith("arn:aws:kms:"):
                raise MalformedPolicyDocumentError(f'{where}: {resource!a:.80} is neither the ARN of a key nor "*"')
            if "${" in resource:
                raise MalformedPolicyDocumentError(f"{where}: policy variables are not supported")
            if has_wildcard(resource) and self._kind is PolicyKind.KEY:
                raise MalformedPolicyDocumentError(
                    f'{where}: in a key policy, say "*", which means this key, or ARNs without wildcards'
                )
        return resources

    def _principals(self, value: object, effect: Effect, where: str) -> tuple[Principal, ...]:
        if value == "*":
            return (ANYBODY,)
        if not isinstance(value, dict) or not value:
            raise MalformedPolicyDocumentError(f'{where}: must be "*" or an object of types and principals')
        found: list[Principal] = []
        for kind, listed in value.items():
            if kind not in {"AWS", "Unix"}:
                raise MalformedPolicyDocumentError(
                    f'{where}: principals of the type {kind!a:.80} are not supported, only "AWS" and "Unix"'
                )
            read = self._aws if kind == "AWS" else self._unix
            found += [read(text, f"{where}, {kind}") for text in _strings(listed, f"{where}, {kind}")]
        for one in found:
            if effect is Effect.ALLOW and one.kind is PrincipalKind.EXE:
                raise MalformedPolicyDocumentError(
                    f"{where}: exe: proves nothing about who calls; allow a user, a group or a unit, and narrow that "
                    "with the condition kmsd:Executable"
                )
        return tuple(dict.fromkeys(found))

    def _aws(self, text: str, where: str) -> Principal:
        if text == "*":
            return ANYBODY
        arn = _IAM_ARN.fullmatch(text)
        account = arn[1] if arn else text
        if not _ACCOUNT.fullmatch(account):
            raise MalformedPolicyDocumentError(f"{where}: {text!a:.80} is no account id and no ARN of an IAM principal")
        if account != self._account:
            raise MalformedPolicyDocumentError(f"{where}: {text!a:.80} is of another account than {self._account}")
        # The account's id alone is AWS's short form of its root.
        who = arn[2] if arn else "root"
        if who == "root":
            return ADMINISTRATORS
        if who.startswith("user/"):
            return self._unix(f"user:{who.removeprefix('user/')}", where)
        raise MalformedPolicyDocumentError(f"{where}: {text!a:.80} is neither the account's root nor a user")

    def _unix(self, text: str, where: str) -> Principal:
        if text.startswith(("user:", "group:")) and len(self.named) >= MAX_NAMES:
            raise LimitExceededError(f"A policy may name at most {MAX_NAMES} users and groups.")
        try:
            principal = parse_principal(text, self._names, self._resolved)
        except ValueError as error:
            raise MalformedPolicyDocumentError(f"{where}: {error}") from None
        if principal.name is not None:
            self.named.append(principal)
            if principal.value is None and self._resolved is None and self._kind is PolicyKind.KEY:
                raise MalformedPolicyDocumentError(f"{where}: {text!a:.80} does not exist on this host")
        return principal


def _strings(value: object, where: str) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed:
        raise MalformedPolicyDocumentError(f"{where}: must be a string or a list of at least one string")
    strings = [one for one in listed if isinstance(one, str)]
    if len(strings) != len(listed):
        raise MalformedPolicyDocumentError(f"{where}: holds something that is not a string")
    return strings
