"""Name keys."""

from __future__ import annotations

import argparse

from kmsd.api.keys import CREATE_ALIAS, CreateAliasRequest
from kmsd_client import Client
from kmsd_client.cli.keys import all_aliases, key_id_of
from kmsd_client.cli.terminal import add_json_option, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="create|list")
    create = verbs.add_parser("create", help="give a key a name")
    create.add_argument("alias", help="alias/NAME")
    create.add_argument("key", help="key id, key ARN, or another alias of the key")
    create.set_defaults(run=run_create)
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


def run_list(options: argparse.Namespace) -> None:
    """List aliases."""
    with Client(options.socket) as client:
        aliases = all_aliases(client, key_id_of(client, options.key) if options.key else None)
    if options.json:
        print_json(aliases)
    else:
        print_table(("ALIAS", "KEY ID"), [(alias.alias_name, alias.target_key_id) for alias in aliases])
