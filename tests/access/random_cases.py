"""Random policies and requests, in small vocabularies so that they meet: plain JSON, which the oracle reads too."""

import functools
import random
from typing import Any

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER_KEY = f"arn:aws:kms:local:{ACCOUNT}:key/ffffffff-12ab-34cd-56ef-1234567890ab"
# "user:moved" was uid 1000 when its policy was stored and is 1001 now; "group:moved" likewise.
RESOLVED = {"user:moved": 1000, "group:moved": 10}
NOW = {"users": {"moved": 1001}, "groups": {"moved": 11}}
SUSPENDED = {"user:moved": ["uid:1000", "uid:1001"], "group:moved": ["gid:10", "gid:11"]}

_UNIX = ("uid:1000", "uid:1001", "gid:10", "gid:11", "unit:a.service", "unit:b.service", "user-unit:1000/a.service")
_SPECIAL = ("administrators", "user:moved", "group:moved", "*")
_ROOT = f"arn:aws:iam::{ACCOUNT}:root"
_ACTIONS = ("kms:Decrypt", "kms:Encrypt", "kms:DescribeKey", "kms:PutKeyPolicy")
_ACTION_PATTERNS = (*_ACTIONS, "kms:*", "kms:*", "*", "KMS:decrypt", "kms:?ncrypt", "kms:De*", "kms:*Key*")
_OPERATIONS = ("Decrypt", "Encrypt", "DescribeKey")
_PAIRS = (("app", "web"), ("app", "db"), ("Stage", "a"), ("Stage", "b"))

# Condition keys with what conditions want and requests have of them; the last tells whether there may be several.
_TEXTS = ("web", "Web", "db", "")
_NUMBERS = ("7", "8", "30")
_DATES = ("2026-01-01T00:00:00Z", "2026-07-01T00:00:00Z", "2026-07-01T00:00:00.5Z")
_ARNS = (f"arn:aws:iam::{ACCOUNT}:user/a", f"arn:aws:iam::{ACCOUNT}:role/unit/a.service")
_ARN_PATTERNS = (*_ARNS, f"arn:aws:iam::{ACCOUNT}:*", "arn:aws:iam::*:user/?", "arn:aws:*:*:user/a:*")
_STRING_OPERATORS = ("StringEquals", "StringNotEquals", "StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase")
_ORDERS = ("Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals")
_KEYS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], bool], ...] = (
    ("kms:RequestAlias", _STRING_OPERATORS, _TEXTS, _TEXTS, False),
    ("kms:KeySpec", ("StringLike", "StringNotLike"), (*_TEXTS, "*", "?b", "w*"), _TEXTS, False),
    ("kms:RotationPeriodInDays", tuple(f"Numeric{one}" for one in _ORDERS), _NUMBERS, _NUMBERS, False),
    ("kms:ValidTo", tuple(f"Date{one}" for one in _ORDERS), _DATES, _DATES, False),
    ("kms:MultiRegion", ("Bool",), ("true", "false"), ("true", "false"), False),
    ("aws:PrincipalArn", ("ArnEquals", "ArnLike", "ArnNotEquals", "ArnNotLike"), _ARN_PATTERNS, _ARNS, False),
    ("aws:TagKeys", (*_STRING_OPERATORS, "StringLike", "StringNotLike"), (*_TEXTS, "w*"), _TEXTS, True),
    ("kmsd:Gids", tuple(f"Numeric{one}" for one in _ORDERS), _NUMBERS, _NUMBERS, True),
)


def random_case(source: random.Random) -> dict[str, Any]:
    """Return a key policy (or none), a host policy, grants, and a request with all that can be asked of it."""
    key_policy = [random_statement(source, "key") for _ in range(source.randint(1, 4))] if _often(source) else None
    return {
        "key_policy": key_policy,
        "host": source.choice(_host_policies()),
        "grants": [_grant(source) for _ in range(source.choice((0, 0, 1, 2)))],
        "suspended": SUSPENDED,
        **random_request(source),
    }


@functools.cache
def _host_policies() -> list[list[dict[str, Any]]]:
    # So few that what is compiled of them can be kept.
    source = random.Random(0)
    return [[random_statement(source, "host") for _ in range(number % 4)] for number in range(400)]


