"""What conditions ask of a request, answered from its members, the key it is about, the caller and the clock.

`MEMBERS` is the one table from condition keys to the members of requests that answer them: an operation that has the
member has the fact. Where a key is acted on, what that key is answers before the request's members: CreateKey's
`KeySpec` is the kind of key that is to be made, GenerateDataKey's is the length of a data key, and `kms:KeySpec` asks
for the former.

The encryption context of DecryptFile is the one in the message's header, which nobody has authenticated when policies
are asked. That is sound: the data key only unwraps under the very context it was wrapped under, and unwrapping comes
before anything of the key is used, so a context that was changed to suit a policy decrypts nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from kmsd.access.facts import UNDETERMINED, Values
from kmsd.api.grants import GrantConstraints
from kmsd.api.shapes import EncryptionAlgorithm, Tag
from kmsd.identity.principals import Caller
from kmsd.service.identifiers import alias_in
from kmsd.service.records import KeyRecord

# Condition keys by the member that answers them.
MEMBERS = {
    "kms:bypasspolicylockoutsafetycheck": "bypass_policy_lockout_safety_check",
    "kms:datakeypairspec": "key_pair_spec",
    "kms:expirationmodel": "expiration_model",
    "kms:granteeprincipal": "grantee_principal",
    "kms:grantoperations": "operations",
    "kms:keyorigin": "origin",
    "kms:keyspec": "key_spec",
    "kms:keyusage": "key_usage",
    "kms:macalgorithm": "mac_algorithm",
    "kms:messagetype": "message_type",
    "kms:multiregion": "multi_region",
    "kms:policyname": "policy_name",
    "kms:retiringprincipal": "retiring_principal",
    "kms:rotationperiodindays": "rotation_period_in_days",
    "kms:schedulekeydeletionpendingwindowindays": "pending_window_in_days",
    "kms:signingalgorithm": "signing_algorithm",
    "kms:validto": "valid_to",
    "kms:wrappingalgorithm": "wrapping_algorithm",
    "kms:wrappingkeyspec": "wrapping_key_spec",
}
# ReEncrypt does two things, each of which has its own members.
_SIDES = {"kms:ReEncryptFrom": "source_", "kms:ReEncryptTo": "destination_"}
# AWS asks it of these; no grant here is for one of AWS's services.
_FOR_NO_AWS_RESOURCE = frozenset({"kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"})

# What has no such member because it has no choice: data keys, and files, which are wrapped as AWS's SDKs do it.
_SYMMETRIC_ONLY = frozenset({"kms:Decrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext"})

# What AWS tells it for: nothing else takes a key away from those who use it.
_TAKES_KEY_AWAY = frozenset({"kms:ScheduleKeyDeletion", "kms:DisableKey"})

_CONTEXT = "kms:encryptioncontext:"
_RESOURCE_TAG = "aws:resourcetag/"
_REQUEST_TAG = "aws:requesttag/"


@dataclass(frozen=True)
class Surroundings:
    """What facts need of the host: its account id, and a clock that gives seconds since 1970 UTC."""

    account: str
    clock: Callable[[], float]


class CallFacts:
    """The facts of one request for one action.

    `named` is how the request names `key`, `counterpart` the other key of a ReEncrypt. `context` is the encryption
    context where no member of the request is it.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        caller: Caller,
        action: str,
        *,
        request: msgspec.Struct | None = None,
        key: KeyRecord | None = None,
        named: str | None = None,
        counterpart: KeyRecord | None = None,
        context: Mapping[str, str] | None = None,
    ) -> None:
        self._surroundings = surroundings
        self._caller = caller
        self._action = action
        self._request = request
        self._key = key
        self._named = named
        self._counterpart = counterpart
        self._context = context
        self._side = _SIDES.get(action, "")

    def values(self, key: str) -> Values:
        """Return the values of a condition key, which is in lower case."""
        if key.startswith(_CONTEXT):
            return _ignoring_case(self._asked_context() or {}, key.removeprefix(_CONTEXT))
        if key.startswith(_RESOURCE_TAG):
            return _ignoring_case(self._key.row.tags if self._key else {}, key.removeprefix(_RESOURCE_TAG))
        if key.startswith(_REQUEST_TAG):
            return _ignoring_case(self._request_tags(), key.removeprefix(_REQUEST_TAG))
        if (of_caller := _OF_CALLER.get(key)) is not None:
            return of_caller(self._caller, self._surroundings.account)
        if (own := self._OWN.get(key)) is not None:
            return own(self)
        if self._key is not None and (of_key := _OF_KEY.get(key)) is not None:
            return of_key(self._key)
        return _texts(self._member(MEMBERS[key])) if key in MEMBERS else None

    def encryption_context(self) -> dict[str, str] | None:
        """Return the encryption context that the request uses; None if it can have none.

        What CreateGrant says of contexts is not used but given on, and whether it may be is the grants' business.
        """
        given = self._context if self._context is not None else self._member("encryption_context")
        return None if given is None else dict(given)

    def _asked_context(self) -> Mapping[str, str] | None:
        """Return the encryption context as conditions see it: for CreateGrant, as AWS, the new grant's constraint."""
        constraints: GrantConstraints | None = self._member("constraints")
        if constraints is None:
            return self.encryption_context()
        return {**(constraints.encryption_context_subset or {}), **(constraints.encryption_context_equals or {})}

    def _member(self, attribute: str) -> Any:
        return getattr(self._request, self._side + attribute, None)

    def _request_tags(self) -> dict[str, str]:
        tags: list[Tag] = self._member("tags") or []
        return {tag.tag_key: tag.tag_value for tag in tags}

    def _context_keys(self) -> Values:
        return _some(self._asked_context() or ())

    def _tag_keys(self) -> Values:
        return _some([*self._request_tags(), *(self._member("tag_keys") or ())])

    def _request_alias(self) -> Values:
        alias = alias_in(self._named) if self._named is not None else None
        return None if alias is None else (alias,)

    def _constraint_types(self) -> Values:
        constraints: GrantConstraints | None = self._member("constraints")
        if constraints is None:
            return None
        return _some(
            name
            for name, pairs in (
                ("EncryptionContextEquals", constraints.encryption_context_equals),
                ("EncryptionContextSubset", constraints.encryption_context_subset),
            )
            if pairs is not None
        )

    def _for_aws_resource(self) -> Values:
        return ("false",) if self._action in _FOR_NO_AWS_RESOURCE else None

    def _on_same_key(self) -> Values:
        if self._key is None or self._counterpart is None:
            return None
        return _texts(self._key.key_id == self._counterpart.key_id)

    def _days_without_use(self) -> Values:
        if self._key is None or self._action not in _TAKES_KEY_AWAY:
            return None
        days = self._key.use.days_unused()
        return UNDETERMINED if days is None else (str(days),)

    def _time(self) -> Values:
        return _texts(dt.datetime.fromtimestamp(self._surroundings.clock(), dt.UTC))

    def _epoch_time(self) -> Values:
        return (str(int(self._surroundings.clock())),)

    def _algorithm(self) -> Values:
        given = self._member("encryption_algorithm")
        if given is None and self._action in _SYMMETRIC_ONLY:
            given = EncryptionAlgorithm.SYMMETRIC_DEFAULT
        return _texts(given)

    _OWN: ClassVar[dict[str, Callable[[CallFacts], Values]]] = {
        "aws:currenttime": _time,
        "aws:epochtime": _epoch_time,
        "aws:tagkeys": _tag_keys,
        "kms:encryptionalgorithm": _algorithm,
        "kms:encryptioncontextkeys": _context_keys,
        "kms:grantconstrainttype": _constraint_types,
        "kms:grantisforawsresource": _for_aws_resource,
        "kms:reencryptonsamekey": _on_same_key,
        "kms:requestalias": _request_alias,
        "kms:trailingdayswithoutkeyusage": _days_without_use,
    }


