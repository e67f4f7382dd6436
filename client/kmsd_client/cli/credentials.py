"""Keep secrets for units: systemd hands them to the unit it starts, and nobody can read them back."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kmsd.api.credentials import (
    CREATE_CREDENTIAL,
    DELETE_CREDENTIAL,
    LIST_CREDENTIALS,
    MAX_CREDENTIAL_BYTES,
    CreateCredentialRequest,
    CredentialListEntry,
    DeleteCredentialRequest,
    ListCredentialsRequest,
)
from kmsd_client import Client, _transport
from kmsd_client.cli.consent import add_yes_option, ask
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, add_json_option, print_json, print_table, printable

# Beside the socket for clients, in every way that kmsd is started without settings of its own.
_SOCKET_NAME = "credential.sock"
_UNIT_HELP = "the service's unit, such as nginx.service"
_PAGE = 100  # as many as one request may ask for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="create|list|delete")
    create = verbs.add_parser("create", help="keep what standard input, or a file, has")
    create.add_argument("--unit", required=True, help=_UNIT_HELP)
    create.add_argument("name", help="the credential's name, by which the service reads it")
    create.add_argument("--file", type=Path, help="read it there instead of from standard input")
    create.add_argument("--overwrite", action="store_true", help="replace the one that is kept under this name")
    create.set_defaults(run=run_create)
    listing = verbs.add_parser("list", help="list what is kept, without the secrets")
    listing.add_argument("--unit", help="only this unit's")
    add_json_option(listing)
    listing.set_defaults(run=run_list)
    delete = verbs.add_parser("delete", help="delete what is kept")
    delete.add_argument("--unit", required=True, help=_UNIT_HELP)
    delete.add_argument("name", help="the credential's name")
    add_yes_option(delete)
    delete.set_defaults(run=run_delete)


def run_create(options: argparse.Namespace) -> None:
    """Keep a secret, and tell what to put into the unit."""
    unit = _service(options.unit)
    secret = _secret(options.file)
    with Client(options.socket) as client:
        client.call(
            CREATE_CREDENTIAL,
            CreateCredentialRequest(
                unit=unit, name=options.name, plaintext=memoryview(secret), overwrite=options.overwrite
            ),
        )
    path = Path(_transport.find_socket(options.socket, os.environ)).absolute().with_name(_SOCKET_NAME)
    print(printable(f"kept for {unit}; in its unit (systemctl edit {unit}), under [Service]:"))
    print(printable(f"LoadCredential={options.name}:{path}"))


def run_list(options: argparse.Namespace) -> None:
    """List credentials."""
    with Client(options.socket) as client:
        found = all_credentials(client, options.unit and _service(options.unit))
    if options.json:
        print_json(found)
    else:
        print_table(
            ("UNIT", "NAME", "BYTES", "CREATED"),
            [(one.unit, one.name, str(one.length), f"{one.creation_date:%Y-%m-%d %H:%M:%S} UTC") for one in found],
        )


def run_delete(options: argparse.Namespace) -> None:
    """Delete a credential, if that is wanted."""
    unit = _service(options.unit)
    if not options.yes:
        question = f"{unit} will not start while it loads {options.name}. Delete it? [y/n]: "
        ask(question, {"y", "yes"}, "nothing was deleted")
    with Client(options.socket) as client:
        client.call(DELETE_CREDENTIAL, DeleteCredentialRequest(unit=unit, name=options.name))


def all_credentials(client: Client, unit: str | None) -> list[CredentialListEntry]:
    """Return every credential, or those of one unit, page by page."""
    found: list[CredentialListEntry] = []
    marker = None
    while True:
        page = client.call(LIST_CREDENTIALS, ListCredentialsRequest(unit=unit, limit=_PAGE, marker=marker))
        found += page.credentials
        marker = page.next_marker
        if marker is None:
            return found


def _service(unit: str) -> str:
    if not unit.endswith(".service"):
        raise CommandError(f"'{unit}' is no service", f"name its unit: {unit}.service", code=EXIT_USAGE)
    return unit


def _secret(file: Path | None) -> bytes:
    """Read the secret; from a terminal it would be seen, and end with a line feed that nobody thinks of."""
    if file is None and sys.stdin.isatty():
        raise CommandError(
            "the secret is read from standard input", "give it by < FILE or --file FILE", code=EXIT_USAGE
        )
    if file is None:
        secret = sys.stdin.buffer.read(MAX_CREDENTIAL_BYTES + 1)
    else:
        with file.open("rb") as stream:
            secret = stream.read(MAX_CREDENTIAL_BYTES + 1)
    if not secret:
        raise CommandError("the secret is empty")
    if len(secret) > MAX_CREDENTIAL_BYTES:
        raise CommandError(
            f"the secret is larger than {MAX_CREDENTIAL_BYTES // 1024} KiB",
            "encrypt it as a file (kms encrypt), and keep a key or a password for the unit",
        )
    return secret
