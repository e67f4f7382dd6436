"""Name keys."""

from __future__ import annotations

import argparse

from kmsd.api.keys import (
    CREATE_ALIAS,
    DELETE_ALIAS,
    DESCRIBE_KEY,
    UPDATE_ALIAS,
    CreateAliasRequest,
    DeleteAliasRequest,
    DescribeKeyRequest,
    UpdateAliasRequest,
)
from kmsd_client import Client
from kmsd_client.cli.consent import add_yes_option, check_for_terminal
from kmsd_client.cli.dependents import agree, last_usage
from kmsd_client.cli.keys import all_aliases, key_id_of
from kmsd_client.cli.terminal import add_json_option, print_json, print_table

_KEY_HELP = "key id, key ARN, or another alias of the key"
_STAYS = "what was encrypted before still decrypts: it names its key by the id"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="create|update|delete|list")
    create = verbs.add_parser("create", help="give a key a name")
    create.add_argument("alias", help="alias/NAME")
    create.add_argument("key", help=_KEY_HELP)
    create.set_defaults(run=run_create)
    update = verbs.add_parser("update", help="let a name be that of another key")
    update.add_argument("alias", help="alias/NAME")
    # Not as `key`: a refusal may be about either of two keys, and tells of which only if none is taken for granted.
    update.add_argument("target", metavar="key", help=_KEY_HELP)
    add_yes_option(update)
    update.set_defaults(run=run_update)
    delete = verbs.add_parser("delete", help="take a name away; its key stays")
    delete.add_argument("alias", help="alias/NAME")
    add_yes_option(delete)
    delete.set_defaults(run=run_delete)
    listing = verbs.add_parser("list", help="list aliases")
    listing.add_argument("key", nargs="?", help="only this key's")
    add_json_option(listing)
    listing.set_defaults(run=run_list)


def run_create(options: argparse.Namespace) -> None:
    """Make an alias; the daemon takes only key ids here, so another alias is looked up first."""
    with Client(options.socket) as client:
        client.call(
            CREATE_ALIAS, CreateAliasRequest(alias_name=options.alias, target_key_id=key_id_of(client, options.key))
        )


def run_update(options: argparse.Namespace) -> None:
    """Let an alias name another key; it is asked for first where the one that it names is in use."""
    with Client(options.socket) as client:
        new = key_id_of(client, options.target)
        if not options.yes:
            old = client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=options.alias)).key_metadata.key_id
            if not new.endswith(old) and _may_be_in_use(client, old):
                consequence = f"from now on {options.alias} encrypts under {new}"
                agree(client, options.alias, old, [consequence, _STAYS])
        client.call(UPDATE_ALIAS, UpdateAliasRequest(alias_name=options.alias, target_key_id=new))


def run_delete(options: argparse.Namespace) -> None:
    """Delete an alias, if that is wanted."""
    if not options.yes:
        check_for_terminal()
    with Client(options.socket) as client:
        if not options.yes:
            key_id = client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=options.alias)).key_metadata.key_id
            agree(
                client, options.alias, key_id, [f"whoever calls the key {options.alias} is refused from now on", _STAYS]
            )
        client.call(DELETE_ALIAS, DeleteAliasRequest(alias_name=options.alias))


def run_list(options: argparse.Namespace) -> None:
    """List aliases."""
    with Client(options.socket) as client:
        aliases = all_aliases(client, key_id_of(client, options.key) if options.key else None)
    if options.json:
        print_json(aliases)
    else:
        print_table(("ALIAS", "KEY ID"), [(alias.alias_name, alias.target_key_id) for alias in aliases])


def _may_be_in_use(client: Client, key_id: str) -> bool:
    """Tell whether a key was ever used; whoever may not know has to take it that it was."""
    usage = last_usage(client, key_id)
    return usage is None or usage.key_last_usage is not None