def _some(values: Iterable[str]) -> Values:
    return tuple(values) or None


def _texts(value: Any) -> Values:
    """Write a member as conditions read it."""
    if value is None:
        return None
    if isinstance(value, list):
        return _some(str(one) for one in value)
    if isinstance(value, bool):
        return ("true" if value else "false",)
    if isinstance(value, dt.datetime):
        return (value.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),)
    return (str(value),)


def _ignoring_case(pairs: Mapping[str, str], folded: str) -> Values:
    """Return the value of a name in any case: AWS compares names of condition keys so.

    Names that differ in case only give several values, of which no policy that asks for one can tell which.
    """
    return _some(value for name, value in pairs.items() if name.lower() == folded)


def _determined(caller: Caller, attribute: str, value: str | None) -> Values:
    if attribute in caller.undetermined:
        return UNDETERMINED
    return None if value is None else (value,)


def _principal_arn(caller: Caller, account: str) -> Values:
    prefix = f"arn:aws:iam::{account}:"
    if caller.user is not None:
        return (f"{prefix}user/{caller.user}",)
    if "user" in caller.undetermined or "unit" in caller.undetermined:
        return UNDETERMINED
    return None if caller.unit is None else (f"{prefix}role/unit/{caller.unit}",)


_OF_CALLER: dict[str, Callable[[Caller, str], Values]] = {
    "aws:principalaccount": lambda _, account: (account,),
    "aws:principalarn": _principal_arn,
    "kms:calleraccount": lambda _, account: (account,),
    "kmsd:executable": lambda caller, _: _determined(caller, "exe", caller.exe),
    "kmsd:gids": lambda caller, _: tuple(str(gid) for gid in sorted({caller.gid, *caller.groups})),
    "kmsd:systemdunit": lambda caller, _: _determined(caller, "unit", caller.unit),
    "kmsd:uid": lambda caller, _: (str(caller.uid),),
    "kmsd:userunit": lambda caller, _: _determined(caller, "user_unit", caller.user_unit),
}
_OF_KEY: dict[str, Callable[[KeyRecord], Values]] = {
    "kms:keyorigin": lambda key: (key.row.origin,),
    "kms:keyspec": lambda key: (key.row.key_spec,),
    "kms:keyusage": lambda key: (key.row.key_usage,),
    # Keys stay on the host that made them.
    "kms:multiregion": lambda _: ("false",),
    "kms:resourcealiases": lambda key: _some(key.aliases),
}
