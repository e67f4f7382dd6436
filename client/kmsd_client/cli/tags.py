"""Tag keys; policies may ask for tags, and they are no place for secrets."""

from __future__ import annotations

import argparse

from kmsd.api.shapes import Tag
from kmsd.api.tags import (
    LIST_RESOURCE_TAGS,
    TAG_RESOURCE,
    TAGS_PER_KEY,
    UNTAG_RESOURCE,
    ListResourceTagsRequest,
    TagResourceRequest,
    UntagResourceRequest,
)
from kmsd_client import Client
from kmsd_client.cli.keys import KEY_HELP, key_id_of
from kmsd_client.cli.terminal import add_json_option, context_of, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="set|remove|list")
    setting = verbs.add_parser("set", help="give a key tags; one that it has gets the new value")
    setting.add_argument("key", help=KEY_HELP)
    setting.add_argument("tags", nargs="+", metavar="NAME=VALUE", help="a tag")
    setting.set_defaults(run=run_set)
    removal = verbs.add_parser("remove", help="take tags off a key")
    removal.add_argument("key", help=KEY_HELP)
    removal.add_argument("names", nargs="+", metavar="NAME", help="the name of a tag")
    removal.set_defaults(run=run_remove)
    listing = verbs.add_parser("list", help="list a key's tags")
    listing.add_argument("key", help=KEY_HELP)
    add_json_option(listing)
    listing.set_defaults(run=run_list)


def run_set(options: argparse.Namespace) -> None:
    """Give a key tags."""
    tags = [Tag(tag_key=name, tag_value=value) for name, value in context_of(options.tags).items()]
    with Client(options.socket) as client:
        client.call(TAG_RESOURCE, TagResourceRequest(key_id=key_id_of(client, options.key), tags=tags))


def run_remove(options: argparse.Namespace) -> None:
    """Take tags off; one that the key does not have is passed over, as AWS does."""
    with Client(options.socket) as client:
        key = key_id_of(client, options.key)
        client.call(UNTAG_RESOURCE, UntagResourceRequest(key_id=key, tag_keys=options.names))


def run_list(options: argparse.Namespace) -> None:
    """List tags; a key has so few that one answer holds them."""
    with Client(options.socket) as client:
        key = key_id_of(client, options.key)
        tags = client.call(LIST_RESOURCE_TAGS, ListResourceTagsRequest(key_id=key, limit=TAGS_PER_KEY)).tags
    if options.json:
        print_json(tags)
    else:
        print_table(("TAG", "VALUE"), [(tag.tag_key, tag.tag_value) for tag in tags])
