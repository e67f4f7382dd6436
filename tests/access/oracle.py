"""The rules of POLICY.md a second time, over sets, on the JSON of policies; it shares nothing with kmsd.access.

What cannot be told is both: a statement concerns a request with {True}, {False} or {True, False}. A Deny counts when
True is in it, an Allow when nothing else is.
"""

import re
from datetime import datetime
from itertools import product
from typing import Any

Truths = set[bool]
_EITHER = {True, False}
_ATTRIBUTES = {"unit": "unit", "user-unit": "user_unit", "exe": "exe", "administrators": "administrator"}
_BARE = re.compile(r"^(?:(ForAllValues|ForAnyValue):)?(\w+?)(IfExists)?$")


def decide(case: dict[str, Any]) -> tuple[str, str]:
    """Return how the request of `case` is decided, and by what: "key policy", "grant", "host policy" or ""."""
    listed = [("key policy", one) for one in case["key_policy"] or []] + [("host policy", one) for one in case["host"]]
    denies = [origin for origin, one in listed if one["Effect"] == "Deny" and counts(one, case)]
    allows = [origin for origin, one in listed if one["Effect"] == "Allow" and counts(one, case)]
    if denies:
        return "explicitDeny", denies[0]
    if "key policy" in allows:
        return "allowed", "key policy"
    if case["key_policy"] is not None and any(_grants(one, case) for one in case["grants"]):
        return "allowed", "grant"
    if "host policy" in allows and (case["key_policy"] is None or delegates(case)):
        return "allowed", "host policy"
    return "implicitDeny", ""


def counts(statement: dict[str, Any], case: dict[str, Any]) -> bool:
    """Tell whether a statement counts for the request of `case`."""
    concerned = _concerns(statement, case)
    return True in concerned if statement["Effect"] == "Deny" else concerned == {True}


def delegates(case: dict[str, Any]) -> bool:
    """Tell whether the key policy lets the account's root in for the request of `case`."""
    about_root = [one for one in case["key_policy"] if "administrators" in _named(one.get("Principal", []))]
    found = [(one["Effect"], _asks(one, case)) for one in about_root]
    return ("Allow", {True}) in found and not any(effect == "Deny" and True in asks for effect, asks in found)


def _concerns(statement: dict[str, Any], case: dict[str, Any]) -> Truths:
    meant = _any(_means(one, case) for one in _named(statement.get("Principal", statement.get("NotPrincipal"))))
    return _all([{not one for one in meant} if "NotPrincipal" in statement else meant, _asks(statement, case)])


def _asks(statement: dict[str, Any], case: dict[str, Any]) -> Truths:
    action = _fits(statement, "Action", case["action"], re.IGNORECASE)
    resource = _fits(statement, "Resource", case["resource"], 0)
    conditions = statement.get("Condition", {}).items()
    clauses = [_holds(name, key, _list(wanted), case) for name, keys in conditions for key, wanted in keys.items()]
    return _all([{action}, {resource}, *clauses])


def _fits(statement: dict[str, Any], member: str, text: str, flags: int) -> bool:
    patterns = statement.get(member, statement.get(f"Not{member}"))
    return any(_like(text, one, flags) for one in _list(patterns)) is (member in statement)


def _means(principal: str, case: dict[str, Any]) -> Truths:
    caller = case["caller"]
    if _ATTRIBUTES.get(principal.split(":", maxsplit=1)[0]) in caller["undetermined"]:
        return _EITHER
    if principal in case["suspended"]:
        return _EITHER if _names(caller) & set(case["suspended"][principal]) else {False}
    return {principal == "*" or principal in _names(caller)}


def _names(caller: dict[str, Any]) -> set[str]:
    others = {f"{kind}:{caller[name]}" for kind, name in _ATTRIBUTES.items() if kind != "administrators"}
    groups = {f"gid:{gid}" for gid in caller["gids"]}
    return {f"uid:{caller['uid']}"} | groups | others | ({"administrators"} if caller["administrator"] else set())


def _named(principals: Any) -> list[str]:
    listed = [principals] if principals == "*" else [one for found in dict(principals).values() for one in _list(found)]
    return ["administrators" if one.endswith(":root") else one for one in listed]


def _grants(grant: dict[str, Any], case: dict[str, Any]) -> bool:
    pairs = None if case["context"] is None else set(case["context"].items())
    equals, subset = grant.get("equals"), grant.get("subset")
    free = (equals is None and subset is None) or case["action"] in {"kms:DescribeKey", "kms:RetireGrant"}
    met = pairs is not None and (set(equals.items()) == pairs if equals is not None else set(subset or {}) != set())
    met = met and (subset is None or set(subset.items()) <= (pairs or set()))
    given = case["action"] in {f"kms:{one}" for one in grant["operations"]}
    certain = _names(case["caller"]) - {one for one in _names(case["caller"]) if _means(one, case) != {True}}
    return given and grant["grantee"] in certain and (free or met)


def _holds(operator: str, key: str, wanted: list[Any], case: dict[str, Any]) -> Truths:
    quantifier, name, if_exists = _parts(operator)
    values = case["facts"].get(key.lower())
    negated = "Not" in name
    if values == "undetermined":
        return _EITHER
    if name == "Null":
        return {bool(values) is (str(wanted[0]).lower() == "false")}
    if not values:
        return {if_exists or quantifier == "ForAllValues" or (negated and quantifier is None)}
    found = [
        any(_compare(name.replace("Not", ""), value, str(one)) for one in wanted) is not negated for value in values
    ]
    return {all(found) if quantifier == "ForAllValues" else any(found)}


def _parts(operator: str) -> tuple[str | None, str, bool]:
    found = _BARE.match(operator)
    assert found is not None
    return found[1], found[2], found[3] is not None


def _compare(name: str, value: str, wanted: str) -> bool:
    if name.startswith("Arn"):
        parts = zip(value.split(":", 5), wanted.split(":", 5), strict=True)
        return all(_like(part, pattern, 0) for part, pattern in parts)
    if name == "StringLike":
        return _like(value, wanted, 0)
    if name in {"StringEqualsIgnoreCase", "Bool"}:
        return value.lower() == wanted.lower()
    if name == "StringEquals":
        return value == wanted
    have, want = (float(one) if name.startswith("Numeric") else _moment(one) for one in (value, wanted))
    return (
        (have < want and "Less" in name) or (have > want and "Greater" in name) or (have == want and "Equals" in name)
    )


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _like(text: str, pattern: str, flags: int) -> bool:
    escaped = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(escaped, text, flags | re.DOTALL) is not None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _all(parts: Any) -> Truths:
    return {all(world) for world in product(*parts)}


def _any(parts: Any) -> Truths:
    return {any(world) for world in product(*parts)}
