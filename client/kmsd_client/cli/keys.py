"""Make, list and show keys."""

from __future__ import annotations

import argparse
from pathlib import Path

from kmsd.api.keys import (
    CREATE_ALIAS,
    CREATE_KEY,
    DESCRIBE_KEY,
    DISABLE_KEY,
    ENABLE_KEY,
    LIST_ALIASES,
    LIST_KEYS,
    CreateAliasRequest,
    CreateKeyRequest,
    DescribeKeyRequest,
    EnableKeyRequest,
    ListAliasesRequest,
    ListKeysRequest,
)
from kmsd.api.shapes import AliasListEntry, KeyListEntry, KeyMetadata, Tag
from kmsd_client import Client
from kmsd_client.cli.terminal import (
    add_context_option,
    add_json_option,
    context_of,
    print_facts,
    print_json,
    print_table,
)

# How commands say what they take for a key.
KEY_HELP = "key id, key ARN, alias or alias ARN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="create|list|show|share|unshare|disable|enable")
    create = verbs.add_parser("create", help="make a key")
    create.add_argument("--alias", help="also name it, alias/NAME")
    create.add_argument("--description", default="", help="what the key is for")
    create.add_argument("--policy", type=Path, metavar="FILE", help="its key policy; otherwise you manage and use it")
    create.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="a tag")
    add_json_option(create)
    create.set_defaults(run=run_create)
    listing = verbs.add_parser("list", help="list all keys with their aliases")
    add_json_option(listing)
    listing.set_defaults(run=run_list)
    show = verbs.add_parser("show", help="show one key")
    show.add_argument("key", help=KEY_HELP)
    add_json_option(show)
    show.set_defaults(run=run_show)
    _add_share(verbs.add_parser("share", help="let somebody else use a key"))
    unshare = verbs.add_parser("unshare", help="take back what kms key share gave; what the policy allows stays")
    unshare.add_argument("key", help=KEY_HELP)
    unshare.add_argument("--with", required=True, metavar="PRINCIPAL", dest="principal", help="with whom")
    unshare.set_defaults(run=_run_unshare)
    for verb, operation, told in (
        ("disable", DISABLE_KEY, "let a key not be used until it is enabled again"),
        ("enable", ENABLE_KEY, "let a key be used again"),
    ):
        switch = verbs.add_parser(verb, help=told)
        switch.add_argument("key", help=KEY_HELP)
        switch.set_defaults(run=run_switch, operation=operation)


def _add_share(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", help=KEY_HELP)
    parser.add_argument(
        "--with",
        required=True,
        metavar="PRINCIPAL",
        dest="principal",
        help="user:NAME, group:NAME, unit:NAME, ...",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--encrypt-only", action="store_true", help="it may encrypt, and not decrypt")
    which.add_argument("--decrypt-only", action="store_true", help="it may decrypt, and not encrypt")
    add_context_option(parser)
    parser.set_defaults(run=_run_share)


def run_create(options: argparse.Namespace) -> None:
    """Make a key and perhaps an alias for it."""
    policy = options.policy.read_text(encoding="utf-8") if options.policy else None
    tags = [Tag(tag_key=name, tag_value=value) for name, value in context_of(options.tag).items()]
    with Client(options.socket) as client:
        made = client.call(
            CREATE_KEY, CreateKeyRequest(policy=policy, description=options.description, tags=tags)
        ).key_metadata
        if options.alias:
            # The key stands even if its name is refused, so it is said first.
            if not options.json:
                print(made.arn)
            client.call(CREATE_ALIAS, CreateAliasRequest(alias_name=options.alias, target_key_id=made.key_id))
        elif not options.json:
            print(made.arn)
    if options.json:
        print_json(made)


def run_list(options: argparse.Namespace) -> None:
    """List all keys."""
    with Client(options.socket) as client:
        keys = all_keys(client)
        names: dict[str, list[str]] = {}
        for alias in all_aliases(client, None):
            names.setdefault(alias.target_key_id, []).append(alias.alias_name)
    if options.json:
        print_json(keys)
    else:
        print_table(("KEY ID", "ALIASES"), [(key.key_id, ", ".join(names.get(key.key_id, []))) for key in keys])


def run_show(options: argparse.Namespace) -> None:
    """Show one key."""
    with Client(options.socket) as client:
        key = client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=options.key)).key_metadata
        names = [alias.alias_name for alias in all_aliases(client, key.key_id)]
    if options.json:
        print_json(key)
    else:
        print_facts(_facts(key, names))


def run_switch(options: argparse.Namespace) -> None:
    """Disable or enable a key."""
    with Client(options.socket) as client:
        client.call(options.operation, EnableKeyRequest(key_id=key_id_of(client, options.key)))


def _run_share(options: argparse.Namespace) -> None:
    from kmsd_client.cli.sharing import run_share  # noqa: PLC0415 - each verb loads what it needs

    run_share(options)


def _run_unshare(options: argparse.Namespace) -> None:
    from kmsd_client.cli.sharing import run_unshare  # noqa: PLC0415 - each verb loads what it needs

    run_unshare(options)


def _facts(key: KeyMetadata, names: list[str]) -> list[tuple[str, str]]:
    return [
        ("key id", key.key_id),
        ("arn", key.arn),
        ("aliases", ", ".join(names) or "none"),
        ("description", key.description or "none"),
        ("state", key.key_state),
        ("usage", f"{key.key_usage}, {key.key_spec}"),
        ("created", f"{key.creation_date:%Y-%m-%d %H:%M:%S} UTC"),
        ("key material", key.current_key_material_id),
    ]


def key_id_of(client: Client, name: str) -> str:
    """Return what names a key to operations that take no alias: of an alias the key's id, else the name itself."""
    if "alias/" not in name:
        return name
    return client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=name)).key_metadata.key_id


def all_keys(client: Client) -> list[KeyListEntry]:
    """Return every key, page by page."""
    keys: list[KeyListEntry] = []
    marker = None
    while True:
        page = client.call(LIST_KEYS, ListKeysRequest(limit=1000, marker=marker))
        keys += page.keys
        marker = page.next_marker
        if marker is None:
            return keys


def all_aliases(client: Client, key_id: str | None) -> list[AliasListEntry]:
    """Return every alias, or those of one key, page by page."""
    aliases: list[AliasListEntry] = []
    marker = None
    while True:
        page = client.call(LIST_ALIASES, ListAliasesRequest(key_id=key_id, limit=100, marker=marker))
        aliases += page.aliases
        marker = page.next_marker
        if marker is None:
            return aliases
