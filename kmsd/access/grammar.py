"""The grammar of statements: JSON's values to what is evaluated. POLICY.md specifies it.

Whatever is not understood is refused, never passed over: a Deny that means nothing here, or an Allow without the
condition it was written with, would grant what its author withheld.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kmsd.access.condition_grammar import ConditionReader
from kmsd.access.conditions import Condition
from kmsd.access.places import GrammarError, Place
from kmsd.access.rules import AllBut, Effect, Patterns, Selection, Statement
from kmsd.access.wildcards import has_wildcard
from kmsd.api.errors import LimitExceededError
from kmsd.identity.principals import ADMINISTRATORS, ANYBODY, Names, Principal, PrincipalKind, parse_principal

# Each name is looked up in the system's name service when a policy is read, which takes 20 us from a file and more
# from a directory.
MAX_NAMES = 128
# A hard one takes 40 us when it is read. AWS's own longest key policy, the console's, has 12.
MAX_WILDCARDS = 64

_STATEMENT_MEMBERS = (
    *("Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"),
)
# AWS's longest action has 40 characters; with wildcards a pattern can have more, but has no reason to have many more.
# Without regard to ASCII's case only: in Unicode's, U+017F is an S as well, but not when actions are compared.
_ACTION = re.compile(r"\*|(?i:kms):[A-Za-z0-9*?]{1,64}", re.ASCII)
_ACCOUNT = re.compile(r"[0-9]{12}")
_IAM_ARN = re.compile(r"arn:aws:iam::([0-9]{12}):(.+)")
# What an ARN's last part begins with, and what the principal is called here.
_ARN_KINDS = {"user/": "user:", "role/unit/": "unit:"}
# What a Sid may be and a label shows: printable, so that it is harmless on a terminal and in the audit trail.
_SID = re.compile(r"[ -~\xa1-\xff]{0,128}")


class PolicyKind(enum.Enum):
    """Whose policy a document is."""

    KEY = "key policy"
    HOST = "host policy"


class StatementReader:
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
        self._conditions = ConditionReader()
        self.named: list[Principal] = []

    def statement(self, number: int, members: object, place: Place) -> Statement:
        """Return the statement that `members` are; raises GrammarError and LimitExceededError."""
        if not isinstance(members, dict):
            raise GrammarError(place, "must be an object")
        check_members(members, _STATEMENT_MEMBERS, place)
        sid = members.get("Sid")
        if "Sid" in members and not (isinstance(sid, str) and _SID.fullmatch(sid)):
            raise GrammarError(place.member("Sid"), "must be a string of at most 128 printable characters")
        effect = _effect(members, place)
        principals, excepting = self._principals(members, effect, place)
        actions = self._actions(members, place)
        resources = self._resources(members, place)
        condition = None
        if "Condition" in members:
            condition = self._conditions.condition(members["Condition"], place.member("Condition"))
        if effect is Effect.ALLOW and ANYBODY in principals and condition and _asks_for_program_only(condition):
            raise GrammarError(
                place.member("Condition"),
                "kmsd:Executable proves nothing about who calls, and nothing else narrows this Allow for everybody",
            )
        return Statement(
            origin=self._origin,
            number=number,
            sid=sid,
            effect=effect,
            principals=principals,
            excepting=excepting,
            actions=actions,
            resources=resources,
            condition=condition,
        )

    def _actions(self, members: dict[str, Any], place: Place) -> Selection:
        name = _one_of("Action", "NotAction", members, place)
        actions = _strings(members[name], place.member(name))
        for index, action in enumerate(actions.texts):
            if not _ACTION.fullmatch(action):
                raise GrammarError(actions.at(index), f'{action!a:.80} is neither "kms:NAME" nor "*"')
            if has_wildcard(action) and action != "*":
                self._wildcards += 1
        if self._wildcards > MAX_WILDCARDS and self._kind is PolicyKind.KEY:
            raise LimitExceededError(f"A key policy may have at most {MAX_WILDCARDS} actions with wildcards.")
        patterns = Patterns(action.lower() for action in actions.texts)
        return patterns if name == "Action" else AllBut(patterns)

    def _resources(self, members: dict[str, Any], place: Place) -> Selection:
        name = _one_of("Resource", "NotResource", members, place)
        resources = _strings(members[name], place.member(name))
        for index, resource in enumerate(resources.texts):
            if resource != "*" and (problem := self._resource_problem(resource)) is not None:
                raise GrammarError(resources.at(index), problem)
        patterns = Patterns(resources.texts)
        return patterns if name == "Resource" else AllBut(patterns)

    def _resource_problem(self, resource: str) -> str | None:
        if not resource.startswith("arn:aws:kms:"):
            return f'{resource!a:.80} is neither the ARN of a key nor "*"'
        if "${" in resource:
            return "policy variables are not supported"
        if has_wildcard(resource) and self._kind is PolicyKind.KEY:
            return 'in a key policy, say "*", which means this key, or ARNs without wildcards'
        return None

    def _principals(self, members: dict[str, Any], effect: Effect, place: Place) -> tuple[tuple[Principal, ...], bool]:
        """Return the principals, and whether the statement is about everybody but them."""
        name = _one_of("Principal", "NotPrincipal", members, place)
        at = place.member(name)
        excepting = name == "NotPrincipal"
        if excepting and effect is Effect.ALLOW:
            raise GrammarError(
                at, "goes with Deny only: an Allow for all but some would be for everybody who is not thought of"
            )
        found: dict[Principal, Place] = {}
        for text, said_at, kind in _principal_texts(members[name], at):
            read = self._aws if kind == "AWS" else self._unix
            found.setdefault(read(text, said_at), said_at)
        for one, said_at in found.items():
            if effect is Effect.ALLOW and one.kind is PrincipalKind.EXE:
                raise GrammarError(
                    said_at,
                    "exe: proves nothing about who calls; allow a user, a group or a unit, and narrow that with the "
                    "condition kmsd:Executable",
                )
        return tuple(found), excepting

    def _aws(self, text: str, place: Place) -> Principal:
        if text == "*":
            return ANYBODY
        arn = _IAM_ARN.fullmatch(text)
        account = arn[1] if arn else text
        if not _ACCOUNT.fullmatch(account):
            raise GrammarError(place, f"{text!a:.80} is no account id and no ARN of an IAM principal")
        if account != self._account:
            raise GrammarError(place, f"{text!a:.80} is of another account than {self._account}")
        # The account's id alone is AWS's short form of its root.
        if arn is None or arn[2] == "root":
            return ADMINISTRATORS
        if (meant := as_unix(text)) != text:
            return self._unix(meant, place)
        raise GrammarError(place, f"{text!a:.80} is neither the account's root nor user/NAME nor role/unit/NAME")

    def _unix(self, text: str, place: Place) -> Principal:
        if text.startswith(("user:", "group:")) and len(self.named) >= MAX_NAMES:
            raise names_exceeded()
        try:
            principal = parse_principal(text, self._names, self._resolved)
        except ValueError as error:
            raise GrammarError(place, str(error)) from None
        if principal.name is not None:
            self.named.append(principal)
            if principal.value is None and self._resolved is None and self._kind is PolicyKind.KEY:
                raise GrammarError(place, f"{text!a:.80} does not exist on this host")
        return principal


def as_unix(text: str) -> str:
    """Return what the ARN of a user or unit is called here; any other text is returned as it is."""
    arn = _IAM_ARN.fullmatch(text)
    for prefix, kind in _ARN_KINDS.items() if arn else ():
        if arn and arn[2].startswith(prefix):
            return kind + arn[2].removeprefix(prefix)
    return text


def names_exceeded() -> LimitExceededError:
    """Return the refusal of a policy that names too many users and groups."""
    return LimitExceededError(f"A policy may name at most {MAX_NAMES} users and groups.")


def check_members(members: Mapping[str, object], known: Iterable[str], place: Place) -> None:
    """Raise GrammarError for a member of an object that is none of those that are known."""
    for name in members:
        if name not in known:
            raise GrammarError(place.name(name), f"the member {name!a:.80} is unknown")


def _effect(members: dict[str, Any], place: Place) -> Effect:
    if "Effect" not in members:
        raise GrammarError(place, "Effect is missing")
    if members["Effect"] not in ("Allow", "Deny"):
        raise GrammarError(place.member("Effect"), 'must be "Allow" or "Deny"')
    return Effect(members["Effect"])


def _one_of(name: str, opposite: str, members: dict[str, Any], place: Place) -> str:
    """Return which of two members, that exclude each other, a statement has."""
    if name in members and opposite in members:
        raise GrammarError(place.name(opposite), f"{name} and {opposite} exclude each other")
    if opposite in members:
        return opposite
    if name not in members:
        raise GrammarError(place, f"{name} is missing")
    return name


def _asks_for_program_only(condition: Condition) -> bool:
    return all(clause.key == "kmsd:executable" for clause in condition.clauses)


def _principal_texts(value: object, place: Place) -> list[tuple[str, Place, str]]:
    """Return what is said of whom, with its place and its type."""
    if value == "*":
        return [("*", place, "Unix")]
    if not isinstance(value, dict) or not value:
        raise GrammarError(place, 'must be "*" or an object of types and principals')
    found: list[tuple[str, Place, str]] = []
    for kind, said in value.items():
        if kind not in {"AWS", "Unix"}:
            raise GrammarError(
                place.name(kind), f'principals of the type {kind!a:.80} are not supported, only "AWS" and "Unix"'
            )
        strings = _strings(said, place.member(kind))
        found += [(text, strings.at(index), kind) for index, text in enumerate(strings.texts)]
    return found


@dataclass(frozen=True)
class _Strings:
    """A string, or those of a list, of which each has a place."""

    texts: list[str]
    place: Place
    listed: bool

    def at(self, index: int) -> Place:
        return self.place.item(index) if self.listed else self.place


def _strings(value: object, place: Place) -> _Strings:
    if isinstance(value, str):
        return _Strings([value], place, listed=False)
    if not isinstance(value, list) or not value:
        raise GrammarError(place, "must be a string or a list of at least one string")
    for index, one in enumerate(value):
        if not isinstance(one, str):
            raise GrammarError(place.item(index), "holds something that is not a string")
    return _Strings(value, place, listed=True)
