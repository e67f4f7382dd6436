"""Tell why a request was refused, or whether somebody may do something and what decides it."""

from __future__ import annotations

import argparse
import os
import pwd
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kmsd.api.errors import AccessDeniedError, NotFoundError
from kmsd.api.grants import GrantOperation
from kmsd.api.operation import action_of
from kmsd.api.policies import (
    EXPLAIN_REFUSAL,
    SIMULATE_POLICY,
    ExplainRefusalRequest,
    Outcome,
    SimulatePolicyRequest,
    SimulationResult,
    TraceEntry,
)
from kmsd_client import Client
from kmsd_client.cli.sharing import DECRYPTING, ENCRYPTING
from kmsd_client.cli.terminal import (
    EXIT_USAGE,
    CommandError,
    add_context_option,
    add_json_option,
    context_of,
    print_json,
    printable,
)

if TYPE_CHECKING:
    from kmsd_client.cli.audit_records import Record

_REQUEST_ID = re.compile(r"[0-9a-f]{8,64}")
_PREFIX = action_of("")
_UID = re.compile(r"\buid (\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.usage = "kms why [-h] [--json] (REQUEST-ID | [--as PRINCIPAL ...] [-c NAME=VALUE ...] ACTION [KEY])"
    parser.epilog = (
        "The exit code is 0 whenever there is an answer, be it that something is not allowed; programs read it from "
        "--json. Everybody may ask about himself, administrators about anybody."
    )
    parser.add_argument("what", metavar="REQUEST-ID|ACTION", help="as a refusal gives it, or as in a policy: Decrypt")
    parser.add_argument("key", nargs="?", metavar="KEY", help="key id, key ARN, alias or alias ARN")
    parser.add_argument(
        "--as",
        action="append",
        default=[],
        metavar="PRINCIPAL",
        dest="principals",
        help="who asks, otherwise you: user:NAME, unit:NAME, ...; several describe one process",
    )
    add_context_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Explain."""
    with Client(options.socket) as client:
        if _REQUEST_ID.fullmatch(options.what):
            _explain_refusal(client, options)
        else:
            _simulate(client, options)


def _simulate(client: Client, options: argparse.Namespace) -> None:
    action = options.what if options.what.lower().startswith(_PREFIX) else f"{_PREFIX}{options.what}"
    answer = client.call(
        SIMULATE_POLICY,
        SimulatePolicyRequest(
            actions=[action],
            key_id=options.key,
            principals=options.principals,
            encryption_context=context_of(options.context),
        ),
    )
    if options.json:
        print_json(answer)
        return
    grantee = options.principals[0] if options.principals else _grantee(f"uid {os.geteuid()}")
    _print(_explanation(answer.principal, answer.results[0], options.key or "", grantee))


def _explain_refusal(client: Client, options: argparse.Namespace) -> None:
    if options.key or options.principals or options.context:
        raise CommandError("a request is explained by its id alone", code=EXIT_USAGE)
    try:
        answer = client.call(EXPLAIN_REFUSAL, ExplainRefusalRequest(request_id=options.what))
    except NotFoundError as error:
        record = _recorded(client, options.what, error)
        if options.json:
            print_json(record)
        else:
            _print(_of_record(record))
        return
    if options.json:
        print_json(answer)
    else:
        resource = "" if answer.resource == "*" else answer.resource
        _print(_explanation(answer.principal, answer.result, resource, _grantee(answer.principal)))


def _recorded(client: Client, request_id: str, missing: NotFoundError) -> Record:
    """Return what the trail says of a request that the daemon does not remember, for whom may read the trail."""
    from kmsd_client.cli.audit_records import decode, records_from  # noqa: PLC0415 - seldom needed

    found: Record | None = None
    try:
        for line in records_from(client, None):
            if request_id.encode() in line:
                record = decode(line)
                if record.get("requestID", "").startswith(request_id):
                    found = record  # the last one tells how it ended
    except AccessDeniedError:
        hint = "kmsd remembers refusals for a while; an administrator or auditor finds older ones in the audit trail"
        raise CommandError(missing.message.removesuffix("."), hint) from None
    if found is None:
        raise CommandError(f"neither kmsd nor its audit trail knows a request {request_id}")
    return found


def _of_record(record: Record) -> Iterator[str]:
    """Yield what a record says of a decision."""
    from kmsd_client.cli.audit_records import told  # noqa: PLC0415 - seldom needed

    yield told(record)
    decision = (record.get("additionalEventData") or {}).get("decision")
    yield f"decided by: {decision}" if decision else "no policy decided: it did not come to that"
    if record.get("errorMessage"):
        yield f"answered: {record['errorMessage']}"


def _explanation(principal: str, result: SimulationResult, resource: str, grantee: str) -> Iterator[str]:
    """Yield the lines for people: the answer, what decides, what was looked at, and what would help."""
    verb = "may" if result.decision is Outcome.ALLOWED else "may not"
    yield f"{principal} {verb} {result.action} {resource}".rstrip()
    yield f"decided by: {result.rule}"
    for entry in result.trace:
        yield f"  {_step(entry)}"
    if result.decision is not Outcome.ALLOWED:
        yield f"what would help: {_help(result, resource, grantee)}"


def _step(entry: TraceEntry) -> str:
    place = f"{entry.origin}, statement {entry.number}" if entry.number else entry.origin
    sid = f' "{entry.sid}"' if entry.sid else ""
    return f"{place}{sid}: {entry.effect} {'holds' if entry.holds else 'does not hold'}: {entry.reason}"


def _help(result: SimulationResult, resource: str, grantee: str) -> str:
    action = result.action
    if result.decision is Outcome.EXPLICIT_DENY:
        if result.rule.startswith("host policy"):
            return "an administrator has to change the host policy, which denies it"
        return f"the statement that denies it has to be changed: {shlex.join(['kms', 'policy', 'edit', resource])}"
    if not resource or ":alias/" in resource:
        return f"an administrator has to allow {action} in the host policy"
    return f"an Allow for {action} that names {grantee}: {_command(action.removeprefix(_PREFIX), resource, grantee)}"


def _command(operation: str, key: str, grantee: str) -> str:
    """Return the command that would allow an operation, for whoever manages the key."""
    for option, operations in (("--encrypt-only", ENCRYPTING), ("--decrypt-only", DECRYPTING)):
        if operation in operations:
            return shlex.join(["kms", "key", "share", key, "--with", grantee, option])
    if operation in [*GrantOperation]:
        return shlex.join(["kms", "grant", "create", key, "--to", grantee, "--operation", operation])
    return shlex.join(["kms", "policy", "edit", key])


def _grantee(principal: str) -> str:
    """Return how a policy would name whom `uid 33 (www-data)` tells of."""
    found = _UID.search(principal)
    if found is None:
        return principal
    try:
        return f"user:{pwd.getpwuid(int(found[1])).pw_name}"
    except (KeyError, OverflowError):
        return f"uid:{found[1]}"


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(printable(line))
