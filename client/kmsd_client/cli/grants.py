"""Permit somebody single operations with a key, and take that back. kms key share does the usual in one step."""

from __future__ import annotations

import argparse

from kmsd.api.grants import (
    CREATE_GRANT,
    LIST_GRANTS,
    LIST_RETIRABLE_GRANTS,
    RETIRE_GRANT,
    REVOKE_GRANT,
    CreateGrantRequest,
    GrantConstraints,
    GrantListEntry,
    GrantOperation,
    ListGrantsRequest,
    ListRetirableGrantsRequest,
    RetireGrantRequest,
    RevokeGrantRequest,
)
from kmsd.api.keys import DESCRIBE_KEY, DescribeKeyRequest
from kmsd_client import Client
from kmsd_client.cli.keys import KEY_HELP, key_id_of
from kmsd_client.cli.terminal import (
    EXIT_USAGE,
    CommandError,
    add_json_option,
    context_of,
    print_facts,
    print_json,
    print_table,
)

PRINCIPAL_HELP = "user:NAME, group:NAME, uid:N, gid:N, unit:NAME, user-unit:UID/NAME or administrators"
_PAGE_GRANTS = 100  # as many as one request may ask for
_OPERATIONS = ", ".join(GrantOperation)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="create|list|retire|revoke")
    _add_create(verbs.add_parser("create", help="permit somebody operations with a key"))
    listing = verbs.add_parser("list", help="list the grants of a key, or those that somebody may retire")
    listing.add_argument("key", nargs="?", help=KEY_HELP)
    listing.add_argument("--to", metavar="PRINCIPAL", help="only those to it")
    listing.add_argument("--retirable", metavar="PRINCIPAL", help="of all keys, those that it may retire")
    add_json_option(listing)
    listing.set_defaults(run=run_list)
    retire = verbs.add_parser("retire", help="give up a grant, as who it is to or who may retire it")
    retire.add_argument("--token", metavar="T", help="the grant's token, instead of KEY and GRANT")
    retire.add_argument("key", nargs="?", help="key ARN, or an alias of the key")
    retire.add_argument("grant", nargs="?", metavar="grant", help="the grant's id")
    retire.set_defaults(run=run_retire)
    revoke = verbs.add_parser("revoke", help="take a grant away, as who manages the key")
    revoke.add_argument("key", help=KEY_HELP)
    revoke.add_argument("grant", help="the grant's id")
    revoke.set_defaults(run=run_revoke)


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", help=KEY_HELP)
    parser.add_argument("--to", required=True, metavar="PRINCIPAL", help=PRINCIPAL_HELP)
    parser.add_argument(
        "--operation",
        action="append",
        required=True,
        metavar="NAME",
        choices=[*GrantOperation],
        help=f"what it may do; may be repeated; one of {_OPERATIONS}",
    )
    parser.add_argument("--retiring", metavar="PRINCIPAL", help="who may give the grant up")
    parser.add_argument(
        "--equals",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only with an encryption context of exactly these pairs",
    )
    parser.add_argument(
        "--subset",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only with an encryption context that has these pairs",
    )
    parser.add_argument("--name", metavar="N", help="asked for again under the same name it is the same grant")
    add_json_option(parser)
    parser.set_defaults(run=run_create)


def run_create(options: argparse.Namespace) -> None:
    """Make a grant, and tell what to revoke it by."""
    constraints = GrantConstraints(
        encryption_context_equals=context_of(options.equals) or None,
        encryption_context_subset=context_of(options.subset) or None,
    )
    with Client(options.socket) as client:
        made = client.call(
            CREATE_GRANT,
            CreateGrantRequest(
                key_id=key_id_of(client, options.key),
                grantee_principal=options.to,
                operations=[GrantOperation(name) for name in options.operation],
                retiring_principal=options.retiring,
                constraints=constraints if options.equals or options.subset else None,
                name=options.name,
            ),
        )
    if options.json:
        print_json(made)
    else:
        print_facts([("grant", made.grant_id), ("token", made.grant_token)])


def run_list(options: argparse.Namespace) -> None:
    """List grants."""
    if (options.key is None) == (options.retirable is None):
        raise CommandError("which grants?", "name a KEY, or --retirable PRINCIPAL", code=EXIT_USAGE)
    if options.to is not None and options.key is None:
        raise CommandError("--to is about the grants of a key", "name a KEY", code=EXIT_USAGE)
    with Client(options.socket) as client:
        if options.key is None:
            grants = retirable_grants(client, options.retirable)
        else:
            grants = all_grants(client, key_id_of(client, options.key), to=options.to)
    if options.json:
        print_json(grants)
    elif options.key is None:
        print_table(
            ("GRANT", "KEY", "TO", "OPERATIONS"),
            [(one.grant_id, one.key_id, one.grantee_principal, ", ".join(one.operations)) for one in grants],
        )
    else:
        print_table(("GRANT", "TO", "OPERATIONS", "CONTEXT", "NAME"), map(_row, grants))


def run_retire(options: argparse.Namespace) -> None:
    """Give a grant up."""
    if (options.token is None) == (options.grant is None) or (options.token is not None and options.key is not None):
        raise CommandError("which grant?", "name its KEY and GRANT, or its --token T", code=EXIT_USAGE)
    with Client(options.socket) as client:
        key = None if options.key is None else _arn_of(client, options.key)
        request = RetireGrantRequest(grant_token=options.token, key_id=key, grant_id=options.grant)
        client.call(RETIRE_GRANT, request)


def run_revoke(options: argparse.Namespace) -> None:
    """Take a grant away."""
    with Client(options.socket) as client:
        key = key_id_of(client, options.key)
        client.call(REVOKE_GRANT, RevokeGrantRequest(key_id=key, grant_id=options.grant))


def all_grants(client: Client, key_id: str, *, to: str | None) -> list[GrantListEntry]:
    """Return every grant of a key, or those to one principal, page by page."""
    grants: list[GrantListEntry] = []
    marker = None
    while True:
        request = ListGrantsRequest(key_id=key_id, grantee_principal=to, limit=_PAGE_GRANTS, marker=marker)
        page = client.call(LIST_GRANTS, request)
        grants += page.grants
        marker = page.next_marker
        if marker is None:
            return grants


def retirable_grants(client: Client, principal: str) -> list[GrantListEntry]:
    """Return every grant that a principal may retire, page by page."""
    grants: list[GrantListEntry] = []
    marker = None
    while True:
        request = ListRetirableGrantsRequest(retiring_principal=principal, limit=_PAGE_GRANTS, marker=marker)
        page = client.call(LIST_RETIRABLE_GRANTS, request)
        grants += page.grants
        marker = page.next_marker
        if marker is None:
            return grants


def _row(grant: GrantListEntry) -> tuple[str, ...]:
    return (
        grant.grant_id,
        grant.grantee_principal,
        ", ".join(grant.operations),
        "; ".join(_constraints(grant.constraints or GrantConstraints())),
        grant.name,
    )


def _constraints(constraints: GrantConstraints) -> list[str]:
    told: list[str] = []
    for words, pairs in (
        ("exactly", constraints.encryption_context_equals),
        ("with", constraints.encryption_context_subset),
    ):
        if pairs is not None:
            told.append(f"{words} {', '.join(f'{name}={value}' for name, value in pairs.items())}")
    return told


def _arn_of(client: Client, name: str) -> str:
    """Return the ARN of a key; who retires a grant may not be allowed to describe it, so an ARN is taken as it is."""
    if name.startswith("arn:") and ":alias/" not in name:
        return name
    return client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=name)).key_metadata.arn
