"""Make, list, share and rotate keys, and take them out of use."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kmsd.api.deletion import DEFAULT_WINDOW_DAYS
from kmsd.api.keys import (
    CREATE_ALIAS,
    CREATE_KEY,
    DESCRIBE_KEY,
    ENABLE_KEY,
    LIST_ALIASES,
    LIST_KEYS,
    UPDATE_KEY_DESCRIPTION,
    CreateAliasRequest,
    CreateKeyRequest,
    DescribeKeyRequest,
    EnableKeyRequest,
    ListAliasesRequest,
    ListKeysRequest,
    UpdateKeyDescriptionRequest,
)
from kmsd.api.shapes import AliasListEntry, KeyListEntry, KeyMetadata, Tag
from kmsd_client import Client
from kmsd_client.cli.consent import add_yes_option
from kmsd_client.cli.moments import second
from kmsd_client.cli.terminal import (
    add_context_option,
    add_json_option,
    context_of,
    print_facts,
    print_json,
)

if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no other name for it
    _Run = Callable[[argparse.Namespace], int | None]

# How commands say what they take for a key.
KEY_HELP = "key id, key ARN, alias or alias ARN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")
    create = verbs.add_parser("create", help="make a key")
    create.add_argument("--alias", help="also name it, alias/NAME")
    create.add_argument("--description", default="", help="what the key is for")
    create.add_argument("--policy", type=Path, metavar="FILE", help="its key policy; otherwise you manage and use it")
    create.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="a tag")
    add_json_option(create)
    create.set_defaults(run=run_create)
    listing = verbs.add_parser("list", help="list all keys: state, age, next rotation, last use, aliases")
    add_json_option(listing)
    listing.set_defaults(run=_in("key_list", "run_list"))
    describe = _verb(verbs, "describe", "tell what a key is", run_describe)
    add_json_option(describe)
    description = _verb(verbs, "set-description", "change what is said of a key", run_set_description)
    description.add_argument("text", help="what the key is for; everybody who may describe the key reads it")
    _add_share(verbs.add_parser("share", help="let somebody else use a key"))
    unshare = _verb(
        verbs,
        "unshare",
        "take back what kms key share gave; what the policy allows stays",
        _in("sharing", "run_unshare"),
    )
    unshare.add_argument("--with", required=True, metavar="PRINCIPAL", dest="principal", help="with whom")
    disable = _verb(
        verbs, "disable", "let a key not be used until it is enabled again", _in("key_deletion", "run_disable")
    )
    add_yes_option(disable)
    _verb(verbs, "enable", "let a key be used again", run_enable)
    _add_rotation(verbs)
    _add_deletion(verbs)


def _add_rotation(verbs: _Verbs) -> None:
    rotate = _verb(
        verbs,
        "rotate",
        "give a key new material; what was encrypted before still decrypts",
        _in("key_rotation", "run_rotate"),
    )
    when = rotate.add_mutually_exclusive_group(required=True)
    when.add_argument("--now", action="store_true", help="now; the plan stays as it is")
    when.add_argument("--every", type=int, metavar="DAYS", help="by itself, every 90 to 2560 days")
    when.add_argument("--off", action="store_true", help="no longer by itself")
    rotations = _verb(verbs, "rotations", "list the material of a key", _in("key_rotation", "run_rotations"))
    add_json_option(rotations)


def _add_deletion(verbs: _Verbs) -> None:
    last_use = _verb(
        verbs, "last-use", "tell when a key was used last, and how often", _in("key_deletion", "run_last_use")
    )
    add_json_option(last_use)
    delete = _verb(
        verbs,
        "delete",
        "let a key not be used any more, and destroy it after some days",
        _in("key_deletion", "run_delete"),
    )
    delete.add_argument(
        "--days",
        type=int,
        default=DEFAULT_WINDOW_DAYS,
        help=f"after how many, 7 to 30; otherwise {DEFAULT_WINDOW_DAYS}",
    )
    add_yes_option(delete)
    _verb(
        verbs,
        "cancel-deletion",
        "keep a key that was to be destroyed; it is disabled then",
        _in("key_deletion", "run_cancel"),
    )


def _verb(verbs: _Verbs, name: str, told: str, run: _Run) -> argparse.ArgumentParser:
    """Add a verb that takes one key."""
    verb = verbs.add_parser(name, help=told)
    verb.add_argument("key", help=KEY_HELP)
    verb.set_defaults(run=run)
    return verb


def _in(module: str, function: str) -> _Run:
    """Return what runs a verb of a module that is imported only then: each verb loads what it needs."""

    def run(options: argparse.Namespace) -> int | None:
        found: _Run = getattr(importlib.import_module(f"kmsd_client.cli.{module}"), function)
        return found(options)

    return run


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
    parser.set_defaults(run=_in("sharing", "run_share"))


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


def run_describe(options: argparse.Namespace) -> None:
    """Tell what a key is."""
    with Client(options.socket) as client:
        key = client.call(DESCRIBE_KEY, DescribeKeyRequest(key_id=options.key)).key_metadata
        names = [alias.alias_name for alias in all_aliases(client, key.key_id)]
    if options.json:
        print_json(key)
    else:
        print_facts(_facts(key, names))


def run_set_description(options: argparse.Namespace) -> None:
    """Change what is said of a key."""
    with Client(options.socket) as client:
        key_id = key_id_of(client, options.key)
        client.call(UPDATE_KEY_DESCRIPTION, UpdateKeyDescriptionRequest(key_id=key_id, description=options.text))


def run_enable(options: argparse.Namespace) -> None:
    """Enable a key."""
    with Client(options.socket) as client:
        client.call(ENABLE_KEY, EnableKeyRequest(key_id=key_id_of(client, options.key)))


def _facts(key: KeyMetadata, names: list[str]) -> list[tuple[str, str]]:
    return [
        ("key id", key.key_id),
        ("arn", key.arn),
        ("aliases", ", ".join(names) or "none"),
        ("description", key.description or "none"),
        ("state", key.key_state),
        ("usage", f"{key.key_usage}, {key.key_spec}"),
        ("created", second(key.creation_date)),
        *([("destroyed", f"on {second(key.deletion_date)}")] if key.deletion_date else []),
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