def random_request(source: random.Random) -> dict[str, Any]:
    """Return who asks for what, with which facts."""
    undetermined = [one for one in ("unit", "user_unit", "exe", "administrator") if source.random() < 0.1]
    unknown = {"administrator": False}
    known = {
        "unit": source.choice(("a.service", "b.service", None)),
        "user_unit": source.choice(("1000/a.service", None)),
        "exe": source.choice(("/usr/bin/a", "/usr/bin/b", None)),
        "administrator": source.random() < 0.3,
    }
    context = dict(_some(source, _PAIRS, 2)) if source.random() < 0.7 else None
    return {
        "caller": {
            "uid": source.choice((1000, 1001, 0)),
            "gids": [source.choice((10, 11, 12)) for _ in range(2)],
            "undetermined": undetermined,
            **{name: unknown.get(name) if name in undetermined else value for name, value in known.items()},
        },
        "action": source.choice(_ACTIONS),
        "resource": KEY,
        "context": context,
        "facts": _facts(source),
    }


def random_statement(source: random.Random, kind: str, effect: str | None = None) -> dict[str, Any]:
    """Return a statement of a key policy or host policy; mostly Allows."""
    effect = effect or source.choice(("Allow", "Allow", "Allow", "Deny"))
    # An exe: is refused in an Allow, a name that leads nowhere in a host policy's Deny.
    more = (*_SPECIAL, "exe:/usr/bin/a") if effect == "Deny" else _SPECIAL
    principals = [one for one in (*_UNIX, *more) if kind == "key" or not one.endswith(":moved")]
    principal: Any = {"Unix": _some(source, principals, 2) or "*"}
    if source.random() < 0.3:
        principal["AWS"] = _ROOT
    elif source.random() < 0.4:
        principal = "*"
    excepting = effect == "Deny" and source.random() < 0.2
    actions = source.choice(_ACTION_PATTERNS) if _often(source) else [*_some(source, _ACTIONS, 2), "kms:Sign"]
    resources = source.choice(("*", "*", "*", "*", KEY, OTHER_KEY, [KEY, OTHER_KEY]))
    statement = {
        "Effect": effect,
        "NotPrincipal" if excepting else "Principal": principal,
        "Action" if source.random() < 0.85 else "NotAction": actions,
        "Resource" if resources == "*" or source.random() < 0.7 else "NotResource": resources,
    }
    return statement if source.random() < 0.5 else statement | {"Condition": _condition(source)}


def _condition(source: random.Random) -> dict[str, dict[str, Any]]:
    condition: dict[str, dict[str, Any]] = {}
    for key, operators, wanted, _, several in _some(source, _KEYS, 2) or [source.choice(_KEYS)]:
        operator = source.choice(operators)
        if source.random() < 0.15:
            condition.setdefault("Null", {})[key] = source.choice(("true", "false", True, False))
            continue
        operator = f"{source.choice(('ForAllValues', 'ForAnyValue'))}:{operator}" if several else operator
        operator += source.choice(("", "", "IfExists"))
        condition.setdefault(operator, {})[source.choice((key, key.lower()))] = _some(source, wanted, 2) or wanted[0]
    return condition


def _facts(source: random.Random) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for key, _, _, values, several in _KEYS:
        kind = source.random()
        if kind < 0.1:
            facts[key.lower()] = "undetermined"
        elif kind < 0.8:
            facts[key.lower()] = _some(source, values, 2) if several else [source.choice(values)]
    return facts


def _grant(source: random.Random) -> dict[str, Any]:
    constraint = source.choice(("none", "none", "equals", "subset"))
    pairs = dict(_some(source, _PAIRS, 2) or _PAIRS[:1])
    return {
        "id": source.randrange(1 << 64),
        "grantee": source.choice((*_UNIX, "administrators")),
        "operations": _some(source, _OPERATIONS, 3) or ["Decrypt"],
        **({} if constraint == "none" else {constraint: pairs}),
    }


def _some(source: random.Random, vocabulary: Any, most: int) -> list[Any]:
    return source.sample(vocabulary, source.randint(0, most))


def _often(source: random.Random) -> bool:
    return source.random() < 0.8
