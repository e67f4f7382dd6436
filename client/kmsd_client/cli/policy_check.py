"""Tell what a policy says before it is stored: `kms policy check`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kmsd.access.policy import Policy, PolicyKind, parse_policy
from kmsd.api.administration import STATUS, StatusRequest
from kmsd.api.errors import ConnectionLostError, UntrustedServerError
from kmsd.identity.principals import HostNames, NameServiceError
from kmsd_client import Client
from kmsd_client.cli.policies import policy_in
from kmsd_client.cli.terminal import CommandError, note, printable

# An account as AWS principals name it: alone, or in an ARN.
_ACCOUNT = re.compile(r'"(?:arn:aws:iam::)?([0-9]{12})[":]')
# For a policy that names none, with which any is as good.
_NO_ACCOUNT = "000000000000"
# What the principals of AWS's type are called here.
_AWS_ROOT = re.compile(r"(?:arn:aws:iam::)?[0-9]{12}(?::root)?")
_AWS_USER = re.compile(r"arn:aws:iam::[0-9]{12}:user/")
_AWS_UNIT = re.compile(r"arn:aws:iam::[0-9]{12}:role/unit/")
_EVERYBODY = "everybody"


def run_check(options: argparse.Namespace) -> None:
    """Print what a policy says, a line a statement. What is wrong with it is an error that says where."""
    text = policy_in(options.file)
    account = account_of_daemon(options.socket)
    if account is None and (account := _account_in(text)) is not None:
        note(f"no kmsd answered, so the account is taken from the policy: {account}")
    policy = understood(text, account or _NO_ACCOUNT, PolicyKind.HOST if options.host else PolicyKind.KEY)
    for line in _told(json.loads(text), policy.principals):
        print(printable(line))
    for name in policy.suspended:
        note(f"{name} does not exist on this host; the statement allows it nothing until it does")


def understood(text: str, account: str, kind: PolicyKind = PolicyKind.KEY) -> Policy:
    """Return a policy as this host's daemon would understand it. Raises the error that the daemon would answer."""
    try:
        return parse_policy(text, account=account, names=HostNames(), kind=kind)
    except NameServiceError as error:
        raise CommandError(f"the names in the policy cannot be looked up: {error}") from None


def account_of_daemon(socket: str | None) -> str | None:
    """Return the account id of the daemon, None if there is none."""
    try:
        with Client(socket) as client:
            return client.call(STATUS, StatusRequest()).account
    except (ConnectionLostError, UntrustedServerError):
        return None


def _account_in(text: str) -> str | None:
    found = _ACCOUNT.search(text)
    return found and found[1]


def _told(document: dict[str, Any], ids: Mapping[str, int]) -> Iterator[str]:
    """Yield the statements of a valid document in words; `ids` are those of the users and groups it names."""
    for number, statement in enumerate(_listed(document["Statement"]), 1):
        sid = f' "{statement["Sid"]}"' if statement.get("Sid") else ""
        who = _who(statement, ids)
        if statement["Effect"] == "Allow":
            subject = f"{who} may"
        else:
            subject = "nobody may" if who == _EVERYBODY else f"{who} may not"
        yield " ".join([f"{number}{sid}: {subject}", _what(statement), *_conditions(statement)])


def _who(statement: dict[str, Any], ids: Mapping[str, int]) -> str:
    if "NotPrincipal" in statement:
        return f"everybody but {', '.join(_principals(statement['NotPrincipal'], ids))}"
    return ", ".join(_principals(statement["Principal"], ids))


def _principals(value: Any, ids: Mapping[str, int]) -> Iterator[str]:
    named = {"Unix": [value]} if isinstance(value, str) else value
    for text in (text for kind in named.values() for text in _listed(kind)):
        said = _AWS_UNIT.sub("unit:", _AWS_USER.sub("user:", text))
        if said == "*":
            yield _EVERYBODY
        elif _AWS_ROOT.fullmatch(said):
            yield "administrators"
        elif said in ids:
            yield f"{said} ({'uid' if said.startswith('user:') else 'gid'} {ids[said]})"
        else:
            yield said


def _what(statement: dict[str, Any]) -> str:
    if "NotAction" in statement:
        actions = f"anything but {', '.join(_listed(statement['NotAction']))}"
    else:
        actions = ", ".join(_listed(statement["Action"]))
    if "NotResource" in statement:
        return f"{actions} on everything but {', '.join(_listed(statement['NotResource']))}"
    resources = _listed(statement["Resource"])
    return actions if "*" in resources else f"{actions} on {', '.join(resources)}"


def _conditions(statement: dict[str, Any]) -> Iterator[str]:
    word = "if"
    for operator, keys in statement.get("Condition", {}).items():
        for key, values in keys.items():
            wanted = (one if isinstance(one, str) else json.dumps(one) for one in _listed(values))
            yield f"{word} {key} {operator} {' or '.join(wanted)}"
            word = "and"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
